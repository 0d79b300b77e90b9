//! A backup that is taken while batches go on, and what becomes of one that is damaged.

use std::{fs, path::Path};

use super::{
    Batch, Piece, SharedStore, StoreConfig, StoreError, Write,
    backup::{BackupError, Beside, Header, Reader, Trailer, VERSION, Writer, write_store},
    memory::Disk,
    open,
    records::TokenRecord,
};
use crate::wire::ids::{ClientUri, Domain, GroupId, Sequence};

fn header() -> Header {
    Header {
        version: VERSION,
        made_by: "test".to_owned(),
        domain: "a.example".to_owned(),
        engine: "sled".to_owned(),
        taken_at_ms: 0,
        live: true,
        keys: false,
    }
}

fn opened(folder: &Path, engine: &str) -> SharedStore {
    let (engine, folder) = (engine.to_owned(), folder.to_owned());
    open(&StoreConfig { engine, folder, cache_bytes: 16 << 20 }).unwrap()
}

fn group(at: u8) -> GroupId {
    GroupId::of(&Domain::new("a.example").unwrap(), [at; 16])
}

fn large(n: u64) -> Vec<u8> {
    (0..700_000_u64).map(|at| (at.wrapping_mul(31).wrapping_add(n) >> 3) as u8).collect()
}

/// Writes `n` into records all over the key space, and comes with a large snapshot in every third.
fn round(n: u64) -> (Batch, Option<Batch>) {
    let bytes = n.to_be_bytes().to_vec();
    let mut batch = Batch::new().and(Write::Node { name: "n", bytes: bytes.clone() });
    for at in 0..16_u8 {
        let client = ClientUri::new("mimi://a.example/d/u/d").unwrap();
        let record = TokenRecord { revision: n, client, revoked: false, bound_to: Vec::new() };
        let token = super::records::TokenId([at * 16; 16]);
        batch.push(Write::Token { token, record });
        let at = Sequence(1);
        batch.push(Write::Snapshot { group: group(n as u8 % 8), at, bytes: bytes.clone() });
    }
    let snapshot = n.is_multiple_of(3).then(|| {
        let snapshot = Write::Snapshot { group: group(99), at: Sequence(n), bytes: large(n) };
        Batch::low_priority().and(snapshot).and(Write::Node { name: "large", bytes })
    });
    (batch, snapshot)
}

/// The round that the store is of, which all of its records must agree on.
async fn round_of(store: &SharedStore) -> u64 {
    let number = |bytes: Vec<u8>| u64::from_be_bytes(bytes.try_into().unwrap());
    let n = number(store.node("n").await.unwrap().unwrap());
    for at in 0..16_u8 {
        let token = store.token(&super::records::TokenId([at * 16; 16])).await.unwrap();
        assert_eq!(token.unwrap().revision, n, "token {at}");
    }
    let snapshot = store.snapshot(&group(n as u8 % 8), Sequence(1)).await.unwrap().unwrap();
    assert_eq!(number(snapshot), n);
    if let Some(at) = store.node("large").await.unwrap().map(number) {
        let snapshot = store.snapshot(&group(99), Sequence(at)).await.unwrap();
        assert!(snapshot.unwrap() == large(at), "the snapshot of round {at}");
    }
    n
}

async fn filled(store: &SharedStore) {
    for at in 0..80_u8 {
        let (group, bytes) = (group(100 + at), vec![at; 60_000]);
        let snapshot = Write::Snapshot { group, at: Sequence(1), bytes };
        store.write(Batch::new().and(snapshot)).await.unwrap();
    }
}

