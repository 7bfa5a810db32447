//! Tasks, timers, fair shares.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::*;

both!(tasks_run_and_give_their_values, |_| async {
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
    assert_eq!(sum, 4950);
});

struct Flag(Rc<Cell<bool>>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

both!(a_dropped_task_stops, |_| async {
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

both!(what_is_to_come_to_its_end_outlives_who_waits_for_it, |_| async {
    assert_eq!(to_its_end(Share::Background, async { 7 }).await, 7);
    let steps = Rc::new(Cell::new(0));
    let mine = Rc::clone(&steps);
    let work = async move {
        mine.set(1);
        sleep(Duration::from_millis(5)).await;
        mine.set(2);
    };
    let waiting = spawn(Share::Background, to_its_end(Share::Background, work));
    while steps.get() == 0 {
        yield_now().await;
    }
    drop(waiting);
    assert_eq!(steps.get(), 1);
    while steps.get() == 1 {
        sleep(Duration::from_millis(5)).await;
    }
});

both!(a_task_may_drop_itself, |_| async {
    let dropped = Rc::new(Cell::new(false));
    let flag = Flag(Rc::clone(&dropped));
    let own: Rc<RefCell<Option<Task<()>>>> = Rc::default();
    let mine = Rc::clone(&own);
    let task = spawn(Share::Serve, async move {
        let _flag = flag;
        yield_now().await;
        drop(mine.take());
        yield_now().await;
        unreachable!("it was dropped while it ran");
    });
    own.replace(Some(task));
    while !dropped.get() {
        yield_now().await;
    }
});

both!(timers_fire_in_their_order, |_| async {
    let order: Rc<RefCell<Vec<u64>>> = Rc::default();
    let tasks: Vec<_> = [5_u64, 1, 3, 2, 4]
        .map(|n| {
            let order = Rc::clone(&order);
            spawn(Share::Replicate, async move {
                let before = now();
                sleep(Duration::from_millis(20 * n)).await;
                assert!(now() - before >= Duration::from_millis(20 * n));
                order.borrow_mut().push(n);
            })
        })
        .into();
    for task in tasks {
        task.await;
    }
    // A machine under load, or a paused executor, may see several fire at once; never too early.
    assert_eq!(order.borrow().len(), 5);
});

both!(a_time_limit_ends_what_takes_too_long, |_| async {
    let forever = timeout(Duration::from_millis(1), std::future::pending::<()>()).await;
    assert_eq!(forever, Err(Elapsed));
    assert_eq!(timeout(Duration::from_secs(3600), async { 5 }).await, Ok(5));
    sleep_until(Instant::from_nanos(0)).await; // long past: at once
});

/// Tasks that are always ready and take long at it.
fn hog(share: Share) -> Vec<Task<()>> {
    let work = || async {
        loop {
            let until = now() + Duration::from_micros(20);
            while now() < until {}
            yield_now().await;
        }
    };
    let hogs = if cfg!(miri) { 5 } else { 100 };
    (0..hogs).map(|_| spawn(share, work())).collect()
}

async fn progress_beside(hogs: Share, mine: Share) {
    let _hogs = hog(hogs);
    let task = spawn(mine, async {
        for _ in 0..50 {
            yield_now().await;
        }
    });
    // Each of the fifty polls waits for one round of the hogs', no longer.
    task.await;
}

both!(replicate_cannot_starve_the_background, |_| {
    progress_beside(Share::Replicate, Share::Background)
});
both!(replicate_cannot_starve_serve, |_| progress_beside(Share::Replicate, Share::Serve));
both!(serve_cannot_starve_replicate, |_| progress_beside(Share::Serve, Share::Replicate));
both!(background_cannot_starve_replicate, |_| {
    progress_beside(Share::Background, Share::Replicate)
});

both!(who_is_always_ready_cannot_starve_the_driver, |_| async {
    let _hogs = hog(Share::Replicate);
    let (ours, theirs) = pair().await;
    for _ in 0..10 {
        theirs.send_all(text("x").await).await.expect("sends");
        assert_eq!(receive(&ours, 1).await, b"x");
        sleep(Duration::from_micros(100)).await;
    }
});
