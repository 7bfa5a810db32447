//! `kafka`: a real broker as source, and side by side those that could replicate it.
//!
//! Kafka and MirrorMaker 2 are fetched through Maven when they are not there yet: only this bench
//! does so, and only when it is asked for.

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
const COMPILING: &str = "of it compiling";
const PEAK: &str = "peak MiB";

/// How often those that only read are measured in each run: a second each is soon disturbed.
const READS: usize = 3;

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
    let load = format!(
        "{} MiB of log in {PARTITIONS} partitions, records of {VALUE_BYTES} B in batches of \
         {} KiB, uncompressed, at a broker of Kafka 4.3.1 whose data lies {place}; loopback; \
         all share the {} cores",
        peers.bytes() >> 20,
        BATCH_BYTES >> 10,
        core_affinity::get_core_ids().map_or(1, |cores| cores.len())
    );
    let mut report = bench.report(options, &load, "none: the peers are what it is held against")?;
    let mut rows = rows();
    progress.next("warming the source");
    let warming = peers.warm()?;
    for _ in 0..options.runs {
        for _ in 0..reads {
            progress.next("the consumer");
            push(&mut rows[CONSUMER], &peers.consumer()?, 0);
            progress.next("understudy");
            push(&mut rows[UNDERSTUDY], &peers.understudy()?, 0);
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
    report.rows = rows.into();
    report.notes.push(
        "rates and CPU are of the second half of the bytes, when JVMs have compiled most of their \
         code; the whole run counts from the first hundredth to the last byte, without the start \
         of a process; a source's CPU is what its broker spent meanwhile"
            .into(),
    );
    let of = |reader: usize| {
        let rounds = warming.iter().map(|round| format!("{:.2}", round[reader]));
        rounds.collect::<Vec<_>>().join(", ")
    };
    report.notes.push(format!(
        "before, the source was read by understudy and the consumer in turn until its JVM compiled \
         hardly any more: its CPU-s/GiB were {} for understudy and {} for the consumer",
        of(UNDERSTUDY),
        of(1)
    ));
    report.notes.push(
        "before each that writes, as much page cache as it needs was written and freed; copies of \
         understudy and the follower were compared with the source byte for byte, MirrorMaker's \
         and the consumer's records were counted; the idle follower runs beside the others"
            .into(),
    );
    report.busy[1] = load_average();
    Ok(report)
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
    row.push(SOURCE, per_gib(warm.source_cpu, warm));
    row.push(COMPILING, warm.source_compiling / (warm.bytes as f64 / GIB));
}

fn push_cpu(row: &mut Row, taken: &Taken, process: usize) {
    row.push(CPU, per_gib(taken.warm.cpu[process], &taken.warm));
    row.push(PEAK, taken.peak_resident_bytes[process] as f64 / f64::from(1 << 20));
    row.push(WHOLE, per_gib(taken.whole.cpu[process], &taken.whole));
}

fn per_gib(cpu: Cpu, span: &Span) -> f64 {
    cpu.total / (span.bytes as f64 / GIB)
}

fn judge(report: &mut Report, rows: &[Row; 5]) -> Outcome {
    let ours = rows[UNDERSTUDY].median(CPU)?;
    let mirror = (rows[MIRROR].median(CPU)? + rows[TARGET].median(CPU)?) / ours;
    let follower = rows[FOLLOWER].median(CPU)? / ours;
    let name = "× the bytes per CPU-second of MirrorMaker 2 with its target broker, warm";
    report.state(name, mirror, Some(Goal::AtLeast(50.0)));
    let name = "× the bytes per CPU-second of Kafka's follower, warm";
    report.state(name, follower, Some(Goal::AtLeast(12.0)));
    let source = rows[UNDERSTUDY].median(SOURCE)? / rows[CONSUMER].median(SOURCE)?;
    let name = "× the CPU per GiB at the source: understudy against the consumer";
    report.state(name, source, Some(Goal::AtMost(1.0)));
    report.panels = vec![
        Panel { unit: CPU.into(), line: None },
        Panel { unit: RATE.into(), line: None },
        Panel { unit: PEAK.into(), line: None },
    ];
    Ok(())
}