async fn copied_under_load(store: SharedStore, engine: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backup");
    filled(&store).await;
    for n in 1..=3 {
        store.write(round(n).0).await.unwrap();
    }
    let mut pieces = store.copy().unwrap();
    assert_eq!(store.copy().err(), Some(StoreError::Busy));
    let mut writer = Writer::create(&path, &header()).unwrap();
    let (mut n, mut snapshots, mut rounds) = (3, Vec::new(), 0);
    // a piece is taken, then a round is written: many rounds fall behind the copy's place and many ahead of it
    let sequence = loop {
        match pieces.recv().await.expect("the copy goes on") {
            Piece::Records(records) => writer.records(&records).unwrap(),
            Piece::End { sequence } => break sequence,
        }
        if rounds < 60 {
            (n, rounds) = (n + 1, rounds + 1);
            let (batch, snapshot) = round(n);
            snapshots.extend(snapshot.map(|snapshot| store.write(snapshot)));
            store.write(batch).await.unwrap();
        }
    };
    assert!(rounds > 15, "{rounds} rounds went on beside the copy");
    writer.finish(sequence).unwrap();
    for snapshot in snapshots {
        snapshot.await.unwrap();
    }
    store.write(round(n + 1).0).await.unwrap();
    for into in ["sled", "fjall"] {
        let place = folder.path().join(into);
        let trailer =
            write_store(&path, &place, into, |_| panic!("there is no file in it")).unwrap();
        assert_eq!(trailer.sequence, sequence);
        let restored = opened(&place, into);
        let of = round_of(&restored).await;
        assert!((3..=n).contains(&of), "{engine} in {into}: round {of} of 3..={n}");
        for at in 0..80_u8 {
            let snapshot = restored.snapshot(&group(100 + at), Sequence(1)).await.unwrap();
            assert_eq!(snapshot.unwrap(), vec![at; 60_000]);
        }
        // and it goes on, and survives
        restored.write(round(n + 7).0).await.unwrap();
        drop(restored);
        assert_eq!(round_of(&opened(&place, into)).await, n + 7);
    }
    // another one may be made then
    assert!(store.copy().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_beside_writes_and_large_snapshots_is_the_store_as_of_one_flush() {
    copied_under_load(Disk::new().open().unwrap(), "memory").await;
    for engine in ["sled", "fjall"] {
        let folder = tempfile::tempdir().unwrap();
        copied_under_load(opened(folder.path(), engine), engine).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_nobody_takes_is_given_up_and_no_write() {
    let store = Disk::new().open().unwrap();
    filled(&store).await;
    let mut pieces = store.copy().unwrap();
    let first = pieces.recv().await.unwrap();
    assert!(matches!(first, Piece::Records(_)));
    // everything up to the copy's place changes again and again
    for n in 0..80_u8 {
        let mut batch = Batch::new();
        for at in 0..16 {
            let snapshot =
                Write::Snapshot { group: group(100 + at), at: Sequence(1), bytes: vec![n; 60_000] };
            batch.push(snapshot);
        }
        for at in 0..200_u16 {
            let token = super::records::TokenId([at as u8; 16]);
            let client = ClientUri::new("mimi://a.example/d/u/d").unwrap();
            let record = TokenRecord {
                revision: u64::from(n) + 1,
                client,
                revoked: false,
                bound_to: Vec::new(),
            };
            batch.push(Write::Token { token, record });
        }
        let bytes = vec![n; 1 << 20];
        batch.push(Write::Node { name: "n", bytes });
        store.write(batch).await.unwrap();
    }
    let mut whole = false;
    while let Some(piece) = pieces.recv().await {
        whole |= matches!(piece, Piece::End { .. });
    }
    assert!(!whole, "what was given up has no end");
    assert_eq!(store.writable(), Ok(()));
    let mut pieces = store.copy().expect("another one may be made");
    while let Some(piece) = pieces.recv().await {
        whole |= matches!(piece, Piece::End { .. });
    }
    assert!(whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_cannot_be_read_costs_the_copy_and_no_write() {
    let disk = Disk::new();
    let store = disk.open().unwrap();
    filled(&store).await;
    disk.faults().fail_reads(true);
    let mut pieces = store.copy().unwrap();
    assert_eq!(pieces.recv().await, None);
    disk.faults().fail_reads(false);
    store.write(round(1).0).await.unwrap();
}

fn small_backup(path: &Path) -> Trailer {
    let mut writer = Writer::create(path, &header()).unwrap();
    let commit_sequence = super::keys::encode_commit_sequence(7);
    let key = super::keys::commit_sequence();
    writer.records(&[(key, Some(commit_sequence)), (vec![2, 9], Some(vec![1; 10]))]).unwrap();
    writer.records(&[(vec![2, 9], None), (vec![2, 10], Some(Vec::new()))]).unwrap();
    let name = "keys/a.json".into();
    writer.beside(&Beside { name, mode: 0o600, bytes: b"secret".to_vec() }).unwrap();
    writer.finish(7).unwrap()
}

#[test]
fn a_backup_is_for_its_owner_alone_and_takes_no_others_place() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backup");
    let trailer = small_backup(&path);
    assert_eq!((trailer.sequence, trailer.records, trailer.files), (7, 4, 1));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(Writer::create(&path, &header()), Err(BackupError::Exists(_))));
    // one that is broken off leaves nothing
    let other = folder.path().join("other");
    drop(Writer::create(&other, &header()).unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let mut files = Vec::new();
    let keep = |file| {
        files.push(file);
        Ok(())
    };
    write_store(&path, &folder.path().join("store"), "sled", keep).unwrap();
    assert_eq!(files[0].bytes, b"secret");
    let engine = super::copy::open("sled", &folder.path().join("store")).unwrap();
    assert_eq!(engine.read(&[2, 9]).unwrap(), None, "what came later holds");
    assert_eq!(engine.read(&[2, 10]).unwrap(), Some(Vec::new()));
}

#[test]
fn whatever_is_changed_cut_off_or_added_in_a_backup_is_noticed_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backup");
    small_backup(&path);
    let whole = fs::read(&path).unwrap();
    let checked = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let checked = Reader::open(&path).and_then(Reader::check);
        let store = folder.path().join("store");
        let restored = write_store(&path, &store, "sled", |_| Ok(()));
        assert!(checked.is_ok() || (restored.is_err() && !store.exists()));
        checked
    };
    assert!(Reader::open(&path).and_then(Reader::check).is_ok());
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        assert!(checked(&bytes).is_err(), "byte {at} was changed");
        let cut = checked(&whole[..at]).unwrap_err();
        assert!(matches!(cut, BackupError::Torn { .. } | BackupError::NotOne(_)), "{at}: {cut}");
    }
    let more = [whole.as_slice(), &[0]].concat();
    assert!(matches!(checked(&more), Err(BackupError::Damaged { .. })));
    // a name that leads out of the folder
    fs::remove_file(&path).unwrap();
    let mut writer = Writer::create(&path, &header()).unwrap();
    let bytes = Vec::new();
    writer.beside(&Beside { name: "../out".into(), mode: 0o600, bytes }).unwrap();
    writer.finish(1).unwrap();
    assert!(Reader::open(&path).and_then(Reader::check).is_err());
    // and one of a later mimid
    fs::remove_file(&path).unwrap();
    let later = Header { version: VERSION + 1, ..header() };
    Writer::create(&path, &later).unwrap().finish(1).unwrap();
    assert!(matches!(Reader::open(&path), Err(BackupError::Newer { version: 2, .. })));
}
