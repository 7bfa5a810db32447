//! Files and the namespace.

use std::io;
use std::path::PathBuf;

use super::*;

/// Writes everything, however short the single writes are.
async fn write_all(file: &File, mut at: u64, mut from: Gather) {
    while let Some(first) = from.first() {
        let written = file.write_at(at, smallvec![first.clone()]).await.expect("writes");
        at += written as u64;
        match written == first.len() {
            true => drop(from.remove(0)),
            false => from[0] = first.slice(written..first.len()),
        }
    }
}

async fn read_all(file: &File, at: u64, bytes: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < bytes {
        let into = lease(4096, Class::Records).await;
        let (read, into) = file.read_at(at + all.len() as u64, into).await;
        let read = read.expect("reads");
        assert!(read > 0, "the end after {} bytes", all.len());
        all.extend_from_slice(&into[..read]);
    }
    all.truncate(bytes);
    all
}

both!(a_file_gives_back_what_was_written, |folder: PathBuf| async move {
    let path = folder.join("data");
    let file = File::open(&path, OpenOptions::READ_WRITE).await.expect("opens");
    file.allocate(0, 64 << 10).await.expect("space");
    let mut first = lease(8192, Class::Records).await;
    first.fill(7);
    let mut second = lease(4096, Class::Records).await;
    second.fill(9);
    write_all(&file, 4096, smallvec![first.freeze(8192).0, second.freeze(4096).0]).await;
    file.sync_data().await.expect("syncs");
    fs::sync_filesystem(&folder).await.expect("syncs");
    fs::sync_dir(&folder).await.expect("syncs");
    let bytes = read_all(&file, 0, 16384).await;
    assert!(bytes[..4096].iter().all(|b| *b == 0));
    assert!(bytes[4096..12288].iter().all(|b| *b == 7));
    assert!(bytes[12288..].iter().all(|b| *b == 9));
    file.truncate(100).await.expect("cuts");
    assert_eq!(fs::size(&path).await.expect("a size"), 100);
    let (read, _) = file.read_at(4096, lease(4096, Class::Records).await).await;
    assert_eq!(read.expect("reads past the end"), 0);
    file.truncate(8192).await.expect("extends");
    assert!(read_all(&file, 100, 8092).await.iter().all(|b| *b == 0), "old bytes came back");
});

both!(a_direct_file_takes_whole_blocks, |folder: PathBuf| async move {
    let options = OpenOptions::READ_WRITE.direct();
    let file = File::open(folder.join("data"), options).await.expect("opens");
    let mut block = lease(4096, Class::Records).await;
    block.fill(3);
    let block = block.freeze(4096).0;
    while file.write_at(4096, smallvec![block.clone()]).await.expect("writes") < 4096 {}
    let (mut read, mut bytes) = file.read_at(4096, lease(4096, Class::Records).await).await;
    while *read.as_ref().expect("reads") < 4096 {
        (read, bytes) = file.read_at(4096, bytes).await;
    }
    assert_eq!(bytes[..], block[..]);
});

both!(more_pieces_than_the_kernel_takes_are_a_short_write, |folder: PathBuf| async move {
    let file = File::open(folder.join("data"), OpenOptions::READ_WRITE).await.expect("opens");
    let mut bytes = lease(4096, Class::Records).await;
    (0..3000).for_each(|at| bytes[at] = at as u8);
    let slice = bytes.freeze(3000).0;
    let mut at = 0;
    while at < 3000 {
        let pieces: Gather = (at..3000).map(|at| slice.slice(at..at + 1)).collect();
        at += file.write_at(at as u64, pieces).await.expect("a short write, not an error");
    }
    assert_eq!(read_all(&file, 0, 3000).await, slice[..]);
});

both!(the_namespace_works_as_usual, |folder: PathBuf| async move {
    let (deep, file) = (folder.join("a/b"), folder.join("a/b/file"));
    fs::create_dir_all(&deep).await.expect("makes");
    fs::create_dir_all(&deep).await.expect("is there");
    assert!(!fs::exists(&file).await.expect("asks"));
    fs::write(&file, b"first".to_vec()).await.expect("writes");
    fs::replace(&file, b"second".to_vec()).await.expect("replaces");
    assert_eq!(fs::read(&file, 100).await.expect("reads"), b"second");
    let long = fs::read(&file, 3).await.expect_err("too long");
    assert_eq!(long.kind(), io::ErrorKind::InvalidData);
    let new = OpenOptions { write: true, create_new: true, ..OpenOptions::default() };
    let exists = File::open(&file, new).await.expect_err("exists");
    assert_eq!(exists.kind(), io::ErrorKind::AlreadyExists);
    let missing = File::open(folder.join("none"), OpenOptions::READ).await.expect_err("missing");
    assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    assert!(fs::remove_dir(&deep).await.is_err(), "not empty");
    fs::rename(&file, folder.join("moved")).await.expect("renames");
    fs::remove_dir(&deep).await.expect("empty now");
    let names = fs::read_dir(&folder).await.expect("lists");
    let names: Vec<_> = names.iter().map(|e| (e.name.to_str(), e.is_dir)).collect();
    assert_eq!(names, [(Some("a"), true), (Some("moved"), false)]);
    fs::remove_file(folder.join("moved")).await.expect("removes");
    assert!(fs::free_bytes(&folder).await.expect("asks") > 0);
});

both!(a_removed_file_lives_while_it_is_open, |folder: PathBuf| async move {
    let path = folder.join("data");
    let file = File::open(&path, OpenOptions::READ_WRITE).await.expect("opens");
    fs::remove_file(&path).await.expect("removes");
    write_all(&file, 0, text("still here").await).await;
    assert_eq!(read_all(&file, 0, 10).await, b"still here");
});
