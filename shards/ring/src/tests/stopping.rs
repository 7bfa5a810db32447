//! The end of a run: everything is stopped, and nothing stays in flight.

use std::path::PathBuf;
use std::time::Duration;

use super::*;

both!(stopping_ends_what_would_wait_for_ever, |folder: PathBuf| async move {
    let (ours, theirs) = pair().await;
    let listener = Listener::bind(&loopback()).expect("a free port");
    let file = File::open(folder.join("data"), OpenOptions::READ_WRITE).await.expect("opens");
    spawn(Share::Serve, async move {
        receive(&ours, 4096).await;
        unreachable!("nobody sends");
    })
    .detach();
    spawn(Share::Serve, async move { drop(listener.accept().await) }).detach();
    spawn(Share::Background, async move {
        loop {
            let bytes = text("some bytes").await;
            file.write_at(0, bytes).await.expect("writes");
            file.sync_data().await.expect("flushes");
        }
    })
    .detach();
    spawn(Share::Background, async move {
        loop {
            fs::sync_filesystem(&folder).await.expect("flushes");
        }
    })
    .detach();
    spawn(Share::Background, async {
        sleep(Duration::from_secs(1 << 40)).await;
    })
    .detach();
    sleep(Duration::from_millis(1)).await;
    drop(theirs);
});

both!(tasks_that_start_tasks_while_they_are_dropped_end_too, |_| async {
    struct Starts(u32);
    impl Drop for Starts {
        fn drop(&mut self) {
            if self.0 > 0 {
                let next = Starts(self.0 - 1);
                spawn(Share::Serve, async move {
                    let _next = next;
                    std::future::pending::<()>().await;
                })
                .detach();
            }
        }
    }
    let starts = Starts(5);
    spawn(Share::Serve, async move {
        let _starts = starts;
        std::future::pending::<()>().await;
    })
    .detach();
    yield_now().await;
});

/// Its memory is in its own hands for ever, but the end does not wait for it.
async fn forget_a_receive() {
    let (ours, theirs) = pair().await;
    let into = lease(4096, Class::Control).await;
    let mut forgotten = Box::pin(async move { ours.receive([Some(into), None], true).await.0 });
    assert_eq!(timeout(Duration::ZERO, &mut forgotten).await.err(), Some(Elapsed));
    std::mem::forget((forgotten, theirs));
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no io_uring")]
fn a_forgotten_receive_does_not_hold_up_the_end() {
    run(small(), forget_a_receive()).expect("ends in time");
}

#[test]
#[cfg_attr(miri, ignore = "it leaks, as it should")]
fn a_forgotten_receive_does_not_hold_up_a_simulated_end() {
    let mut sim = Simulation::new(1, Faults::default());
    let executor = sim.executor(small());
    sim.run_on(executor, forget_a_receive());
    assert_eq!(sim.stop(executor).memory.used, 4096);
}
