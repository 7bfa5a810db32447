//! Futures dropped in flight.

use std::path::PathBuf;
use std::time::Duration;

use super::*;

async fn nothing_in_use(before: usize) {
    while memory().used != before {
        sleep(Duration::from_micros(50)).await; // the operation's own completion frees it
    }
}

both!(memory_of_a_dropped_receive_stays_taken_until_its_completion, |_| async {
    let (ours, theirs) = pair().await;
    let before = memory().used;
    let lease = lease(4096, Class::Control).await;
    let receive_nothing = ours.receive([Some(lease), None], false);
    assert_eq!(timeout(Duration::from_millis(5), receive_nothing).await.err(), Some(Elapsed));
    nothing_in_use(before).await;
    theirs.send_all(text("later").await).await.expect("sends");
    assert_eq!(receive(&ours, 5).await, b"later", "nothing was swallowed");
});

both!(receives_dropped_at_any_moment_keep_the_order, |_| async {
    const BYTES: u32 = if cfg!(miri) { 400 } else { 20_000 };
    let (ours, theirs) = pair().await;
    let before = memory().used;
    let sending = spawn(Share::Replicate, async move {
        for n in 0..BYTES / 4 {
            theirs.send_all(text(&format!("{n:04}")).await).await.expect("sends");
            if n % 64 == 0 {
                sleep(Duration::from_micros(random() % 200)).await;
            }
        }
    });
    let (mut seen, mut swallowed) = (-1, 0);
    loop {
        let (into, _) = lease(4, Class::Control).await.split(4);
        let limit = Duration::from_nanos(random() % 200_000);
        match timeout(limit, ours.receive([Some(into), None], true)).await {
            Ok((received, into)) => {
                match received.expect("receives") {
                    0 => break,
                    4 => {}
                    _ => continue, // behind a cancelled receive that took a part
                }
                let Some(bytes) = &into[0] else { unreachable!("it comes back") };
                let Ok(number) = std::str::from_utf8(bytes).expect("digits").parse::<i64>() else {
                    panic!("{bytes:?} is no number")
                };
                if swallowed == 0 {
                    assert_eq!(number, seen + 1);
                }
                seen = number;
            }
            Err(Elapsed) => swallowed += 1, // whatever it had taken by then is gone with it
        }
    }
    sending.await;
    drop(ours);
    nothing_in_use(before).await;
});

both!(reads_and_writes_dropped_in_flight_run_to_their_end, |folder: PathBuf| async move {
    let path = folder.join("data");
    let file = File::open(&path, OpenOptions::READ_WRITE.direct()).await.expect("opens");
    let before = memory().used;
    for n in 0..50_u64 {
        let mut bytes = lease(4096, Class::Records).await;
        bytes.fill(n as u8);
        let write = file.write_at(n * 4096, smallvec![bytes.freeze(4096).0]);
        let _ = timeout(Duration::from_nanos(random() % 100_000), write).await;
        let into = lease(8192, Class::Records).await;
        let read = file.read_at(random() % n.max(1) * 4096, into);
        let _ = timeout(Duration::from_nanos(random() % 100_000), read).await;
    }
    drop(file); // operations in flight hold it open
    nothing_in_use(before).await;
    let file = File::open(&path, OpenOptions::READ).await.expect("opens");
    for n in 0..fs::size(&path).await.expect("a size") / 4096 {
        let (read, bytes) = file.read_at(n * 4096, lease(4096, Class::Records).await).await;
        let read = read.expect("reads");
        assert!(bytes[..read].iter().all(|b| *b == n as u8 || *b == 0), "block {n}");
    }
});

both!(accepts_and_connects_dropped_in_flight_leak_nothing, |_| async {
    let listener = Listener::bind(&loopback()).expect("a free port");
    let address = listener.address().clone();
    for _ in 0..50 {
        let limit = Duration::from_nanos(random() % 500_000);
        let address = address.clone();
        let calling =
            spawn(
                Share::Serve,
                async move { timeout(limit, Stream::connect_to(address)).await.ok() },
            );
        let limit = Duration::from_nanos(random() % 500_000);
        let _ = timeout(limit, listener.accept()).await;
        drop(calling);
    }
});

both!(opens_dropped_in_flight_leak_nothing, |folder: PathBuf| async move {
    for n in 0..20 {
        let open = File::open(folder.join(format!("{n}")), OpenOptions::READ_WRITE);
        let _ = timeout(Duration::from_nanos(random() % 100_000), open).await;
    }
});
