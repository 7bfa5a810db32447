//! The executor on the real ring.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use smallvec::smallvec;

use crate::*;

fn ring<T: 'static>(root: impl Future<Output = T> + 'static) -> T {
    run(Config::small(), root).expect("a ring")
}

async fn pair() -> (Stream, Stream) {
    let any = Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
    let listener = Listener::bind(&any).expect("a free port");
    let Address::Tcp(address) = *listener.address() else { unreachable!("a TCP address") };
    let accepted = spawn(Share::Serve, async move { listener.accept().await });
    let ours = Stream::connect(address).await.expect("connects");
    (ours, accepted.await.expect("accepts"))
}

async fn text(text: &str) -> Gather {
    let mut lease = lease(text.len(), Class::Control).await;
    lease[..text.len()].copy_from_slice(text.as_bytes());
    smallvec![lease.freeze(text.len()).0]
}

#[test]
fn tasks_run_and_give_their_values() {
    let sum = ring(async {
        let tasks: Vec<Task<u32>> = (0..100)
            .map(|n| {
                spawn(Share::Replicate, async move {
                    yield_now().await;
                    n
                })
            })
            .collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await;
        }
        sum
    });
    assert_eq!(sum, 4950);
}

#[test]
fn a_dropped_task_stops() {
    struct Flag(Rc<Cell<bool>>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    ring(async {
        let dropped = Rc::new(Cell::new(false));
        let flag = Flag(Rc::clone(&dropped));
        let task = spawn(Share::Background, async move {
            let _flag = flag;
            sleep(Duration::from_secs(3600)).await;
        });
        yield_now().await;
        assert!(!dropped.get());
        drop(task);
        assert!(dropped.get());
    });
}

#[test]
fn a_direct_file_gives_back_what_was_written() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder");
    let path = folder.path().join("data");
    ring(async move {
        let file = File::open(&path, OpenOptions::READ_WRITE.direct()).await.expect("opens");
        file.allocate(0, 64 << 10).await.expect("space");
        let mut first = lease(8192, Class::Records).await;
        first.fill(7);
        let mut second = lease(4096, Class::Records).await;
        second.fill(9);
        let gather = smallvec![first.freeze(8192).0, second.freeze(4096).0];
        assert_eq!(file.write_at(4096, gather).await.expect("writes"), 12288);
        file.sync_data().await.expect("syncs");
        fs::sync_filesystem(path.parent().expect("a parent")).await.expect("syncs");
        let (read, bytes) = file.read_at(0, lease(16384, Class::Records).await).await;
        assert_eq!(read.expect("reads"), 16384);
        assert!(bytes[..4096].iter().all(|b| *b == 0));
        assert!(bytes[4096..12288].iter().all(|b| *b == 7));
        assert!(bytes[12288..].iter().all(|b| *b == 9));
        file.truncate(100).await.expect("cuts");
        assert_eq!(fs::size(&path).await.expect("a size"), 100);
        let (read, _) = file.read_at(4096, lease(4096, Class::Records).await).await;
        assert_eq!(read.expect("reads past the end"), 0);
    });
}

#[test]
fn a_receive_fills_two_leases_in_order() {
    ring(async {
        let (ours, theirs) = pair().await;
        theirs.send_all(text("one and two").await).await.expect("sends");
        let (first, _) = lease(4096, Class::Control).await.split(4);
        let second = lease(4096, Class::Control).await;
        let (received, into) = ours.receive([Some(first), Some(second)], false).await;
        assert_eq!(received.expect("receives"), 11);
        let [Some(first), Some(second)] = into else { panic!("both leases come back") };
        assert_eq!(&first[..], b"one ");
        assert_eq!(&second[..7], b"and two");
        drop(theirs);
        let (received, _) = ours.receive([Some(first), None], true).await;
        assert_eq!(received.expect("the end"), 0);
    });
}

