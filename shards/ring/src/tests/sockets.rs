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
