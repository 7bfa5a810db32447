//! Metrics, `/healthz` and `/readyz` on a TCP address.
//!
//! Whoever accepts OpenMetrics (Prometheus does) gets that, everybody else the older text form, so
//! that `curl … | promtool check metrics` works.
//!
//! A scrape takes one snapshot of the shards' plain counters and writes it out; nothing is counted
//! twice and nothing on the data path knows of metrics. What is unknown is absent, never 0.

mod families;

use crate::admin::Admin;
use crate::controller::Controller;
use crate::controller::status::{Depth, Snapshot};
use crate::http::{Answered, Asked, Places, serve};
use bytes::Bytes;
use families::Scrape;
use hyper::{Method, StatusCode};
use prometheus_client::registry::Registry;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpListener;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const OPENMETRICS_TYPE: &str = "application/openmetrics-text";
/// The text form that was there before OpenMetrics.
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Accepts for ever.
pub async fn listen(listener: TcpListener, admin: Rc<Admin>) {
    let places = Places::default();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let admin = admin.clone();
        serve(stream, &places, move |asked| {
            let admin = admin.clone();
            async move { answer(&admin, asked).await }
        });
    }
}

/// Answers one request.
pub async fn answer(admin: &Admin, asked: Asked) -> Answered {
    if !matches!(asked.path.as_str(), "/metrics" | "/healthz" | "/readyz") {
        return plain(StatusCode::NOT_FOUND, "here are /metrics, /healthz and /readyz\n");
    }
    if asked.method != Method::GET {
        let answered = plain(StatusCode::METHOD_NOT_ALLOWED, "GET\n");
        return Answered { allow: Some("GET"), ..answered };
    }
    match (asked.path.as_str(), admin.ready()) {
        ("/metrics", Some(controller)) => {
            let openmetrics = scrape(controller, admin).await;
            let (content_type, text) = match asked.accept.contains(OPENMETRICS_TYPE) {
                true => (OPENMETRICS, openmetrics),
                false => (CLASSIC, classic(&openmetrics)),
            };
            Answered { status: StatusCode::OK, content_type, body: text.into(), allow: None }
        }
        ("/metrics", None) | ("/readyz", None) => {
            plain(StatusCode::SERVICE_UNAVAILABLE, "starting\n")
        }
        ("/healthz", None) => plain(StatusCode::OK, "starting\n"),
        // Healthy: no shard is dead. Ready: what is declared is being looked after. A source that
        // is away makes us neither: restarting us would not bring it back.
        (_, Some(controller)) => {
            let statuses = controller.shared().shards.status(None).await;
            match statuses.iter().position(Option::is_none) {
                Some(shard) => {
                    let text = format!("shard {shard} does not answer\n");
                    plain(StatusCode::SERVICE_UNAVAILABLE, text)
                }
                None => plain(StatusCode::OK, "ok\n"),
            }
        }
        _ => plain(StatusCode::NOT_FOUND, "nothing here\n"),
    }
}

/// OpenMetrics in the older form: there a counter's family is called as its series are, units are
/// not said, and nothing marks the end.
fn classic(openmetrics: &str) -> String {
    let lines: Vec<&str> = openmetrics.lines().collect();
    let counters: HashSet<&str> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut out = String::with_capacity(openmetrics.len());
    for line in lines {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF" | "UNIT"), ..) => continue,
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                out.push_str(&format!("# {what} {name}_total {rest}"));
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

fn plain(status: StatusCode, text: impl Into<String>) -> Answered {
    let body = Bytes::from(text.into());
    Answered { status, content_type: TEXT, body, allow: None }
}

/// The text of one scrape.
pub async fn scrape(controller: &Controller, admin: &Admin) -> String {
    let statuses = controller.shared().shards.status(None).await;
    let node = Snapshot::new(&statuses, &admin.rates).node(controller, Depth::Partitions);
    let events = controller.event_counts();
    let mut registry = Registry::with_prefix("understudy");
    registry.register_collector(Box::new(Scrape::new(node, statuses, events)));
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

#[cfg(test)]
mod tests;
