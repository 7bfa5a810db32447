//! No run leaves a descriptor or a thread behind. Alone in its process, so that it can count them.

use std::net::SocketAddr;
use std::time::Duration;

use ring::{
    Address, Class, Config, File, Listener, OpenOptions, Share, Stream, fs, lease, random, run,
    sleep, spawn, timeout,
};

fn count(what: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{what}")).expect("procfs").count()
}

async fn everything(folder: std::path::PathBuf) {
    let any = Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
    let listener = Listener::bind(&any).expect("a free port");
    let address = listener.address().clone();
    for n in 0..30 {
        let limit = Duration::from_nanos(random() % 300_000);
        let address = address.clone();
        let calling =
            spawn(
                Share::Serve,
                async move { timeout(limit, Stream::connect_to(address)).await.ok() },
            );
        let limit = Duration::from_nanos(random() % 300_000);
        let stream = timeout(limit, listener.accept()).await;
        let path = folder.join(format!("{n}"));
        let open = timeout(limit, File::open(path, OpenOptions::READ_WRITE)).await;
        if let (Ok(Ok(stream)), 0) = (stream, n % 3) {
            let lease = lease(4096, Class::Control).await;
            spawn(Share::Serve, async move {
                let _ = stream.receive([Some(lease), None], true).await;
            })
            .detach();
        }
        drop((calling, open));
    }
    fs::sync_filesystem(&folder).await.expect("flushes");
    // Closed by the stop, with nothing in flight to wait for.
    let last = File::open(folder.join("last"), OpenOptions::READ_WRITE).await.expect("opens");
    spawn(Share::Serve, async move {
        sleep(Duration::from_secs(3600)).await;
        drop(last);
    })
    .detach();
}

#[test]
fn no_run_leaves_a_descriptor_or_a_thread() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder");
    let mut before = (count("fd"), count("task"));
    for round in 0..20 {
        run(Config::small(), everything(folder.path().to_owned())).expect("a ring");
        if round == 0 {
            before.0 = before.0.max(count("fd")); // whatever the process opens once
            continue;
        }
        assert_eq!((count("fd"), count("task")), before, "round {round}");
    }
}
