//! What becomes of dead space, slots and headers of compressed arrays where several processes, failures and losses of
//! power come together: stories that random operations hardly meet.

mod common;

use std::io;
use std::sync::Arc;

use common::blocks::{self, read};
use common::rng::Rng;
use common::{FaultyStorage, MemStorage};
use numpack::format::block_index::Slot;
use numpack::store::{Access, Array, Attrs, Compression, Dtype, Filter, NewArray, Store};
use numpack::sys::Storage as _;

const BLOCK_LEN: u64 = 4096;
const BLOCKS: Compression = Compression { level: 1, block_len: BLOCK_LEN as u32, filter: Some(Filter::None) };

fn array(data: &[u8]) -> NewArray<'_> {
    let dtype = Dtype::parse_python("'|u1'").unwrap();
    NewArray { dtype, shape: vec![data.len() as u64], fortran_order: false, data }
}

fn open(memory: &MemStorage) -> Store {
    Store::with_storage(Box::new(memory.clone()), Access::Write).unwrap()
}

/// An array `a` of these elements, on the disk.
fn create(memory: &MemStorage, elements: &[u8]) -> Store {
    let store = Store::create_in(Box::new(memory.clone())).unwrap();
    store.save_as(&[("a", array(elements))], Some(&BLOCKS)).unwrap();
    store.sync().unwrap();
    store
}

fn write_back(store: &Store, bytes: &[u8]) {
    let array = store.array("a").unwrap();
    array.write_back(&[(array.header_len(), bytes)]).unwrap();
}

fn elements(array: &Array) -> Vec<u8> {
    let mut out = vec![0; array.nbytes() as usize];
    array.read_into(&mut out).unwrap();
    out
}

fn noise(seed: u64) -> Vec<u8> {
    Rng::new(seed).bytes(BLOCK_LEN as usize)
}

/// A process knows where there is room in a state that it made. When other processes made another one, and then one that
/// looks the same, byte for byte, that room may be where the state is that is on the disk.
#[test]
fn room_in_a_state_that_came_back_is_not_used() {
    let memory = MemStorage::new();
    let (a, b, c) = (noise(1), noise(2), noise(3));
    let store = create(&memory, &a);
    write_back(&store, &b);
    write_back(&store, &a);
    // It knows that the place of `b` is free.
    assert!(store.compact("a").unwrap());
    let known = blocks::table(&memory).get("a").unwrap().unwrap().blocks;
    let other = open(&memory);
    write_back(&other, &b);
    other.sync().unwrap();
    write_back(&other, &a);
    assert_eq!(blocks::table(&memory).get("a").unwrap().unwrap().blocks, known, "it is not what is tested");
    write_back(&store, &c);
    assert_eq!(elements(&store.array("a").unwrap()), c);
    let left = memory.after_power_loss(&mut || false);
    let left = elements(&open(&left).array("a").unwrap());
    assert!(left == a || left == b);
}

/// A slot may have reached the disk that a lost commit had written. Who has the array open when it is overwritten would
/// then find a state there that never was.
#[test]
fn slot_of_a_lost_commit_does_not_outlive_the_array() {
    let memory = MemStorage::new();
    let (a, b) = (noise(1), noise(2));
    let store = create(&memory, &a);
    let manifest = read(&memory, "metadata.npkm");
    store.replace_range("a", 0..BLOCK_LEN, array(&b)).unwrap();
    // All of the data file survives, nothing of the commit.
    let left = memory.after_kill();
    let file = left.create_unnamed().unwrap();
    file.write_at(&manifest, 0).unwrap();
    left.replace(&file, "metadata.npkm").unwrap();
    let slot = Slot::newest(&read(&left, "data_a.npkd")).0.unwrap();
    assert_ne!(slot.index, blocks::table(&left).get("a").unwrap().unwrap().blocks.unwrap().index);

    let holder = open(&left).array("a").unwrap();
    assert_eq!(elements(&holder), a);
    open(&left).save(&[("a", array(&[1, 2, 3]))]).unwrap();
    assert_eq!(elements(&holder), a);
    let other = open(&left).array("a").unwrap();
    open(&left).remove(&["a"]).unwrap();
    assert_eq!(elements(&other), [1, 2, 3]);
}

/// A snapshot does not say whose headers lag behind: as long as any do, none is published.
#[test]
fn headers_that_could_not_be_written_are_written_after_a_snapshot_was_due() {
    let memory = MemStorage::new();
    let a = noise(1);
    drop(create(&memory, &a));
    let storage = FaultyStorage::new(Arc::new(memory.clone()));
    let store = Store::with_storage(Box::new(storage.clone()), Access::Write).unwrap();
    let manifest_len = || read(&memory, "metadata.npkm").len();
    let ino = || memory.stat("metadata.npkm").unwrap().ino;
    let write_attrs = |len: usize| {
        let set: Attrs = [("filling".to_owned(), rmpv::Value::Binary(vec![7; len]))].into();
        store.set_attrs(None, set, &[]).unwrap();
    };
    // The next commit is the one that makes the log too long.
    let (first, before) = (ino(), manifest_len());
    write_attrs(70_000);
    let overhead = manifest_len() - before - 70_000;
    let snapshot_end = 64 + 64;
    let limit = (256 << 10) + 3 * snapshot_end;
    write_attrs(70_000);
    write_attrs(limit - manifest_len() - overhead - 16);
    assert_eq!(ino(), first);
    let is_slot_write = storage.calls().len() + 4; // the lock, the elements, the length, the frame, the slot
    storage.fail_at(is_slot_write + 1, io::Error::from_raw_os_error(libc::EIO));
    store.append(&[("a", array(&[1; 100]))]).unwrap();
    assert_eq!(storage.failed_call().as_deref(), Some("write_at data_a.npkd"));
    // Somebody else mends it, and the next one publishes.
    open(&memory).set_attrs(None, Attrs::new(), &[]).unwrap();
    blocks::assert_blocks(&memory);
    open(&memory).set_attrs(None, Attrs::new(), &[]).unwrap();
    assert_ne!(ino(), first, "it is not what is tested");
}
