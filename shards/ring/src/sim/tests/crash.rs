//! What a power loss leaves on a simulated disk, and what faulty media show.

use std::io;

use super::*;

const FIRST: Machine = Machine::FIRST;

#[test]
fn a_crash_keeps_whole_sectors_of_either_state() {
    let (mut old, mut new, mut torn) = (0, 0, 0);
    for_seeds(0, SEEDS, |seed| {
        let mut sim = Simulation::new(seed, Faults::none());
        let shard = sim.executor(tiny());
        let task = sim.spawn_on(shard, Share::Replicate, async {
            let file = File::open("/data", OpenOptions::READ_WRITE.direct()).await.expect("opens");
            file.write_at(0, block(1).await).await.expect("writes");
            file.sync_data().await.expect("flushes");
            file.write_at(0, block(2).await).await.expect("writes");
        });
        sim.run_until(|_| task.is_finished());
        sim.crash(shard);
        let kept = sim.disk(FIRST, |disk| disk.read_file("/data")).expect("flushed");
        assert_eq!(kept.len(), 4096);
        for sector in kept.chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a mix within a sector");
            assert!(sector[0] == 1 || sector[0] == 2, "a flushed byte was lost: {}", sector[0]);
        }
        let twos = kept.chunks(512).filter(|sector| sector[0] == 2).count();
        match twos {
            0 => old += 1,
            8 => new += 1,
            _ => torn += 1,
        }
    });
    let seen = old > 0 && new > 0 && torn > 0;
    assert!(seen || SEEDS < 10, "{old} old, {new} new, {torn} torn");
}

#[test]
fn a_write_in_flight_at_a_crash_is_torn_by_sector() {
    let mut kinds = [0; 3];
    for_seeds(0, SEEDS, |seed| {
        let mut sim = Simulation::new(seed, Faults::none());
        sim.disk(FIRST, |disk| disk.write_file("/data", &[1; 4096])).expect("room");
        let shard = sim.executor(tiny());
        let task = sim.spawn_on(shard, Share::Replicate, async {
            let file = File::open("/data", OpenOptions::READ_WRITE.direct()).await.expect("opens");
            file.write_at(0, block(2).await).await.expect("writes");
        });
        while !task.is_finished()
            && sim.enter(shard, || stats().operations == 0 || stats().driver.helped < 1)
        {
            sim.step();
        }
        for _ in 0..sim.random_below(8) {
            sim.step();
        }
        sim.crash(shard);
        let kept = sim.disk(FIRST, |disk| disk.read_file("/data")).expect("flushed");
        let twos = kept.chunks(512).filter(|sector| sector.iter().all(|b| *b == 2)).count();
        let ones = kept.chunks(512).filter(|sector| sector.iter().all(|b| *b == 1)).count();
        assert_eq!(ones + twos, 8);
        kinds[if twos == 0 {
            0
        } else if ones == 0 {
            2
        } else {
            1
        }] += 1;
    });
    assert!(kinds.iter().all(|n| *n > 0) || SEEDS < 10, "{kinds:?}");
}

#[test]
fn what_is_flushed_stays() {
    for_seeds(0, SEEDS, |seed| {
        let mut sim = Simulation::new(seed, Faults::default());
        let shard = sim.executor(tiny());
        let by_file = seed % 2 == 0;
        sim.run_on(shard, async move {
            fs::create_dir_all("/a/b").await.expect("a folder");
            let file = File::open("/a/b/c", OpenOptions::READ_WRITE).await.expect("opens");
            let written = file.write_at(0, block(5).await).await.expect("writes");
            file.truncate(written as u64 - 100).await.expect("cuts");
            match by_file {
                true => file.sync_data().await.expect("flushes"),
                false => fs::sync_filesystem("/a").await.expect("flushes"),
            }
            file.truncate(0).await.expect("cuts");
            fs::rename("/a/b/c", "/a/d").await.expect("renames");
        });
        sim.crash(shard);
        let kept = sim.disk(FIRST, |d| d.read_file("/a/b/c").or_else(|| d.read_file("/a/d")));
        let kept = kept.expect("one of its names");
        assert!(kept.is_empty() || kept.len() % 512 == 412 && kept.iter().all(|b| *b == 5));
    });
}

#[test]
fn the_namespace_keeps_a_prefix_of_what_was_done() {
    let mut seen = std::collections::BTreeSet::new();
    for_seeds(0, SEEDS, |seed| {
        let mut sim = Simulation::new(seed, Faults::none());
        let shard = sim.executor(tiny());
        sim.run_on(shard, async {
            for name in 0..6 {
                fs::write(format!("/{name}"), Vec::new()).await.expect("writes");
            }
        });
        sim.crash(shard);
        let there = |name: &u32| sim.disk(FIRST, |d| d.read_file(format!("/{name}")).is_some());
        let kept = (0..6).filter(there).count();
        assert!((0..kept as u32).all(|name| there(&name)), "not a prefix");
        seen.insert(kept);
    });
    assert!(seen.len() > 3 || SEEDS < 10, "{seen:?}");
}

