use std::fs;
use std::path::PathBuf;

use super::*;

mod simulated;

fn set(key: &str, value: &str) -> Change {
    Change { key: key.to_owned(), value: Some(value.as_bytes().to_vec()) }
}

fn pair(key: &str, value: &str) -> (String, Vec<u8>) {
    (key.to_owned(), value.as_bytes().to_vec())
}

struct House(tempfile::TempDir);

impl House {
    fn new() -> House {
        House(tempfile::tempdir().expect("temporary folder"))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("metadata.store")
    }

    fn open(&self) -> Result<MetadataStore, MetadataError> {
        MetadataStore::open(&self.path())
    }

    fn error(&self) -> MetadataError {
        let Err(error) = self.open() else { panic!("it opens") };
        assert!(error.to_string().contains("metadata.store"), "{error}");
        error
    }
}

#[test]
fn what_is_committed_is_there_after_reopening() {
    let house = House::new();
    let mut store = house.open().expect("a new store");
    assert_eq!(store.load(), Vec::new());
    store.commit(&[set("link/b", "2"), set("link/a", "1")]).expect("commit");
    assert_eq!(store.load(), [pair("link/a", "1"), pair("link/b", "2")]);
    let gone = Change { key: "link/a".to_owned(), value: None };
    store.commit(&[gone, set("link/b", ""), set("link/b", "3")]).expect("commit");
    assert!(matches!(house.error(), MetadataError::Locked(_)), "a second process is refused");
    drop(store);
    assert_eq!(house.open().expect("the same store").load(), [pair("link/b", "3")]);
}

#[test]
fn the_state_grows_and_shrinks() {
    let house = House::new();
    let mut store = house.open().expect("a new store");
    for kilobytes in [1, 3000, 2, 900, 0, 5000] {
        let value = "v".repeat(kilobytes << 10);
        store.commit(&[set("topic", &value)]).expect("commit");
        drop(store);
        store = house.open().expect("the same store");
        assert_eq!(store.load(), [pair("topic", &value)]);
    }
}

#[test]
fn every_byte_that_turns_and_every_cut_is_damage_that_changes_nothing() {
    let house = House::new();
    let mut store = house.open().expect("a new store");
    store.commit(&[set("link/a", "a value"), set("link/b", "another")]).expect("commit");
    drop(store);
    // What counts, without the room behind it.
    let mut whole = fs::read(house.path()).expect("the file");
    whole.truncate(40 + 2 * 8 + 6 + 7 + 6 + 7);
    let refused = |bytes: &[u8]| {
        fs::write(house.path(), bytes).expect("damage");
        let error = house.error();
        assert_eq!(fs::read(house.path()).expect("the file"), bytes);
        error
    };
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut turned = whole.clone();
            turned[at] ^= 1 << bit;
            match refused(&turned) {
                MetadataError::Damaged { .. } => {}
                MetadataError::Format { .. } if (8..12).contains(&at) => {}
                error => panic!("byte {at}: {error}"),
            }
        }
        let error = refused(&whole[..at]);
        assert!(
            matches!(error, MetadataError::Damaged { damage: Damage::Short { .. }, .. }),
            "{at}: {error}"
        );
    }
    fs::write(house.path(), &whole).expect("the file");
    assert_eq!(house.open().expect("whole again").load().len(), 2);
}

#[test]
fn records_that_make_no_sense_are_damage_though_the_checksum_fits() {
    let body = |records: &[(&str, &str)]| {
        let record = |(key, value): &(&str, &str)| {
            let lengths = [key.len() as u32, value.len() as u32].map(u32::to_le_bytes).concat();
            [&lengths, key.as_bytes(), value.as_bytes()].concat()
        };
        records.iter().flat_map(record).collect::<Vec<_>>()
    };
    let file = |count: u32, body: &[u8]| {
        let length = (body.len() as u64).to_le_bytes();
        let head = [b"USMETADA", &1u32.to_le_bytes()[..], &count.to_le_bytes(), &[0; 8], &length];
        let head = head.concat();
        [&head[..], &crate::crc::crc64(&[&head, body]).to_le_bytes(), body].concat()
    };
    let read = |bytes: &[u8]| image::Image::read(bytes, bytes.len() as u64).map(drop);
    assert!(read(&file(2, &body(&[("a", "1"), ("b", "2")]))).is_ok());
    let wrong = [
        file(2, &body(&[("b", "1"), ("a", "2")])),
        file(2, &body(&[("a", "1"), ("a", "2")])),
        file(1, &body(&[("a", "1"), ("b", "2")])),
        file(1, &body(&[("a", "1")])[..9]),
        file(1, &[0xff; 8]),
        file(1, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]),
    ];
    for bytes in wrong {
        let Err(image::ReadError::Damage(Damage::Record(_))) = read(&bytes) else {
            panic!("{bytes:?}")
        };
    }
}

#[test]
fn a_store_of_another_form_is_refused_and_never_begun_anew() {
    let house = House::new();
    fs::write(house.0.path().join("metadata.redb"), "redb").expect("file");
    assert!(matches!(house.error(), MetadataError::Former { .. }));
    let existing = MetadataStore::open_existing(&house.path());
    assert!(matches!(existing, Err(MetadataError::Former { .. })));
    assert!(!house.path().exists());
}

#[test]
fn a_store_whose_file_is_gone_is_refused_and_never_begun_anew() {
    let house = House::new();
    let existing = || MetadataStore::open_existing(&house.path()).map(drop);
    assert!(matches!(existing(), Err(MetadataError::Missing(_))));
    house.open().expect("a new store").commit(&[set("link/a", "1")]).expect("commit");
    existing().expect("it is there");
    fs::remove_file(house.path()).expect("removed");
    assert!(matches!(house.error(), MetadataError::Missing(_)));
    assert!(!house.path().exists());
    fs::write(house.path(), "").expect("an empty file");
    assert!(matches!(house.error(), MetadataError::Damaged { .. }));
}

#[test]
fn an_immense_length_allocates_nothing() {
    let house = House::new();
    drop(house.open().expect("a new store"));
    let mut bytes = fs::read(house.path()).expect("the file");
    for length in [u64::MAX, 1 << 40, 1 << 29] {
        bytes[24..32].copy_from_slice(&length.to_le_bytes());
        fs::write(house.path(), &bytes).expect("damage");
        assert!(matches!(house.error(), MetadataError::Damaged { .. }));
    }
}
