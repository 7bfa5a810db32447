//! The admin socket: HTTP/1.1 and JSON on a Unix socket, described in `openapi.json`.
//!
//! Whoever may open the socket (its file mode) may look; our own user, root and members of
//! `node.admin_group` may change things (`SO_PEERCRED`). A verb that has begun is carried to its
//! end even if the asker goes away.

mod peer;
pub mod routes;
mod socket;

pub use peer::{Peer, Rights};
pub use socket::{BindError, Guard, bind};

use crate::controller::status::{Depth, NodeView, Rates, Snapshot};
use crate::controller::{Controller, Ending, Request};
use crate::http::{Answered, Asked, Places, serve};
use hyper::StatusCode;
use routes::{Refusal, Route};
use serde::{Deserialize, Serialize};
use shards::control::ShardStatus;
use std::cell::OnceCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::UnixListener;

/// Largest body of a verb: what is to be done together is named together, ten thousand topics by
/// names of a hundred bytes.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// What the admin socket answers from.
pub struct Admin {
    /// Set once the shards run; everything but the version is 503 before.
    controller: OnceCell<Rc<Controller>>,
    /// Earlier counters.
    pub rates: Rates,
    /// The answer of `/v1/tune`.
    tune: Tune,
    rights: Rights,
}

/// What was chosen for this host and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tune {
    /// The report for people.
    pub text: String,
    /// CPUs of the data shards, in order; absent = not pinned.
    pub shard_cpus: Vec<Option<usize>>,
    /// CPUs for everything else, in the kernel's notation.
    pub housekeeping: String,
    /// What was found on the host.
    pub findings: Vec<serde_json::Value>,
}

/// The body of a verb.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerbBody {
    /// Only say what would happen.
    pub dry_run: bool,
    /// `delete` what is live.
    pub force: bool,
    /// Of a link: only these topics, in one transaction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topics: Option<Vec<String>>,
}

/// The answer of `/v1/version`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Version {
    /// This version.
    pub version: String,
    /// Whether the node has booted.
    pub ready: bool,
}

impl Admin {
    /// Answers "starting" until it is given a controller.
    pub fn new(tune: Tune, rights: Rights) -> Rc<Self> {
        Rc::new(Admin { controller: OnceCell::new(), rates: Rates::default(), tune, rights })
    }

    /// From now on there is something to say.
    pub fn attach(&self, controller: Rc<Controller>) {
        // A second controller would be a mistake of boot's.
        assert!(self.controller.set(controller).is_ok(), "one controller");
    }

    /// The controller, once boot has ended.
    pub fn ready(&self) -> Option<&Rc<Controller>> {
        self.controller.get().filter(|controller| controller.is_booted())
    }

    /// Accepts for ever.
    pub async fn listen(self: Rc<Self>, listener: UnixListener) {
        let places = Places::with_bodies(BODY_BYTES_MAX);
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors: what is open is served on, new ones wait a little.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let may_change = match stream.peer_cred() {
                Ok(peer) => self.rights.may_change(Peer { uid: peer.uid(), gid: peer.gid() }),
                Err(_) => false,
            };
            let admin = self.clone();
            serve(stream, &places, move |asked| {
                let admin = admin.clone();
                async move { admin.answer(asked, may_change).await }
            });
        }
    }

    /// Answers one request; `may_change` = by what the peer is.
    pub async fn answer(&self, asked: Asked, may_change: bool) -> Answered {
        let route = match routes::find(&asked.method, &asked.path) {
            Ok(route) => route,
            Err(refusal) => return refused(refusal, &asked),
        };
        if let Route::Version = route {
            let version = env!("CARGO_PKG_VERSION").to_owned();
            return ok(&Version { version, ready: self.ready().is_some() });
        }
        let Some(controller) = self.ready() else {
            let reason = "Understudy is starting: logs are being opened";
            return Answered::error(StatusCode::SERVICE_UNAVAILABLE, "starting", reason);
        };
        match route {
            Route::Version => unreachable!("answered above"),
            Route::Tune => ok(&self.tune),
            Route::Status => ok(&self.node(controller, None, Depth::Partitions).await),
            Route::Links => ok(&self.node(controller, None, Depth::Links).await.links),
            Route::Link { link } => self.link(controller, &link, Depth::Links).await,
            Route::Topics { link } => self.link(controller, &link, Depth::Topics).await,
            Route::Topic { link, topic, partitions } => {
                self.topic(controller, &link, &topic, partitions).await
            }
            Route::Verb { link, topic, verb } => {
                if !may_change {
                    let reason = "only the user Understudy runs as, root and members of \
                                  node.admin_group may change things";
                    return Answered::error(StatusCode::FORBIDDEN, "not_permitted", reason);
                }
                let request = match read_verb(&asked.body, topic, verb) {
                    Ok(request) => request,
                    Err(reason) => {
                        return Answered::error(StatusCode::BAD_REQUEST, "bad_body", reason);
                    }
                };
                carry(controller, &link, request).await
            }
        }
    }

    async fn statuses(
        &self,
        controller: &Controller,
        link: Option<&str>,
    ) -> Vec<Option<ShardStatus>> {
        controller.shared().shards.status(link.map(std::sync::Arc::from)).await
    }

    async fn node(&self, controller: &Controller, link: Option<&str>, depth: Depth) -> NodeView {
        let statuses = self.statuses(controller, link).await;
        Snapshot::new(&statuses, &self.rates).node(controller, depth)
    }

    async fn link(&self, controller: &Controller, name: &str, depth: Depth) -> Answered {
        let Some(link) = controller.link(name) else { return no_link(name) };
        let statuses = self.statuses(controller, Some(name)).await;
        let view = Snapshot::new(&statuses, &self.rates).link(&link, depth);
        match view.topics {
            Some(topics) => ok(&topics),
            None => ok(&view),
        }
    }

    async fn topic(
        &self,
        controller: &Controller,
        link_name: &str,
        topic: &str,
        partitions_only: bool,
    ) -> Answered {
        let Some(link) = controller.link(link_name) else { return no_link(link_name) };
        let statuses = self.statuses(controller, Some(link_name)).await;
        let snapshot = Snapshot::new(&statuses, &self.rates);
        let Some(mut view) = snapshot.topic_of(&link, topic) else {
            let reason = format!("link {link_name} has no topic {topic}");
            return Answered::error(StatusCode::NOT_FOUND, "topic_not_found", reason);
        };
        let partitions = view.partitions.take().unwrap_or_default();
        if partitions_only { ok(&partitions) } else { ok(&view) }
    }
}