#[test]
fn a_longer_file_never_shows_what_nobody_wrote() {
    for_seeds(0, SEEDS, |seed| {
        let mut sim = Simulation::new(seed, Faults::none());
        let shard = sim.executor(tiny());
        sim.run_on(shard, async {
            let file = File::open("/data", OpenOptions::READ_WRITE.direct()).await.expect("opens");
            for at in 0..4 {
                file.write_at(at * 4096, block(7).await).await.expect("writes");
            }
            file.truncate(4096).await.expect("cuts");
            file.write_at(4096, block(8).await).await.expect("writes");
        });
        sim.crash(shard);
        let Some(kept) = sim.disk(FIRST, |disk| disk.read_file("/data")) else { return };
        assert!(kept.len().is_multiple_of(4096));
        for (at, sector) in kept.chunks(512).enumerate() {
            // Written before the cut, or behind it after the cut: never zeros, never a mix.
            let possible: &[u8] = if at < 8 { &[7] } else { &[7, 8] };
            assert!(possible.contains(&sector[0]), "sector {at} holds {}", sector[0]);
            assert!(at < 8 || kept.len() > 8192 || sector[0] == 8 || kept.len() == 8192);
        }
    });
}

#[test]
fn what_was_cut_never_comes_back() {
    for_seeds(0, SEEDS, |seed| {
        let mut sim = Simulation::new(seed, Faults::none());
        sim.disk(FIRST, |disk| disk.write_file("/data", &[1; 4096])).expect("room");
        let shard = sim.executor(tiny());
        sim.run_on(shard, async {
            let file = File::open("/data", OpenOptions::READ_WRITE).await.expect("opens");
            file.truncate(0).await.expect("cuts");
            file.truncate(4096).await.expect("extends");
            file.sync_data().await.expect("flushes");
        });
        sim.crash(shard);
        let kept = sim.disk(FIRST, |disk| disk.read_file("/data")).expect("there");
        assert_eq!(kept, [0; 4096]);
    });
}

#[test]
fn bytes_behind_a_cut_need_the_cut() {
    let mut kinds = std::collections::BTreeSet::new();
    for_seeds(0, SEEDS, |seed| {
        let mut sim = Simulation::new(seed, Faults::none());
        sim.disk(FIRST, |disk| disk.write_file("/data", &[1; 4096])).expect("room");
        let shard = sim.executor(tiny());
        sim.run_on(shard, async {
            let file = File::open("/data", OpenOptions::READ_WRITE.direct()).await.expect("opens");
            file.truncate(0).await.expect("cuts");
            file.allocate(0, 4096).await.expect("room");
            file.write_at(0, block(2).await).await.expect("writes");
        });
        sim.crash(shard);
        let kept = sim.disk(FIRST, |disk| disk.read_file("/data")).expect("there");
        let old = kept.iter().filter(|byte| **byte == 1).count();
        // The old file, or nothing, or allocated space with some of the new sectors.
        assert!(old == 0 || old == 4096, "a mix of both sides of the cut");
        kinds.insert((kept.len(), old));
    });
    assert!(kinds.len() == 3 || SEEDS < 10, "{kinds:?}");
}

#[test]
fn a_replaced_file_holds_the_old_or_the_new() {
    for_seeds(0, SEEDS, |seed| {
        let mut sim = Simulation::new(seed, Faults::default());
        let shard = sim.executor(tiny());
        sim.run_on(shard, async { fs::replace("/name", b"old".to_vec()).await }).expect("replaced");
        let task = sim.spawn_on(shard, Share::Background, async {
            fs::replace("/name", b"new".to_vec()).await.expect("replaced");
        });
        for _ in 0..sim.random_below(10) {
            sim.step();
        }
        let ended = task.is_finished();
        sim.crash(shard);
        let kept = sim.disk(FIRST, |disk| disk.read_file("/name")).expect("never gone");
        assert!(kept == b"new" || (kept == b"old" && !ended), "{kept:?}, ended: {ended}");
    });
}

