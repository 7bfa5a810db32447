//! `kafka`: a real broker as source, and side by side those that could replicate it.
//!
//! Kafka and MirrorMaker 2 are fetched through Maven when they are not there yet: only this bench
//! does so, and only when it is asked for.

use std::fs;

use super::Bench;
use crate::Outcome;
use crate::cli::Options;
use crate::conditions::{FileState, load_average};
use crate::peers::{BATCH_BYTES, PARTITIONS, Peers, Span, Taken, VALUE_BYTES};
use crate::process::Cpu;
use crate::progress::Progress;
use crate::replica::{CPU, GIB, RATE};
use crate::report::{Goal, Panel, Report, Row};

pub const BENCH: Bench = Bench {
    name: "kafka",
    line: "a real Kafka as source: Understudy, MirrorMaker 2, Kafka's follower, a consumer",
    runs: 1,
    needs_product: true,
    run,
};

const WHOLE: &str = "CPU-s/GiB, whole run";
const SOURCE: &str = "CPU-s/GiB of its source";
const SERVING: &str = "of it serving";
const COMPILING: &str = "of it compiling";
const BOTH: &str = "CPU-s/GiB with its source";
const PEAK: &str = "peak MiB";

/// How often those that only read are measured in each run: a second each is soon disturbed.
const READS: usize = 9;

/// Who is measured, in turn.
const UNDERSTUDY: usize = 0;
const FOLLOWER: usize = 1;
const MIRROR: usize = 2;
const TARGET: usize = 3;
const CONSUMER: usize = 4;

fn run(bench: &Bench, options: &Options) -> Outcome<Report> {
    let bytes = options.unless_quick(2 << 30, 256 << 20);
    let reads = options.unless_quick(READS, 1);
    let mut progress = Progress::new(2 + (2 + 2 * reads) * options.runs);
    progress.next("filling a Kafka 4.3.1");
    let peers = Peers::start(options, bytes)?;
    let place = if peers.in_memory() { "in memory (tmpfs)" } else { "on the disk measured" };
    let congestion_control = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")?;
    let congestion_control = congestion_control.trim_end();
    let load = format!(
        "{} MiB of log in {PARTITIONS} partitions, records of {VALUE_BYTES} B in batches of \
         {} KiB, uncompressed, at a broker of Kafka 4.3.1 whose data lies {place}; loopback with \
         {congestion_control}; all share the {} cores",
        peers.bytes() >> 20,
        BATCH_BYTES >> 10,
        core_affinity::get_core_ids().map_or(1, |cores| cores.len())
    );
    let mut report = bench.report(options, &load, "none: the peers are what it is held against")?;
    let mut rows = rows();
    progress.next("warming the source");
    let warming = peers.warm()?;
    for _ in 0..options.runs {
        for round in 0..reads {
            // Who comes second finds what the first left: caches, memory, a collector's debts.
            let order = [[CONSUMER, UNDERSTUDY], [UNDERSTUDY, CONSUMER]][round % 2];
            for reader in order {
                let is_product = reader == UNDERSTUDY;
                progress.next(if is_product { "understudy" } else { "the consumer" });
                let taken = if is_product { peers.understudy()? } else { peers.consumer()? };
                push(&mut rows[reader], &taken, 0);
            }
        }
        progress.next("the follower");
        push(&mut rows[FOLLOWER], &peers.follower()?, 0);
        progress.next("MirrorMaker 2");
        let taken = peers.mirror_maker()?;
        push(&mut rows[MIRROR], &taken, 0);
        push_cpu(&mut rows[TARGET], &taken, 1);
    }
    progress.end();
    judge(&mut report, &rows)?;
    report.notes = notes(&rows, &warming)?;
    report.rows = rows.into();
    report.busy[1] = load_average();
    Ok(report)
}