async fn carry(controller: &Rc<Controller>, link: &str, request: Request) -> Answered {
    let Some(link) = controller.link(link) else { return no_link(link) };
    // On a task of its own: an asker who breaks off must not stop a failover halfway.
    let carried = tokio::task::spawn_local(async move { link.carry(&request).await }).await;
    let Ok(outcome) = carried else {
        let reason = "the verb broke off; its steps are safe to run again";
        return Answered::error(StatusCode::INTERNAL_SERVER_ERROR, "broken_off", reason);
    };
    let status = match outcome.ending {
        Ending::Done | Ending::Unchanged => StatusCode::OK,
        Ending::Refused => StatusCode::CONFLICT,
        Ending::NotFound => StatusCode::NOT_FOUND,
        Ending::Failed => StatusCode::SERVICE_UNAVAILABLE,
    };
    Answered::json(status, &outcome)
}

/// Reads the body of a verb; an empty one has only defaults.
///
/// # Errors
/// When it is not one, in words.
pub fn read_verb(
    body: &[u8],
    topic: Option<String>,
    verb: crate::states::Verb,
) -> Result<Request, String> {
    let body: VerbBody = match body.is_empty() {
        true => VerbBody::default(),
        false => serde_json::from_slice(body).map_err(|error| format!("the body: {error}"))?,
    };
    let topics = match (topic, body.topics) {
        (Some(_), Some(_)) => return Err("`topics` has no place under a topic".to_owned()),
        (None, Some(topics)) if topics.is_empty() => {
            return Err("`topics` is empty: leave it out to mean the link".to_owned());
        }
        (Some(topic), None) => Some(vec![topic]),
        (None, topics) => topics,
    };
    Ok(Request { verb, topics, dry_run: body.dry_run, force: body.force })
}

fn ok(value: &impl Serialize) -> Answered {
    Answered::json(StatusCode::OK, value)
}

fn no_link(name: &str) -> Answered {
    let reason = format!("no link is called {name}");
    Answered::error(StatusCode::NOT_FOUND, "link_not_found", reason)
}

fn refused(refusal: Refusal, asked: &Asked) -> Answered {
    match refusal {
        Refusal::NoSuchPath => {
            let reason = format!("there is nothing at {}", shortened(&asked.path));
            Answered::error(StatusCode::NOT_FOUND, "path_not_found", reason)
        }
        Refusal::WrongMethod(allow) => {
            let reason = format!("this path takes {allow}, not {}", asked.method);
            let error =
                Answered::error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", reason);
            Answered { allow: Some(allow), ..error }
        }
    }
}

fn shortened(path: &str) -> String {
    path.chars().take(200).collect()
}

#[cfg(test)]
mod tests;
