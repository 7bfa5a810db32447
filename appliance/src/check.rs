//! `understudy check`: looks at the host and tries every source, and changes nothing.

use crate::config::{Config, LinkConfig};
use crate::host;
use crate::kafka::Kafka;
use crate::words::count;
use net::Api;
use net::control::{ControlClient, Operation, Topics};
use serde::Serialize;
use std::fmt::Write;
use tuning::{Finding, Severity};

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether the file would run here as it is.
    pub good: bool,
    /// The host.
    pub host: Vec<Finding>,
    /// Each source.
    pub links: Vec<LinkReport>,
}

/// One source.
#[derive(Debug, Default, Serialize)]
pub struct LinkReport {
    /// The link.
    pub link: String,
    /// What stands in the way; empty = nothing.
    pub problems: Vec<String>,
    /// What is worth knowing.
    pub notes: Vec<String>,
    /// Who answered.
    pub server: Option<String>,
    /// The cluster's id.
    pub cluster_id: Option<String>,
    /// Its brokers.
    pub brokers: usize,
    /// Topics we may describe.
    pub topics_seen: usize,
    /// Of those, the ones the filters cover.
    pub topics_covered: usize,
    /// Their partitions.
    pub partitions_covered: usize,
    /// The version agreed on for each API.
    pub versions: Vec<(String, i16)>,
}

/// Looks at everything.
pub async fn check(config: &Config) -> Report {
    let host = match host::look(&config.shards, &config.node.data_dirs, 0) {
        Ok(host) => host.findings,
        Err(error) => vec![Finding {
            check: "plan",
            severity: Severity::Error,
            what: error.to_string(),
            measured: String::new(),
            change: "[shards] in the configuration".to_owned(),
        }],
    };
    let kafka = Kafka { client_id: format!("understudy-{}", config.node.id) };
    let mut links = Vec::new();
    for link in &config.links {
        links.push(check_link(link, kafka.client(link)).await);
    }
    let host_good = host.iter().all(|finding| finding.severity < Severity::Error);
    let good = host_good && links.iter().all(|link| link.problems.is_empty());
    Report { good, host, links }
}

async fn check_link(link: &LinkConfig, mut client: ControlClient) -> LinkReport {
    let mut report = LinkReport { link: link.name.clone(), ..LinkReport::default() };
    let metadata = match client.metadata(Topics::All, true).await {
        Ok(metadata) => metadata,
        Err(error) => {
            report.problems.push(error.to_string());
            return report;
        }
    };
    report.server = client.peer().map(str::to_owned);
    if let Some(versions) = client.versions() {
        for api in Api::ALL {
            match versions.newest(api) {
                Some(version) => report.versions.push((api.to_string(), version)),
                None => report.problems.push(format!(
                    "the source and we have no version of {api} in common; it offers {:?}",
                    versions.offered(api)
                )),
            }
        }
    }
    report.cluster_id = metadata.cluster_id.clone();
    report.brokers = metadata.brokers.len();
    report.topics_seen = metadata.topics.len();
    if let Some(expected) = &link.cluster_id
        && Some(expected) != metadata.cluster_id.as_ref()
    {
        let found = metadata.cluster_id.as_deref().unwrap_or("none");
        report.problems.push(format!("link.cluster_id is {expected}, the source's id is {found}"));
    }
    let covered = metadata.topics.iter().filter(|topic| link.topics.covers(&topic.name));
    let mut unreadable = Vec::new();
    for topic in covered {
        report.topics_covered += 1;
        report.partitions_covered += topic.partitions.len();
        if topic.rights.may(Operation::Read) == Some(false) {
            unreadable.push(topic.name.as_str());
        }
    }
    if !unreadable.is_empty() {
        let shown = unreadable.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        report.problems.push(format!(
            "we may not read {} of the topics (first: {shown}): grant Read on them",
            unreadable.len()
        ));
    }
    if report.topics_covered == 0 {
        report.notes.push("no topic matches the filters now".to_owned());
    }
    unresolved(&metadata.brokers, &mut report).await;
    report
}

/// A broker's advertised name must resolve here, too: the classic way for a first try to fail.
async fn unresolved(brokers: &[net::control::Broker], report: &mut LinkReport) {
    for broker in brokers {
        let address = (broker.host.as_str(), broker.port);
        let found =
            tokio::net::lookup_host(address).await.is_ok_and(|mut all| all.next().is_some());
        if !found {
            report.problems.push(format!(
                "broker {} calls itself {}, which does not resolve here: correct the name service \
                 or the broker's advertised.listeners",
                broker.id,
                broker.server()
            ));
        }
    }
}

/// The report for people.
pub fn text(report: &Report) -> String {
    let mut out = String::from("the file is valid\n\nHost\n");
    // Writing to a String cannot fail.
    let _ = write(&mut out, report);
    out
}

fn write(out: &mut String, report: &Report) -> std::fmt::Result {
    for finding in &report.host {
        let mark = match finding.severity {
            Severity::Error => "ERROR",
            Severity::Warning => "warn ",
            Severity::Info => "ok   ",
        };
        writeln!(out, "  {mark} {} [{}]", finding.what, finding.measured)?;
        if !finding.change.is_empty() {
            writeln!(out, "        change: {}", finding.change)?;
        }
    }
    for link in &report.links {
        writeln!(out, "\nLink {}", link.link)?;
        if let Some(server) = &link.server {
            let id = link.cluster_id.as_deref().unwrap_or("without an id");
            writeln!(
                out,
                "  ok    {server} answers: cluster {id}, {}",
                count(link.brokers, "broker")
            )?;
            let versions: Vec<String> =
                link.versions.iter().map(|(api, version)| format!("{api} {version}")).collect();
            writeln!(out, "  ok    versions: {}", versions.join(", "))?;
            writeln!(
                out,
                "  ok    {} of {} match the filters, {}",
                link.topics_covered,
                count(link.topics_seen, "topic"),
                count(link.partitions_covered, "partition")
            )?;
        }
        for problem in &link.problems {
            writeln!(out, "  ERROR {problem}")?;
        }
        for note in &link.notes {
            writeln!(out, "  note  {note}")?;
        }
    }
    let verdict = if report.good { "It would run." } else { "It would not run as it is." };
    writeln!(out, "\n{verdict}")
}
