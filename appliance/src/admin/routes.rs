//! Paths of the admin socket. Pure.

use crate::states::Verb;
use hyper::Method;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v1/version`
    Version,
    /// `/v1/tune`
    Tune,
    /// `/v1/status`
    Status,
    /// `/v1/links`
    Links,
    /// `/v1/links/{link}`
    Link {
        /// Its name.
        link: String,
    },
    /// `/v1/links/{link}/topics`
    Topics {
        /// Its name.
        link: String,
    },
    /// `/v1/links/{link}/topics/{topic}` and `…/partitions`
    Topic {
        /// The link.
        link: String,
        /// The topic.
        topic: String,
        /// Whether only its partitions are asked for.
        partitions: bool,
    },
    /// `POST …/{verb}` of a link or topic
    Verb {
        /// The link.
        link: String,
        /// The topic, or the link itself.
        topic: Option<String>,
        /// What to do.
        verb: Verb,
    },
}

/// Why there is no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 404
    NoSuchPath,
    /// 405, with what the path takes.
    WrongMethod(&'static str),
}

/// Finds the route of a request.
pub fn find(method: &Method, path: &str) -> Result<Route, Refusal> {
    let rest = path.strip_prefix("/v1/").ok_or(Refusal::NoSuchPath)?;
    let parts: Vec<&str> = rest.split('/').collect();
    if parts.len() > 6 || parts.iter().any(|part| part.is_empty()) {
        return Err(Refusal::NoSuchPath);
    }
    let own = |name: &str| name.to_owned();
    let look = |route| match *method {
        Method::GET => Ok(route),
        _ => Err(Refusal::WrongMethod("GET")),
    };
    let change = |link: &str, topic: Option<&str>, verb: &str| {
        let verb = Verb::ALL.into_iter().find(|known| known.name() == verb);
        let verb = verb.ok_or(Refusal::NoSuchPath)?;
        match *method {
            Method::POST => Ok(Route::Verb { link: own(link), topic: topic.map(own), verb }),
            _ => Err(Refusal::WrongMethod("POST")),
        }
    };
    match parts.as_slice() {
        ["version"] => look(Route::Version),
        ["tune"] => look(Route::Tune),
        ["status"] => look(Route::Status),
        ["links"] => look(Route::Links),
        ["links", link] => look(Route::Link { link: own(link) }),
        ["links", link, "topics"] => look(Route::Topics { link: own(link) }),
        ["links", link, "topics", topic] => {
            look(Route::Topic { link: own(link), topic: own(topic), partitions: false })
        }
        ["links", link, "topics", topic, "partitions"] => {
            look(Route::Topic { link: own(link), topic: own(topic), partitions: true })
        }
        ["links", link, verb] => change(link, None, verb),
        ["links", link, "topics", topic, verb] => change(link, Some(topic), verb),
        _ => Err(Refusal::NoSuchPath),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_and_methods() {
        let get = |path| find(&Method::GET, path);
        let post = |path| find(&Method::POST, path);
        assert_eq!(get("/v1/status"), Ok(Route::Status));
        assert_eq!(post("/v1/status"), Err(Refusal::WrongMethod("GET")));
        assert_eq!(get("/v1/links/a"), Ok(Route::Link { link: "a".into() }));
        let verb = Route::Verb { link: "a".into(), topic: None, verb: Verb::Pause };
        assert_eq!(post("/v1/links/a/pause"), Ok(verb));
        assert_eq!(get("/v1/links/a/pause"), Err(Refusal::WrongMethod("POST")));
        let topic = Some("t.1".to_owned());
        let verb = Route::Verb { link: "a".into(), topic, verb: Verb::Failover };
        assert_eq!(post("/v1/links/a/topics/t.1/failover"), Ok(verb));
        for nothing in
            ["/", "/v1", "/v1/", "/v2/status", "/v1/links//x", "/v1/links/a/promote", "/v1/a/b"]
        {
            assert_eq!(post(nothing), Err(Refusal::NoSuchPath), "{nothing}");
        }
    }

    proptest! {
        #[test]
        fn no_path_panics(path in "(/|v1|links|topics|pause|[a-z%.]{0,4}){0,12}") {
            for method in [Method::GET, Method::POST, Method::DELETE] {
                let _ = find(&method, &path);
            }
        }
    }
}
