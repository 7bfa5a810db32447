//! `status` as a table: a line per link and topic, a row per partition. Unknown is `-`.

use crate::controller::status::{LinkView, NodeView, PartitionView, TopicView, Totals};
use crate::words::count;
use std::fmt::Write;
use std::path::Path;
use tuning::report::bytes;

const HEADS: [&str; 11] = [
    "TOPIC",
    "PART",
    "STATE",
    "SHARD",
    "SOURCE END",
    "RECEIVED",
    "WRITTEN",
    "FLUSHED",
    "LAG",
    "LAG TIME",
    "RATE",
];

/// The whole answer.
pub fn status(node: &NodeView, socket: &Path) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, node, socket);
    out
}

fn write(out: &mut String, node: &NodeView, socket: &Path) -> std::fmt::Result {
    writeln!(
        out,
        "node {} · understudy {} · {} · {}",
        node.node_id,
        node.version,
        count(node.shards.len(), "shard"),
        socket.display()
    )?;
    for shard in &node.shards {
        match (shard.memory_used_bytes, shard.memory_budget_bytes, shard.cpu_seconds) {
            (Some(used), Some(budget), Some(cpu)) => writeln!(
                out,
                "  shard {}: {}, memory {} of {}, {cpu:.1} s CPU",
                shard.shard,
                count(shard.partitions.unwrap_or(0), "partition"),
                bytes(used),
                bytes(budget)
            )?,
            _ => writeln!(out, "  shard {}: does not answer", shard.shard)?,
        }
    }
    for refused in &node.reload_refused {
        writeln!(out, "  reload refused: {refused}")?;
    }
    for link in &node.links {
        write_link(out, link, node.now_ms)?;
    }
    Ok(())
}

fn write_link(out: &mut String, link: &LinkView, now_ms: i64) -> std::fmt::Result {
    let age = age(now_ms - link.since_ms);
    write!(out, "\nlink {} · {} for {age}", link.name, link.state)?;
    let topics = count(link.topics_total, "topic");
    write!(out, " · {topics}, {}", count(link.partitions_total, "partition"))?;
    if let Some(cluster) = &link.cluster_id {
        write!(out, " · cluster {cluster}, {}", count(link.brokers, "broker"))?;
    }
    writeln!(out, " · {}", summary(&link.totals))?;
    if let Some(reason) = &link.reason {
        let code = link.code.as_deref().unwrap_or("-");
        write!(out, "  {reason} ({code})")?;
        match link.retry_at_ms {
            Some(at_ms) => writeln!(out, "; next try in {}", self::age((at_ms - now_ms).max(0)))?,
            None => writeln!(out)?,
        }
    }
    let topics = link.topics.as_deref().unwrap_or_default();
    for topic in topics {
        if let Some(reason) = &topic.reason {
            let code = topic.code.as_deref().unwrap_or("-");
            writeln!(out, "  topic {} · {}: {reason} ({code})", topic.name, topic.state)?;
        }
    }
    let rows: Vec<Vec<String>> = topics.iter().flat_map(|topic| rows(topic, now_ms)).collect();
    if rows.is_empty() {
        return Ok(());
    }
    write_rows(out, &rows)
}

fn write_rows(out: &mut String, rows: &[Vec<String>]) -> std::fmt::Result {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.max().unwrap_or(0).max(HEADS[column].len())
    };
    let widths: Vec<usize> = (0..HEADS.len()).map(width).collect();
    let heads: Vec<String> = HEADS.iter().map(|head| (*head).to_owned()).collect();
    for row in std::iter::once(&heads).chain(rows) {
        let mut line = String::from(" ");
        for (column, cell) in row.iter().enumerate() {
            match (column, widths.get(column)) {
                // Words to the left, numbers to the right, the reason as long as it is.
                (0 | 2, Some(width)) => write!(line, " {cell:<width$}")?,
                (_, Some(width)) => write!(line, " {cell:>width$}")?,
                (_, None) => write!(line, "  {cell}")?,
            }
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn rows(topic: &TopicView, now_ms: i64) -> Vec<Vec<String>> {
    let row = |partition: &PartitionView| {
        let mut cells = vec![
            topic.name.clone(),
            partition.partition.to_string(),
            partition.state.clone(),
            partition.shard.to_string(),
            or_dash(partition.source_end),
            or_dash(partition.received),
            or_dash(partition.written),
            or_dash(partition.flushed),
            or_dash(partition.lag_records),
            partition.lag_seconds.map_or("-".to_owned(), seconds),
            partition.rate_bytes_per_second.map_or("-".to_owned(), rate),
        ];
        // What holds for the whole topic is said once, above.
        let own = partition.reason.as_ref().filter(|reason| topic.reason.as_ref() != Some(*reason));
        if let Some(reason) = own {
            let since = partition.since_ms.map(|since| age(now_ms - since));
            let retry = partition.retry_at_ms.map(|at| age((at - now_ms).max(0)));
            let since = since.map_or(String::new(), |age| format!(", for {age}"));
            let retry = retry.map_or(String::new(), |age| format!(", next try in {age}"));
            cells.push(format!("{reason}{since}{retry}"));
        }
        cells
    };
    topic.partitions.iter().flatten().map(row).collect()
}

fn summary(totals: &Totals) -> String {
    let mut parts = vec![match (totals.lag_records, totals.lag_unknown_partitions) {
        (Some(lag), _) => format!("lag {lag} records"),
        (None, 0) => "nothing to lag behind".to_owned(),
        (None, _) => "lag unknown".to_owned(),
    }];
    parts.extend(totals.lag_seconds.map(seconds));
    parts.extend(totals.rate_bytes_per_second.map(rate));
    if totals.lag_records.is_some() && totals.lag_unknown_partitions > 0 {
        parts.push(format!("{} unknown", count(totals.lag_unknown_partitions, "partition")));
    }
    if totals.troubled_partitions > 0 {
        parts.push(format!("{} in trouble", count(totals.troubled_partitions, "partition")));
    }
    parts.join(", ")
}

fn or_dash(number: Option<i64>) -> String {
    number.map_or("-".to_owned(), |number| number.to_string())
}

fn rate(bytes_per_second: f64) -> String {
    format!("{}/s", bytes(bytes_per_second.max(0.0) as u64))
}

fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s => age((s * 1000.0) as i64),
    }
}

/// An age in its two largest units.
fn age(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, _, _) => format!("{d} d {h} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        assert_eq!(age(-5), "0 s");
        assert_eq!(age(59_999), "59 s");
        assert_eq!(age(61_000), "1 min 1 s");
        assert_eq!(age(3_600_000 * 25), "1 d 1 h");
    }

    #[test]
    fn unknown_is_a_dash_and_columns_line_up() {
        let rows = [vec!["orders".to_owned(), "0".to_owned(), "ACTIVE".to_owned()]];
        let mut out = String::new();
        write_rows(&mut out, &rows).expect("a String");
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines[0].starts_with("  TOPIC  PART STATE"), "{out}");
        assert!(lines[1].starts_with("  orders    0 ACTIVE"), "{out}");
        assert_eq!((or_dash(None), or_dash(Some(0))), ("-".to_owned(), "0".to_owned()));
    }
}
