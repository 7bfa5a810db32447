//! Simulated streams: order, resets, cuts, silence.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::*;

fn address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 9092))
}

async fn text(text: &str) -> Gather {
    let mut lease = lease(text.len(), Class::Control).await;
    lease[..text.len()].copy_from_slice(text.as_bytes());
    smallvec::smallvec![lease.freeze(text.len()).0]
}

/// Two machines, one that serves and one that calls.
struct Two {
    sim: Simulation,
    server: ExecutorId,
    client: ExecutorId,
}

fn two(seed: u64, faults: Faults) -> Two {
    let mut sim = Simulation::new(seed, faults);
    let server = sim.executor(tiny());
    let elsewhere = sim.machine();
    let client = sim.executor_on(elsewhere, tiny());
    Two { sim, server, client }
}

/// Accepts one connection and does this with it.
fn serve<T: 'static, F: Future<Output = T> + 'static>(
    two: &mut Two,
    then: impl FnOnce(Stream) -> F + 'static,
) -> Task<T> {
    let listener = two.sim.enter(two.server, || Listener::bind(&Address::Tcp(address())));
    let listener = listener.expect("a free address");
    two.sim.spawn_on(two.server, Share::Serve, async move {
        let stream = listener.accept().await.expect("accepts");
        then(stream).await
    })
}

async fn receive(stream: &Stream, bytes: usize, all: bool) -> io::Result<Vec<u8>> {
    let (into, _) = lease(bytes, Class::Control).await.split(bytes);
    let (received, into) = stream.receive([Some(into), None], all).await;
    let bytes = received?;
    Ok(into[0].as_ref().expect("it comes back")[..bytes].to_vec())
}

#[test]
fn a_stream_keeps_every_byte_in_order() {
    const BYTES: usize = if cfg!(miri) { 20_000 } else { 200_000 };
    for_seeds(0, SEEDS.min(30), |seed| {
        let mut faults = Faults::default();
        faults.network.window_bytes = 10_000;
        let mut two = two(seed, faults);
        let sent = |at: usize| (at * 7 + at / 256) as u8;
        let serving = serve(&mut two, move |stream| async move {
            let mut at = 0;
            while at < BYTES {
                let mut piece = lease(8192, Class::Records).await;
                let len = 8192.min(BYTES - at);
                (0..len).for_each(|n| piece[n] = sent(at + n));
                let sent = stream.send(smallvec::smallvec![piece.freeze(len).0]).await;
                at += sent.expect("sends");
            }
        });
        two.sim.run_on(two.client, async move {
            let stream = Stream::connect(address()).await.expect("connects");
            let mut at = 0;
            loop {
                let bytes = receive(&stream, 5000, at % 3 == 0).await.expect("receives");
                if bytes.is_empty() {
                    break;
                }
                assert!(bytes.iter().enumerate().all(|(n, byte)| *byte == sent(at + n)));
                at += bytes.len();
            }
            assert_eq!(at, BYTES);
        });
        drop(serving);
    });
}

#[test]
fn unread_bytes_at_a_close_are_a_reset() {
    for_seeds(0, SEEDS, |seed| {
        let mut two = two(seed, Faults::none());
        let serving = serve(&mut two, |stream| async move {
            sleep(Duration::from_millis(10)).await;
            drop(stream); // with the client's bytes in it
        });
        two.sim.run_on(two.client, async {
            let stream = Stream::connect(address()).await.expect("connects");
            stream.send_all(text("nobody reads this").await).await.expect("sends");
            let reset = receive(&stream, 10, false).await.expect_err("a reset");
            assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(receive(&stream, 10, false).await.expect("the end"), []);
            let broken = stream.send(text("more").await).await.expect_err("broken");
            assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe);
        });
        drop(serving);
    });
}

