//! What only the real ring has: threads, the kernel's own limits, panics.
#![cfg(not(miri))]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::driver::Bell;

fn ring<T: 'static>(root: impl Future<Output = T> + 'static) -> T {
    run(small(), root).expect("a ring")
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
                    (sum, stats().driver.messages)
                })
            })
        })
        .collect();
    drop(senders);
    let mut messages = 0;
    for thread in threads {
        let (sum, sent) = thread.join().expect("ends");
        assert_eq!(sum, SHARDS as u64 * MESSAGES * (MESSAGES - 1) / 2);
        messages += sent;
    }
    assert!(messages > 0, "rings wake each other by messages");
}

#[test]
fn a_wake_is_not_lost_when_the_waker_ends_at_once() {
    for _ in 0..50 {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let waiting = std::thread::spawn(move || ring(receiver));
        std::thread::spawn(move || ring(async move { sender.send(5) })).join().expect("ends").ok();
        assert_eq!(waiting.join().expect("ends"), Ok(5));
    }
}

#[test]
fn a_wake_is_not_lost_when_the_waker_panics() {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let waiting = std::thread::spawn(move || ring(receiver));
    let panicking = std::thread::spawn(move || {
        ring(async move {
            let (ours, theirs) = pair().await;
            // In flight at the panic: the ring and all it holds is leaked.
            spawn(Share::Serve, async move {
                receive(&ours, 4096).await;
            })
            .detach();
            sleep(Duration::from_millis(20)).await;
            std::mem::forget(theirs);
            sender.send(5).expect("it listens");
            panic!("on purpose");
        })
    });
    panicking.join().expect_err("panics");
    assert_eq!(waiting.join().expect("ends"), Ok(5));
}

#[test]
fn a_refused_message_rings_the_bell() {
    struct NoRing {
        file: std::fs::File,
        rings: AtomicU64,
    }
    impl Bell for NoRing {
        fn ring(&self) {
            self.rings.fetch_add(1, Ordering::SeqCst);
        }
        fn ring_descriptor(&self) -> Option<RawFd> {
            Some(self.file.as_raw_fd())
        }
    }
    let file = std::fs::File::open("/dev/null").expect("a file that is no ring");
    let bell = Arc::new(NoRing { file, rings: AtomicU64::new(0) });
    let theirs: Arc<dyn Bell> = bell.clone();
    ring(async move {
        assert!(executor::with_current(|executor| executor.wake_other(&theirs)));
        while bell.rings.load(Ordering::SeqCst) == 0 {
            yield_now().await;
        }
        assert_eq!(stats().driver.messages, 1);
    });
}

#[test]
fn a_thread_without_a_ring_wakes_one_that_sleeps() {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    let waiting = std::thread::spawn(move || {
        ring(async move {
            let mut sum = 0;
            while let Some(n) = receiver.recv().await {
                sum += n;
            }
            sum
        })
    });
    (0..1000).for_each(|n| sender.blocking_send(n).expect("it listens"));
    drop(sender);
    assert_eq!(waiting.join().expect("ends"), 499_500);
}

#[test]
fn a_panic_leaves_memory_the_kernel_may_still_write_alone() {
    let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| {
        ring(async {
            let (ours, theirs) = pair().await;
            spawn(Share::Serve, async move {
                receive(&ours, 4096).await;
            })
            .detach();
            sleep(Duration::from_millis(1)).await;
            std::mem::forget(theirs);
            panic!("on purpose");
        })
    }));
    assert!(panicked.is_err());
    // The thread's next executor is whole.
    ring(async {
        let (ours, theirs) = pair().await;
        theirs.send_all(text("fine").await).await.expect("sends");
        assert_eq!(receive(&ours, 4).await, b"fine");
    });
}

#[test]
fn handles_of_an_executor_that_is_gone_harm_no_other() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder");
    let path = folder.path().join("data");
    let (file, task) = ring(async move {
        let task = spawn(Share::Serve, std::future::pending::<()>());
        (File::open(path, OpenOptions::READ_WRITE).await.expect("opens"), task)
    });
    ring(async move {
        let mine = spawn(Share::Serve, async { sleep(Duration::from_millis(5)).await });
        drop(task); // the same numbers as `mine`: it must not stop that one
        assert_eq!(file.write_at(0, text("works").await).await.expect("writes"), 5);
        mine.await;
    });
}

#[test]
fn what_cannot_be_is_refused() {
    for config in [
        Config { operations_max: 0, ..small() },
        Config { operations_max: u32::MAX, ..small() },
        Config { lease_bytes_max: 5000, ..small() },
        Config { lease_bytes_max: 2 << 30, ..small() },
    ] {
        let refused = run(config, async {}).expect_err("refused");
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }
}

#[test]
fn errors_at_set_up_say_what_to_do() {
    for (code, word) in [
        (libc::EPERM, "kernel.io_uring_disabled"),
        (libc::ENOSYS, "CONFIG_IO_URING"),
        (libc::EINVAL, "6.1"),
        (libc::ENOMEM, "LimitMEMLOCK"),
        (libc::EMFILE, "LimitNOFILE"),
    ] {
        let text = uring::explain(io::Error::from_raw_os_error(code)).to_string();
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn dropping_very_many_files_at_once_overflows_nothing() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder");
    let path = folder.path().join("data");
    let config = Config { operations_max: 2, ..small() };
    run(config, async move {
        let open = || File::open(&path, OpenOptions::READ_WRITE);
        let mut files = Vec::new();
        for _ in 0..300 {
            files.push(open().await.expect("opens"));
        }
        drop(files);
        yield_now().await;
        open().await.expect("opens");
    })
    .expect("a ring");
}
