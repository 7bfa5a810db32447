//! The executor: every test that can runs on both drivers, through one body.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;

use smallvec::smallvec;

use crate::sim::{Faults, Simulation, for_seeds};
use crate::*;

mod cancelling;
mod files;
mod real;
mod sharing;
mod sockets;
mod stopping;
mod tasks;

const SEEDS: u64 = if cfg!(miri) { 1 } else { 30 };

/// Runs a body on the real ring, in a folder of its own on a file system that has direct I/O.
fn on_the_ring<F: Future<Output = ()> + 'static>(config: Config, body: impl Fn(PathBuf) -> F) {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder");
    run(config, body(folder.path().to_owned())).expect("a ring");
}

/// Runs a body in simulated worlds; whatever it leaves behind must be gone after the stop.
fn simulated<F: Future<Output = ()> + 'static>(config: Config, body: impl Fn(PathBuf) -> F) {
    for_seeds(0, SEEDS, |seed| {
        let mut sim = Simulation::new(seed, Faults::default());
        sim.disk(sim::Machine::FIRST, |disk| disk.make_dir("/data")).expect("a folder");
        let executor = sim.executor(config.clone());
        sim.run_on(executor, body("/data".into()));
        let left = sim.stop(executor);
        assert_eq!((left.memory.used, left.descriptors), (0, 0), "leaked ({sim:?})");
    });
}

/// One test on both drivers: `both!(name, config, body)`, the body a function of a folder.
macro_rules! both {
    ($name:ident, $config:expr, $body:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            #[cfg_attr(miri, ignore = "Miri has no io_uring")]
            fn on_the_ring() {
                crate::tests::on_the_ring($config, $body);
            }

            #[test]
            fn simulated() {
                crate::tests::simulated($config, $body);
            }
        }
    };
    ($name:ident, $body:expr) => {
        both!($name, crate::tests::small(), $body);
    };
}
use both;

fn small() -> Config {
    Config { arena_bytes: 4 << 20, lease_bytes_max: 256 << 10, ..Config::small() }
}

fn loopback() -> Address {
    Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
}

async fn pair() -> (Stream, Stream) {
    pair_at(loopback()).await
}

async fn pair_at(address: Address) -> (Stream, Stream) {
    let listener = Listener::bind(&address).expect("a free address");
    let address = listener.address().clone();
    let accepted = spawn(Share::Serve, async move { listener.accept().await });
    let ours = Stream::connect_to(address).await.expect("connects");
    (ours, accepted.await.expect("accepts"))
}

async fn text(text: &str) -> Gather {
    let mut lease = lease(text.len(), Class::Control).await;
    lease[..text.len()].copy_from_slice(text.as_bytes());
    smallvec![lease.freeze(text.len()).0]
}

/// Receives exactly so many bytes.
async fn receive(stream: &Stream, bytes: usize) -> Vec<u8> {
    let (into, _) = lease(bytes, Class::Control).await.split(bytes);
    let (received, into) = stream.receive([Some(into), None], true).await;
    let received = received.expect("receives");
    into[0].as_ref().expect("it comes back")[..received].to_vec()
}