#[test]
fn a_machine_without_power_says_nothing_until_it_is_back() {
    for_seeds(0, SEEDS, |seed| {
        let mut two = two(seed, Faults::none());
        let serving = serve(&mut two, |stream| async move {
            receive(&stream, 10, false).await.expect("receives");
            std::future::pending::<()>().await;
        });
        let connected = Rc::new(Cell::new(false));
        let flag = Rc::clone(&connected);
        let client = two.sim.spawn_on(two.client, Share::Replicate, async move {
            let stream = Stream::connect(address()).await.expect("connects");
            stream.send_all(text("hello").await).await.expect("sends");
            sleep(Duration::from_millis(100)).await;
            flag.set(true);
            let silence = timeout(Duration::from_secs(3600), receive(&stream, 10, false)).await;
            assert_eq!(silence.err(), Some(Elapsed), "half open: no word");
            stream.send_all(text("are you there?").await).await.expect("into the void");
            receive(&stream, 10, false).await.expect_err("now a reset").kind()
        });
        two.sim.run_until(|_| connected.get());
        two.sim.crash(two.server);
        drop(serving);
        two.sim.run_for(Duration::from_secs(4000));
        assert!(!client.is_finished());
        let unheard = two.sim.run_on(two.client, async {
            timeout(Duration::from_secs(60), Stream::connect(address())).await.err()
        });
        assert_eq!(unheard, Some(Elapsed));
        two.sim.executor(tiny());
        two.sim.run_until(|_| client.is_finished());
        assert_eq!(client.take(), Some(io::ErrorKind::ConnectionReset));
        let refused = two.sim.run_on(two.client, Stream::connect(address()));
        assert_eq!(refused.expect_err("nobody listens").kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_killed_peer_closes_its_streams() {
    for_seeds(0, SEEDS, |seed| {
        let mut two = two(seed, Faults::none());
        let serving = serve(&mut two, |stream| async move {
            stream.send_all(text("last words").await).await.expect("sends");
            std::future::pending::<()>().await;
        });
        let stream = two.sim.run_on(two.client, async {
            let stream = Stream::connect(address()).await.expect("connects");
            assert_eq!(receive(&stream, 10, true).await.expect("receives"), b"last words");
            stream
        });
        two.sim.kill(two.server);
        drop(serving);
        two.sim.run_on(two.client, async move {
            assert_eq!(receive(&stream, 10, true).await.expect("the end"), []);
        });
        assert_eq!(two.sim.open_descriptors(two.server), 0);
    });
}

#[test]
fn machines_cut_apart_hear_each_other_later() {
    for_seeds(0, SEEDS, |seed| {
        let mut two = two(seed, Faults::none());
        let elsewhere = Machine(1);
        let serving = serve(&mut two, |stream| async move {
            stream.send_all(text("before").await).await.expect("sends");
            sleep(Duration::from_secs(10)).await;
            stream.send_all(text("after").await).await.expect("sends");
            sleep(Duration::from_secs(100)).await;
        });
        let stream = two.sim.run_on(two.client, Stream::connect(address())).expect("connects");
        two.sim.cut(Machine::FIRST, elsewhere);
        let client = two.sim.spawn_on(two.client, Share::Replicate, async move {
            (receive(&stream, 11, true).await.expect("receives"), now())
        });
        two.sim.run_for(Duration::from_secs(60));
        assert!(!client.is_finished());
        let mended = two.sim.now();
        two.sim.mend(Machine::FIRST, elsewhere);
        two.sim.run_until(|_| client.is_finished());
        let (bytes, at) = client.take().expect("finished");
        assert_eq!(bytes, b"beforeafter");
        assert!(at > mended);
        drop(serving);
    });
}

#[test]
fn connections_break_at_any_moment_and_nothing_leaks() {
    const ROUNDS: u32 = if cfg!(miri) { 3 } else { 20 };
    let (mut resets, mut silences) = (0, 0);
    for_seeds(0, SEEDS, |seed| {
        let mut two = two(seed, Faults::harsh());
        two.sim.disk(Machine::FIRST, |_| ());
        let listener = two.sim.enter(two.server, || Listener::bind(&Address::Tcp(address())));
        let listener = listener.expect("a free address");
        two.sim
            .spawn_on(two.server, Share::Serve, async move {
                loop {
                    let Ok(stream) = listener.accept().await else { continue };
                    spawn(Share::Serve, async move {
                        while let Ok(bytes) = receive(&stream, 100, false).await
                            && !bytes.is_empty()
                            && stream.send_all(text("pong").await).await.is_ok()
                        {
                        }
                    })
                    .detach();
                }
            })
            .detach();
        let client = two.client;
        let (reset, silent) = two.sim.run_on(client, async {
            let (mut reset, mut silent) = (0, 0);
            for _ in 0..ROUNDS {
                let Ok(stream) = Stream::connect(address()).await else { continue };
                for _ in 0..ROUNDS {
                    if stream.send_all(text("ping").await).await.is_err() {
                        reset += 1;
                        break;
                    }
                    match timeout(Duration::from_secs(5), receive(&stream, 4, true)).await {
                        Ok(Ok(bytes)) if bytes == b"pong" => {}
                        Ok(Ok(bytes)) => assert!(b"pong".starts_with(&bytes)),
                        Ok(Err(_)) => reset += 1,
                        Err(Elapsed) => {
                            silent += 1;
                            break;
                        }
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            }
            (reset, silent)
        });
        resets += reset;
        silences += silent;
        two.sim.run_for(Duration::from_secs(1));
        assert_eq!(two.sim.open_descriptors(client), 0);
    });
    assert!((resets > 0 && silences > 0) || SEEDS < 10, "{resets} resets, {silences} silences");
}

#[test]
fn addresses_are_taken_once() {
    let mut sim = Simulation::new(1, Faults::none());
    let shard = sim.executor(tiny());
    let other_machine = sim.machine();
    let other = sim.executor_on(other_machine, tiny());
    sim.enter(shard, || {
        let first = Listener::bind(&Address::Tcp(address())).expect("free");
        let taken = Listener::bind(&Address::Tcp(address())).expect_err("taken");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        Listener::bind(&Address::Tcp(address())).expect("free again");
        let unix = Address::Unix("/socket".into());
        let held = Listener::bind(&unix).expect("free");
        assert!(Listener::bind(&unix).is_err());
        drop(held);
    });
    sim.enter(other, || Listener::bind(&Address::Tcp(address())).expect("free there, too"));
}
