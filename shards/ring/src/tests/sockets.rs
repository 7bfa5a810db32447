//! Streams and listeners.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::*;

both!(a_receive_fills_two_leases_in_order, |_| async {
    let (ours, theirs) = pair().await;
    theirs.send_all(text("one and two").await).await.expect("sends");
    let (first, _) = lease(4096, Class::Control).await.split(4);
    let (second, _) = lease(4096, Class::Control).await.split(7);
    let (received, into) = ours.receive([Some(first), Some(second)], true).await;
    assert_eq!(received.expect("receives"), 11);
    let [Some(first), Some(second)] = into else { panic!("both leases come back") };
    assert_eq!((&first[..], &second[..]), (&b"one "[..], &b"and two"[..]));
    drop(theirs);
    let (received, _) = ours.receive([Some(first), None], true).await;
    assert_eq!(received.expect("the end"), 0);
});

both!(what_has_arrived_is_known_before_it_is_received, |_| async {
    let (ours, theirs) = pair().await;
    let watch = ours.watch();
    assert_eq!(watch.arrived_bytes(), 0);
    for bytes in [20_000, 40_000] {
        let piece = lease(20_000, Class::Records).await.freeze(20_000).0;
        theirs.send_all(smallvec![piece]).await.expect("sends");
        while watch.arrived_bytes() < bytes {
            sleep(Duration::from_micros(100)).await;
        }
        assert_eq!(watch.arrived_bytes(), bytes);
    }
    receive(&ours, 40_000).await;
    assert_eq!(watch.arrived_bytes(), 40_000, "received is arrived, too");
    drop(ours);
    assert_eq!(watch.arrived_bytes(), 0);
});

/// Received in one go however it dribbles in; what follows it is not waited for in company.
async fn waits_for_all(at: Address, large: usize) {
    let (ours, theirs) = pair_at(at).await;
    let dribble = large / 7 + 1;
    let sending = spawn(Share::Replicate, async move {
        let mut sent = 0;
        while sent < large + 3 {
            let bytes = dribble.min(large + 3 - sent);
            let mut piece = lease(bytes, Class::Records).await;
            for at in 0..bytes {
                piece[at] = ((sent + at) % 251) as u8;
            }
            theirs.send_all(smallvec![piece.freeze(bytes).0]).await.expect("sends");
            sent += bytes;
            sleep(Duration::from_micros(300)).await;
        }
        theirs
    });
    let (first, _) = lease(large, Class::Records).await.split(large - 10);
    let (second, _) = lease(4096, Class::Control).await.split(10);
    let (received, into) = ours.receive([Some(first), Some(second)], true).await;
    assert_eq!(received.expect("receives"), large);
    let bytes = into.iter().flatten().flat_map(|lease| lease.iter());
    assert!(bytes.enumerate().all(|(at, byte)| *byte == (at % 251) as u8));
    assert_eq!(receive(&ours, 3).await.len(), 3, "three bytes are not kept back");
    drop(sending.await);
    let (rest, _) = lease(large, Class::Records).await.split(large);
    let (received, _) = ours.receive([Some(rest), None], true).await;
    assert_eq!(received.expect("the end"), 0);
}

const LARGE: usize = if cfg!(miri) { 70 << 10 } else { 200 << 10 };

both!(a_large_receive_waits_for_all, |_| async {
    waits_for_all(loopback(), LARGE).await;
    waits_for_all(loopback(), 66_000).await;
});

both!(a_large_receive_waits_for_all_of_a_unix_socket, |folder: PathBuf| async move {
    waits_for_all(Address::Unix(folder.join("socket")), LARGE).await;
});

both!(a_large_receive_ends_with_the_stream, |_| async {
    let (ours, theirs) = pair().await;
    let piece = lease(100_000, Class::Records).await.freeze(100_000).0;
    theirs.send_all(smallvec![piece]).await.expect("sends");
    let pending = spawn(Share::Serve, async move {
        let (room, _) = lease(LARGE, Class::Records).await.split(LARGE);
        let (received, into) = ours.receive([Some(room), None], true).await;
        (received.expect("what came"), ours.receive(into, true).await.0.expect("the end"))
    });
    sleep(Duration::from_millis(2)).await;
    theirs.shutdown();
    assert_eq!(pending.await, (100_000, 0));
});

both!(a_large_receive_can_be_dropped_half_way, |_| async {
    let (ours, theirs) = pair().await;
    let receiving = ours.clone();
    let pending = spawn(Share::Serve, async move {
        let (room, _) = lease(LARGE, Class::Records).await.split(LARGE);
        receiving.receive([Some(room), None], true).await
    });
    sleep(Duration::from_millis(1)).await;
    let piece = lease(30_000, Class::Records).await.freeze(30_000).0;
    theirs.send_all(smallvec![piece]).await.expect("sends");
    sleep(Duration::from_millis(1)).await;
    drop(pending);
    while memory().used > 0 {
        sleep(Duration::from_millis(1)).await;
    }
});

async fn hello(address: Address) {
    let (ours, theirs) = pair_at(address).await;
    theirs.send_all(text("hello").await).await.expect("sends");
    assert_eq!(receive(&ours, 5).await, b"hello");
    drop(ours);
    assert_eq!(receive(&theirs, 5).await, b"");
}

both!(unix_paths_are_addresses, |folder: PathBuf| async move {
    hello(Address::Unix(folder.join("socket"))).await;
    let nobody = Address::Unix(folder.join("no socket"));
    Stream::connect_to(nobody).await.expect_err("nobody listens");
});

both!(version_six_addresses_work, |_| hello(Address::Tcp("[::1]:0".parse().expect("an address"))));

both!(connecting_to_nobody_is_an_error, |_| async {
    let listener = Listener::bind(&loopback()).expect("a free port");
    let address = listener.address().clone();
    drop(listener);
    let refused = loop {
        // The close goes through the ring: until it is done the port still accepts.
        match Stream::connect_to(address.clone()).await {
            Ok(_) => yield_now().await,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
});

both!(a_shutdown_ends_a_pending_receive, |_| async {
    let (ours, theirs) = pair().await;
    let receiving = ours.clone();
    let pending = spawn(Share::Serve, async move { receive(&receiving, 10).await });
    sleep(Duration::from_millis(2)).await;
    ours.shutdown();
    assert_eq!(pending.await, b"");
    assert_eq!(receive(&theirs, 10).await, b"", "the peer sees the end");
    let broken = ours.send(text("more").await).await.expect_err("shut");
    assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe);
});

both!(a_full_window_holds_the_sender, |_| async {
    const BYTES: usize = if cfg!(miri) { 1 << 19 } else { 8 << 20 };
    let (ours, theirs) = pair().await;
    let sending = spawn(Share::Replicate, async move {
        let mut at = 0;
        while at < BYTES {
            let mut piece = lease(64 << 10, Class::Records).await;
            piece.fill((at >> 16) as u8);
            let piece = piece.freeze(64 << 10).0;
            theirs.send_all(smallvec![piece]).await.expect("sends");
            at += 64 << 10;
        }
    });
    sleep(Duration::from_millis(20)).await;
    assert!(!sending.is_finished(), "so much fits in no window");
    let mut at = 0;
    while at < BYTES {
        let into = lease(64 << 10, Class::Records).await;
        let (received, into) = ours.receive([Some(into), None], true).await;
        assert_eq!(received.expect("receives"), 64 << 10);
        assert!(into[0].iter().flat_map(|l| l.iter()).all(|b| *b == (at >> 16) as u8));
        at += 64 << 10;
    }
    sending.await;
});
