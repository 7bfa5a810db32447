//! How fast the source serves, and what that costs it: a reader that only counts.
//!
//! `cargo run --release -p source --example line_rate [KEY=VALUE …]`, keys as in `Run` below. The
//! source is a child process on core 1, the reader is on core 0. For each run it prints GiB/s and
//! the CPU seconds per GiB of the source and of the reader, user and system apart. `bare=true`
//! puts a process in the source's place that only writes memory to the socket, 1 MiB at a time:
//! what no source can beat by plain writes.

use source::{ChildConfig, TopicSpec, parse_addresses, run_child};
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const TOPIC: &str = "load";
const CLOCK_TICKS_PER_SECOND: f64 = 100.0;

/// One run's geometry.
#[derive(Clone, Copy, Debug)]
struct Run {
    partitions: i32,
    batch_bytes: usize,
    batch_records: usize,
    ring_bytes: usize,
    /// Limit per partition and per answer.
    partition_bytes: i32,
    answer_bytes: i32,
    connections: usize,
    gib: u64,
    bare: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "embedded-source") {
        return Ok(run_child(&arguments[1])?);
    }
    if arguments.first().is_some_and(|first| first == "bare-sender") {
        return send_memory();
    }
    let mut run = Run {
        partitions: 16,
        batch_bytes: 64 << 10,
        batch_records: 64,
        ring_bytes: 4 << 20,
        partition_bytes: 1 << 20,
        answer_bytes: 1 << 20,
        connections: 1,
        gib: 16,
        bare: false,
    };
    for argument in &arguments {
        let (key, value) = argument.split_once('=').ok_or("KEY=VALUE is expected")?;
        match key {
            "partitions" => run.partitions = value.parse()?,
            "batch_bytes" => run.batch_bytes = value.parse()?,
            "batch_records" => run.batch_records = value.parse()?,
            "ring_bytes" => run.ring_bytes = value.parse()?,
            "partition_bytes" => run.partition_bytes = value.parse()?,
            "answer_bytes" => run.answer_bytes = value.parse()?,
            "connections" => run.connections = value.parse()?,
            "gib" => run.gib = value.parse()?,
            "bare" => run.bare = value.parse()?,
            _ => return Err(format!("unknown key {key}").into()),
        }
    }
    measure(&run)
}