#[test]
fn memory_of_a_dropped_receive_stays_taken_until_its_completion() {
    ring(async {
        let (ours, theirs) = pair().await;
        let before = memory().used;
        let lease = lease(4096, Class::Control).await;
        let receive = timeout(Duration::from_millis(5), ours.receive([Some(lease), None], false));
        assert_eq!(receive.await.err(), Some(Elapsed));
        while memory().used != before {
            yield_now().await; // the cancelled receive's own completion frees it
        }
        theirs.send_all(text("later").await).await.expect("sends");
        let (received, _) = ours.receive([try_lease(64, Class::Control), None], false).await;
        assert_eq!(received.expect("nothing was swallowed"), 5);
    });
}

#[test]
fn connecting_to_nobody_is_an_error() {
    ring(async {
        let any = Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = Listener::bind(&any).expect("a free port");
        let Address::Tcp(address) = *listener.address() else { unreachable!("a TCP address") };
        drop(listener);
        yield_now().await;
        let refused = loop {
            // The close goes through the ring: until it is done the port still accepts.
            match Stream::connect(address).await {
                Ok(_) => yield_now().await,
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn memory_is_handed_out_in_line() {
    ring(async {
        let mut held = Vec::new();
        while let Some(lease) = try_lease(4 << 20, Class::Records) {
            held.push(lease);
        }
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<_> = (0..3)
            .map(|n| {
                let order = Rc::clone(&order);
                spawn(Share::Replicate, async move {
                    let _lease = lease(4 << 20, Class::Records).await;
                    order.borrow_mut().push(n);
                })
            })
            .collect();
        yield_now().await;
        assert!(try_lease(4096, Class::Control).is_some(), "the reserve is there");
        held.pop();
        for task in tasks {
            task.await;
        }
        assert_eq!(*order.borrow(), [0, 1, 2]);
    });
}

#[test]
fn more_operations_than_slots_wait_their_turn() {
    let config = Config { operations_max: 2, ..Config::small() };
    run(config, async {
        let (ours, theirs) = pair().await;
        let senders: Vec<_> = (0..20)
            .map(|_| {
                let theirs = theirs.clone();
                spawn(Share::Serve, async move { theirs.send_all(text("x").await).await })
            })
            .collect();
        for sender in senders {
            sender.await.expect("sends");
        }
        let mut received = 0;
        while received < 20 {
            let (result, _) = ours.receive([try_lease(64, Class::Control), None], false).await;
            received += result.expect("receives");
        }
    })
    .expect("a ring");
}

#[test]
fn threads_wake_each_other_through_any_channel() {
    const MESSAGES: u64 = 2_000;
    const SHARDS: usize = 4;
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..SHARDS).map(|_| tokio::sync::mpsc::channel::<u64>(8)).unzip();
    let threads: Vec<_> = receivers
        .into_iter()
        .map(|mut mine| {
            let others = senders.clone();
            std::thread::spawn(move || {
                ring(async move {
                    let sending = spawn(Share::Replicate, async move {
                        for n in 0..MESSAGES {
                            for other in &others {
                                other.send(n).await.expect("they listen");
                            }
                        }
                    });
                    let mut sum = 0;
                    for _ in 0..MESSAGES * SHARDS as u64 {
                        sum += mine.recv().await.expect("they send");
                    }
                    sending.await;
                    sum
                })
            })
        })
        .collect();
    drop(senders);
    for thread in threads {
        assert_eq!(thread.join().expect("ends"), SHARDS as u64 * MESSAGES * (MESSAGES - 1) / 2);
    }
}

#[test]
fn stopping_ends_what_would_wait_for_ever() {
    ring(async {
        let (ours, theirs) = pair().await;
        spawn(Share::Serve, async move {
            let lease = lease(4096, Class::Control).await;
            let _ = ours.receive([Some(lease), None], true).await;
            unreachable!("nobody sends");
        })
        .detach();
        yield_now().await;
        drop(theirs.clone());
        std::mem::forget(theirs);
    });
}
