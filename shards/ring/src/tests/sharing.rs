//! Scarce things: slots for operations, memory.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::*;

fn few_slots() -> Config {
    Config { operations_max: 2, ..small() }
}

both!(more_operations_than_slots_wait_their_turn, few_slots(), |_| async {
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
    assert_eq!(receive(&ours, 20).await, [b'x'; 20]);
});

both!(who_leaves_the_line_for_a_slot_holds_up_nobody, few_slots(), |_| async {
    let (ours, theirs) = pair().await;
    // Both slots wait for bytes; many stand in line, and most of them give up.
    let receivers: Vec<_> = (0..2)
        .map(|_| {
            let ours = ours.clone();
            spawn(Share::Serve, async move { receive(&ours, 1).await })
        })
        .collect();
    sleep(Duration::from_millis(1)).await;
    let mut waiting: Vec<Option<Task<()>>> = (0..20)
        .map(|_| {
            let theirs = theirs.clone();
            Some(spawn(Share::Serve, async move {
                theirs.send_all(text("x").await).await.expect("sends");
            }))
        })
        .collect();
    sleep(Duration::from_millis(1)).await;
    for (at, place) in waiting.iter_mut().enumerate() {
        if at % 5 != 4 {
            place.take();
        }
    }
    drop(receivers); // both slots come free, one by one
    for task in waiting.into_iter().flatten() {
        task.await;
    }
});

both!(memory_is_handed_out_in_line, |_| async {
    let mut held = Vec::new();
    while let Some(lease) = try_lease(256 << 10, Class::Records) {
        held.push(lease);
    }
    let order: Rc<RefCell<Vec<u32>>> = Rc::default();
    let mut tasks = Vec::new();
    for n in 0..4 {
        let order = Rc::clone(&order);
        tasks.push(spawn(Share::Replicate, async move {
            let _lease = lease(256 << 10, Class::Records).await;
            order.borrow_mut().push(n);
        }));
        // The simulator runs ready tasks in any order: let each reach the line before the next.
        sleep(Duration::from_millis(1)).await;
    }
    assert!(try_lease(4096, Class::Control).is_some(), "the reserve is there");
    drop(tasks.remove(1)); // who leaves the line holds up nobody
    held.pop();
    for task in tasks {
        task.await;
    }
    assert_eq!(*order.borrow(), [0, 2, 3]);
});