fn measure(run: &Run) -> Result<(), Box<dyn Error>> {
    let mut topic = TopicSpec::new(TOPIC, run.partitions, u64::MAX >> 24);
    topic.content = source::Content::Generated {
        seed: 1,
        batch_bytes: run.batch_bytes,
        batch_records: run.batch_records,
        ring_bytes: run.ring_bytes,
    };
    let config = ChildConfig { core: Some(1), topics: vec![topic], ..ChildConfig::default() };
    let mut child = Command::new(std::env::current_exe()?)
        .args([if run.bare { "bare-sender" } else { "embedded-source" }, &config.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let address = parse_addresses(&line).ok_or("no address")?[0];
    core_affinity::set_for_current(core_affinity::CoreId { id: 0 });

    let (source_before, own_before, began) =
        (cpu(child.id())?, cpu(std::process::id())?, Instant::now());
    let bytes = if run.bare { swallow(run, address)? } else { pull(run, address)? };
    let seconds = began.elapsed().as_secs_f64();
    let (source_after, own_after) = (cpu(child.id())?, cpu(std::process::id())?);
    let gib = bytes as f64 / f64::from(1u32 << 30);
    let per_gib = |after: (f64, f64), before: (f64, f64)| {
        let (user, system) = ((after.0 - before.0) / gib, (after.1 - before.1) / gib);
        format!("{:.3} ({user:.3} user, {system:.3} system)", user + system)
    };
    println!("{run:?}");
    println!("  {:.2} GiB/s over {gib:.1} GiB", gib / seconds);
    println!("  source CPU-s/GiB {}", per_gib(source_after, source_before));
    println!("  reader CPU-s/GiB {}", per_gib(own_after, own_before));
    stop(&mut child)
}

fn stop(child: &mut Child) -> Result<(), Box<dyn Error>> {
    drop(child.stdin.take());
    child.wait()?;
    Ok(())
}

/// Writes the same 4 MiB again and again to the first connection, until it ends.
fn send_memory() -> Result<(), Box<dyn Error>> {
    core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let (mut stream, _) = listener.accept()?;
    let memory = vec![0x5a; 4 << 20];
    while memory.chunks(1 << 20).all(|chunk| stream.write_all(chunk).is_ok()) {}
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn swallow(run: &Run, address: SocketAddr) -> Result<u64, Box<dyn Error>> {
    let mut stream = TcpStream::connect(address)?;
    let (mut buffer, mut total) = (vec![0; 1 << 20], 0);
    while total < run.gib << 30 {
        total += stream.read(&mut buffer)? as u64;
    }
    Ok(total)
}

/// One connection's place: partitions are fetched in turn, so that each moves on alike.
struct Puller {
    stream: TcpStream,
    offsets: Vec<(i32, i64)>,
    turn: usize,
}

/// Fetches until enough has come, one answer ahead on every connection.
fn pull(run: &Run, address: SocketAddr) -> Result<u64, Box<dyn Error>> {
    let mut pullers = Vec::new();
    for index in 0..run.connections {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let own = (0..run.partitions).filter(|p| *p as usize % run.connections == index);
        pullers.push(Puller { stream, offsets: own.map(|p| (p, 0)).collect(), turn: 0 });
    }
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    for puller in &mut pullers {
        puller.request(run)?;
    }
    while total < run.gib << 30 {
        for puller in &mut pullers {
            total += puller.receive(run, &mut buffer)?;
            puller.request(run)?;
        }
    }
    Ok(total)
}

impl Puller {
    /// Fetch version 12 without a session, the partitions in turn.
    fn request(&mut self, run: &Run) -> Result<(), Box<dyn Error>> {
        let mut body = vec![0, 1, 0, 12, 0, 0, 0, 1, 0xff, 0xff, 0];
        body.extend((-1i32).to_be_bytes());
        body.extend(100i32.to_be_bytes());
        body.extend(1i32.to_be_bytes());
        body.extend(run.answer_bytes.to_be_bytes());
        body.push(0);
        body.extend(0i32.to_be_bytes());
        body.extend((-1i32).to_be_bytes());
        body.extend([2, TOPIC.len() as u8 + 1]);
        body.extend(TOPIC.as_bytes());
        body.push(self.offsets.len() as u8 + 1);
        for step in 0..self.offsets.len() {
            let (partition, offset) = self.offsets[(self.turn + step) % self.offsets.len()];
            body.extend(partition.to_be_bytes());
            body.extend((-1i32).to_be_bytes());
            body.extend(offset.to_be_bytes());
            body.extend((-1i32).to_be_bytes());
            body.extend((-1i64).to_be_bytes());
            body.extend(run.partition_bytes.to_be_bytes());
            body.push(0);
        }
        body.extend([0, 1, 1, 0]);
        let mut frame = (body.len() as u32).to_be_bytes().to_vec();
        frame.extend(body);
        self.stream.write_all(&frame)?;
        Ok(())
    }

    /// Reads an answer and counts, without looking into it: limits and batch sizes tell what it
    /// holds.
    fn receive(&mut self, run: &Run, buffer: &mut [u8]) -> Result<u64, Box<dyn Error>> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let frame = u64::from(u32::from_be_bytes(length));
        let mut left = frame;
        while left > 0 {
            let most = buffer.len().min(left as usize);
            let read = self.stream.read(&mut buffer[..most])?;
            if read == 0 {
                return Err("the source went away".into());
            }
            left -= read as u64;
        }
        let count = self.offsets.len();
        let mut records = run.answer_bytes as usize;
        let mut served = 0;
        for step in 0..count {
            let bytes = records.min(run.partition_bytes as usize) / run.batch_bytes;
            self.offsets[(self.turn + step) % count].1 += (bytes * run.batch_records) as i64;
            records -= records.min(run.partition_bytes as usize);
            served += usize::from(bytes > 0);
        }
        self.turn = (self.turn + served) % count;
        Ok(frame)
    }
}

/// User and system seconds of a process.
fn cpu(process: u32) -> Result<(f64, f64), Box<dyn Error>> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<f64>();
    Ok((ticks(11)? / CLOCK_TICKS_PER_SECOND, ticks(12)? / CLOCK_TICKS_PER_SECOND))
}