#[test]
fn a_failed_flush_is_told_once_and_its_pages_are_lost() {
    let mut lost = 0;
    for_seeds(0, SEEDS, |seed| {
        let mut sim = Simulation::new(seed, Faults::none());
        sim.disk(FIRST, |disk| disk.write_file("/data", &[1; 4096])).expect("room");
        sim.disk(FIRST, |disk| disk.fail_flushes(1));
        let shard = sim.executor(tiny());
        sim.run_on(shard, async {
            let file = File::open("/data", OpenOptions::READ_WRITE.direct()).await.expect("opens");
            let other = File::open("/data", OpenOptions::READ_WRITE).await.expect("opens");
            file.write_at(0, block(2).await).await.expect("writes");
            let failed = file.sync_data().await.expect_err("fails");
            assert_eq!(failed.raw_os_error(), Some(libc::EIO));
            file.sync_data().await.expect("the pages are clean now");
            other.sync_data().await.expect_err("told once per descriptor");
            other.sync_data().await.expect("and no more");
            fs::sync_filesystem("/").await.expect_err("and once to syncfs");
            fs::sync_filesystem("/").await.expect("and no more");
        });
        sim.crash(shard);
        let kept = sim.disk(FIRST, |disk| disk.read_file("/data")).expect("there");
        lost += usize::from(kept.contains(&1));
    });
    assert!(lost > 0 || SEEDS < 10);
}

#[test]
fn broken_media_show() {
    let mut sim = Simulation::new(1, Faults::none());
    sim.disk(FIRST, |disk| {
        disk.write_file("/data", &[1; 8192]).expect("room");
        disk.spoil("/data", 4096..4097);
        disk.flip_bit("/data", 100, 7);
    });
    sim.run(async {
        let file = File::open("/data", OpenOptions::READ_WRITE.direct()).await.expect("opens");
        let (read, bytes) = file.read_at(0, lease(4096, Class::Control).await).await;
        assert_eq!(read.expect("readable"), 4096);
        assert_eq!((bytes[99], bytes[100]), (1, 129));
        let (read, bytes) = file.read_at(4096, bytes).await;
        assert_eq!(read.expect_err("unreadable").raw_os_error(), Some(libc::EIO));
        file.write_at(4096, block(3).await).await.expect("writes");
        let (read, bytes) = file.read_at(4096, bytes).await;
        assert_eq!((read.expect("written again"), bytes[0]), (4096, 3));
    });
}

#[test]
fn files_can_be_lost_and_cut_from_outside() {
    let mut sim = Simulation::new(1, Faults::none());
    let shard = sim.executor(tiny());
    sim.disk(FIRST, |disk| {
        disk.make_dir("/a/b").expect("a folder");
        disk.write_file("/a/b/one", &[1; 1000]).expect("room");
        disk.write_file("/a/two", &[2; 1000]).expect("room");
        disk.cut_file("/a/two", 10).expect("there");
        assert!(!disk.is_dirty());
    });
    sim.crash(shard);
    sim.disk(FIRST, |disk| {
        let files = disk.files("/").expect("lists");
        assert_eq!(files, [("/a/b/one".into(), 1000), ("/a/two".into(), 10)]);
        disk.lose_file("/a/b/one").expect("there");
        assert_eq!(disk.read_file("/a/b/one"), None);
    });
}

#[test]
fn a_disk_is_full_at_its_size() {
    let mut sim = Simulation::new(1, Faults::none());
    sim.disk(FIRST, |disk| disk.set_capacity(3 * 4096));
    sim.run(async {
        let file = File::open("/data", OpenOptions::READ_WRITE.direct()).await.expect("opens");
        file.allocate(0, 8192).await.expect("room");
        assert_eq!(fs::free_bytes("/").await.expect("a number"), 4096);
        file.write_at(0, block(1).await).await.expect("allocated");
        let mut two = block(1).await;
        two.extend(block(2).await);
        assert_eq!(file.write_at(8192, two).await.expect("half of it fits"), 4096);
        let full = file.write_at(12288, block(1).await).await.expect_err("full");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        file.truncate(0).await.expect("cuts");
        file.write_at(0, block(1).await).await.expect("room again");
        fs::remove_file("/data").await.expect("removes");
        assert_eq!(fs::free_bytes("/").await.expect("a number"), 8192, "still open");
        drop(file);
        // Its journal entries keep the inode until they are committed.
        fs::sync_filesystem("/").await.expect("flushes");
        assert_eq!(fs::free_bytes("/").await.expect("a number"), 3 * 4096);
    });
}

#[test]
fn a_killed_process_leaves_what_it_wrote() {
    for_seeds(0, SEEDS, |seed| {
        let mut sim = Simulation::new(seed, Faults::default());
        let shard = sim.executor(tiny());
        let task = sim.spawn_on(shard, Share::Replicate, async {
            fs::write("/small", b"there".to_vec()).await.expect("writes");
            std::future::pending::<()>().await;
        });
        sim.run_for(Duration::from_secs(1));
        sim.kill(shard);
        drop(task);
        assert_eq!(sim.open_descriptors(shard), 0);
        let kept = sim.run(async { fs::read("/small", 100).await });
        assert_eq!(kept.expect("there"), b"there");
    });
}