/// What a reader must know.
fn notes(rows: &[Row; 5], warming: &[[f64; 2]]) -> Outcome<Vec<String>> {
    let of = |reader: usize| {
        let rounds = warming.iter().map(|round| format!("{:.2}", round[reader]));
        rounds.collect::<Vec<_>>().join(", ")
    };
    Ok(vec![
        "rates and CPU are of the second half of the bytes, when JVMs have compiled most of their \
         code; the whole run counts from the first hundredth to the last byte, without the start \
         of a process; a source's CPU is what its broker spent meanwhile, and of it serving what \
         its network threads and request handlers did"
            .into(),
        format!(
            "before, the source answered requests for a batch each until all was read, and was \
             then read by understudy and the consumer in turn until its JVM compiled hardly any \
             more: its CPU-s/GiB were {} for understudy and {} for the consumer",
            of(0),
            of(1)
        ),
        format!(
            "round by round the source spent {} × for understudy what it spent for the consumer",
            round_by_round(rows)?
        ),
        "over loopback whoever sends does the receiver's protocol work, too, unless the receiver \
         is at the socket in that moment: what a source spends here depends on how its reader \
         waits, so both together stand beside it"
            .into(),
        "before each that writes, as much page cache as it needs was written and freed; copies of \
         understudy and the follower were compared with the source byte for byte, MirrorMaker's \
         and the consumer's records were counted; the idle follower runs beside the others"
            .into(),
    ])
}

fn rows() -> [Row; 5] {
    let row = |name: &str, files| Row::new(name, files);
    let written = FileState::Fresh;
    [
        row("understudy", written).doing(
            "same offsets and bytes, each CRC checked, O_DIRECT, one shard on the first core",
        ),
        row("kafka follower", written).doing(
            "a second broker of the cluster, 4 fetchers: same offsets and bytes, page cache",
        ),
        row("mirror maker 2", written)
            .doing("consumes and produces anew, 2 tasks: other offsets, repacked batches"),
        row("its target broker", written).doing("takes what MirrorMaker 2 produces: page cache"),
        row("consumer", FileState::None).doing("kafka-consumer-perf-test: reads, writes nothing"),
    ]
}

fn push(row: &mut Row, taken: &Taken, process: usize) {
    let warm = &taken.warm;
    row.push(RATE, warm.bytes as f64 / GIB / warm.seconds);
    push_cpu(row, taken, process);
    let gib = warm.bytes as f64 / GIB;
    row.push(SOURCE, warm.source.total / gib);
    row.push(SERVING, warm.source.serving / gib);
    row.push(COMPILING, warm.source.compiling / gib);
    row.push(BOTH, (warm.source.total + warm.cpu[process].total) / gib);
}

fn push_cpu(row: &mut Row, taken: &Taken, process: usize) {
    row.push(CPU, per_gib(taken.warm.cpu[process], &taken.warm));
    row.push(PEAK, taken.peak_resident_bytes[process] as f64 / f64::from(1 << 20));
    row.push(WHOLE, per_gib(taken.whole.cpu[process], &taken.whole));
}

fn per_gib(cpu: Cpu, span: &Span) -> f64 {
    cpu.total / (span.bytes as f64 / GIB)
}

/// What the source spent for the product over what it spent for the consumer just before.
fn round_by_round(rows: &[Row; 5]) -> Outcome<String> {
    let [ours, theirs] = [UNDERSTUDY, CONSUMER].map(|row| rows[row].sample(SOURCE));
    let (Some(ours), Some(theirs)) = (ours, theirs) else {
        return Err("the source was not measured".into());
    };
    let ratios = ours.0.iter().zip(&theirs.0).map(|(ours, theirs)| format!("{:.2}", ours / theirs));
    Ok(ratios.collect::<Vec<_>>().join(", "))
}

fn judge(report: &mut Report, rows: &[Row; 5]) -> Outcome {
    let ours = rows[UNDERSTUDY].median(CPU)?;
    let mirror = (rows[MIRROR].median(CPU)? + rows[TARGET].median(CPU)?) / ours;
    let follower = rows[FOLLOWER].median(CPU)? / ours;
    let name = "× the bytes per CPU-second of MirrorMaker 2 with its target broker, warm";
    report.state(name, mirror, Some(Goal::AtLeast(50.0)));
    let name = "× the bytes per CPU-second of Kafka's follower, warm";
    report.state(name, follower, Some(Goal::AtLeast(12.0)));
    let to_consumer = |unit: &str| -> Outcome<f64> {
        Ok(rows[UNDERSTUDY].median(unit)? / rows[CONSUMER].median(unit)?)
    };
    let name = "× the CPU per GiB at the source: understudy against the consumer";
    report.state(name, to_consumer(SOURCE)?, Some(Goal::AtMost(1.0)));
    let name = "× the same, threads that serve requests alone";
    report.state(name, to_consumer(SERVING)?, None);
    let name = "× the same, source and reader together";
    report.state(name, to_consumer(BOTH)?, None);
    report.panels = vec![
        Panel { unit: CPU.into(), line: None },
        Panel { unit: RATE.into(), line: None },
        Panel { unit: PEAK.into(), line: None },
    ];
    Ok(())
}
