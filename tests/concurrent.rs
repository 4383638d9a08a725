//! Readers and writers of compressed arrays at once: whatever is overwritten, given back and used again meanwhile, each
//! block that is read is one that was committed, no older than when the read began, and none is an error.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use numpack::store::{Access, Array, Compression, Dtype, Filter, NewArray, Store};
use tempfile::TempDir;

use common::{FaultyStorage, MemStorage, blocks, rng};

const BLOCK_LEN: usize = 4096;
const BLOCKS: Compression = Compression { level: 1, block_len: BLOCK_LEN as u32, filter: Some(Filter::None) };
/// Blocks of the array that is read, apart from those that are appended: two levels of pages would take 256.
const N_BLOCKS: u64 = 24;

/// On a disk that takes no time to sync, where there is one: more happens then.
fn temp() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = dir.path().join("data.npk");
    (dir, path)
}

/// What block `block` is after it was written for the `count`-th time: every byte tells. Odd ones do not compress.
fn content(block: u64, count: u64) -> Vec<u8> {
    let mut out = [block.to_le_bytes(), count.to_le_bytes()].concat();
    let mut state = (block << 32 | count).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while out.len() < BLOCK_LEN {
        if count % 2 == 1 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        out.extend(state.to_le_bytes());
    }
    out
}

/// How often the block was written that is read as `bytes`.
fn count_of(block: u64, bytes: &[u8]) -> u64 {
    let count = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
    assert!(bytes == content(block, count), "block {block} was never so: {count} {:02x?}", &bytes[..32]);
    count
}

fn array(n_blocks: u64, data: &[u8]) -> NewArray<'_> {
    let dtype = Dtype::parse_python("'|u1'").unwrap();
    NewArray { dtype, shape: vec![n_blocks, BLOCK_LEN as u64], fortran_order: false, data }
}

fn create(path: &Path) -> Store {
    let store = Store::create(path).unwrap();
    let data: Vec<u8> = (0..N_BLOCKS).flat_map(|block| content(block, 0)).collect();
    store.save_as(&[("a", array(N_BLOCKS, &data))], Some(&BLOCKS)).unwrap();
    store
}

/// What is written, and what readers must see of it.
struct Shared {
    /// How often each block was committed, and how often somebody began to write it.
    done: Vec<AtomicU64>,
    begun: Vec<AtomicU64>,
    is_over: AtomicBool,
    n_reads: AtomicU64,
}

impl Shared {
    fn new() -> Self {
        let zeros = || (0..N_BLOCKS).map(|_| AtomicU64::new(0)).collect();
        Shared { done: zeros(), begun: zeros(), is_over: AtomicBool::new(false), n_reads: AtomicU64::new(0) }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    /// Writes blocks by `write`, which is given the first and the bytes.
    fn write(&self, blocks: std::ops::Range<u64>, write: impl FnOnce(u64, &[u8])) {
        let data: Vec<u8> = blocks
            .clone()
            .flat_map(|block| content(block, self.begun[block as usize].fetch_add(1, Ordering::SeqCst) + 1))
            .collect();
        write(blocks.start, &data);
        for block in blocks {
            self.done[block as usize].fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Reads the blocks `first..` by `read`, and checks what is there.
    fn read(&self, first: u64, n: u64, read: impl FnOnce(&mut [u8])) {
        let least: Vec<u64> = self.done.iter().map(|done| done.load(Ordering::SeqCst)).collect();
        let mut out = vec![0xa5; n as usize * BLOCK_LEN];
        read(&mut out);
        for (block, bytes) in (first..).zip(out.chunks(BLOCK_LEN)).take_while(|(block, _)| *block < N_BLOCKS)
        {
            let count = count_of(block, bytes);
            let most = self.begun[block as usize].load(Ordering::SeqCst);
            assert!(
                (least[block as usize]..=most).contains(&count),
                "block {block} is of another time: {count}"
            );
        }
        self.n_reads.fetch_add(1, Ordering::SeqCst);
    }

    /// Reads `array` in all ways until it is over.
    fn read_on(&self, array: &Array, seed: u64) {
        let n_rows = array.n_rows();
        let mut at = seed;
        while !self.is_over() {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let first = (at >> 33) % n_rows;
            let n = ((at >> 20) % 5 + 1).min(n_rows - first);
            match (at >> 50) % 4 {
                0 => self.read(0, n_rows, |out| array.read_into(out).unwrap()),
                1 => self.read(first, n, |out| array.read_rows_into(first..first + n, out).unwrap()),
                2 => {
                    let rows: Vec<u64> = (first..first + n).collect();
                    self.read(first, n, |out| array.gather_into(&rows, out).unwrap());
                }
                _ => self.read(first, n, |out| {
                    let offset = array.header_len() + first * BLOCK_LEN as u64;
                    assert_eq!(array.read_npy_at(offset, out).unwrap(), out.len());
                }),
            }
        }
    }
}

/// Ends a test also if one of its threads panics.
struct Over<'a>(&'a Shared);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
    }
}

#[test]
fn readers_see_each_block_as_it_was_committed() {
    let (_dir, path) = temp();
    let store = create(&path);
    let shared = Shared::new();
    let open = |access| Store::open(&path, access).unwrap().array("a").unwrap();
    thread::scope(|scope| {
        // Another handle is as good as another process; clones of the writer's know of its commits at once.
        let readers = [open(Access::Read), open(Access::Write), store.array("a").unwrap()];
        for (seed, reader) in (1..).zip(readers) {
            let shared = &shared;
            scope.spawn(move || {
                let _over = Over(shared);
                shared.read_on(&reader, seed);
            });
        }
        scope.spawn(|| {
            let _over = Over(&shared);
            // Who looks the array up each time.
            while !shared.is_over() {
                let array = open(Access::Read);
                shared.read(0, array.n_rows(), |out| array.read_into(out).unwrap());
            }
        });
        let _over = Over(&shared);
        let other = Store::open(&path, Access::Write).unwrap();
        for i in 0..500_u64 {
            let (first, n) = (i * 7 % N_BLOCKS, i % 4 + 1);
            let blocks = first..(first + n).min(N_BLOCKS);
            let writer = if i % 3 == 0 { &other } else { &store };
            match i % 5 {
                0 => shared.write(blocks, |first, data| {
                    let array = writer.array("a").unwrap();
                    let at = array.header_len() + first * BLOCK_LEN as u64;
                    array.write_back(&[(at, data)]).unwrap();
                }),
                _ => shared.write(blocks.clone(), |_, data| {
                    let rows = array(blocks.end - blocks.start, data);
                    writer.replace_range("a", blocks.clone(), rows).unwrap();
                }),
            }
            match i % 20 {
                10 => writer.append(&[("a", array(1, &content(99, i)))]).unwrap(),
                15 => drop(writer.compact("a").unwrap()),
                _ => {}
            }
            if shared.is_over() {
                break;
            }
        }
    });
    rng::covered(shared.n_reads.into_inner(), "reads beside writers of compressed arrays");
    let usage = store.array("a").unwrap().usage().unwrap().unwrap();
    let most = usage.n_blocks * BLOCK_LEN as u64;
    assert!(usage.live + usage.dead < 4 * most, "space was used again: {usage:?}");
}

/// A version that was overwritten is written by those who have it open, and read by others who have it open.
#[test]
fn readers_of_a_version_that_is_gone_see_what_is_written_to_it() {
    let (_dir, path) = temp();
    let store = create(&path);
    let shared = Shared::new();
    let open = |access| Store::open(&path, access).unwrap().array("a").unwrap();
    let (writers, readers) =
        ([open(Access::Write), open(Access::Write)], [open(Access::Read), open(Access::Read)]);
    store.save(&[("a", array(1, &content(0, 0)))]).unwrap();
    thread::scope(|scope| {
        for (seed, reader) in (1..).zip(readers) {
            let shared = &shared;
            scope.spawn(move || {
                let _over = Over(shared);
                shared.read_on(&reader, seed);
            });
        }
        let _over = Over(&shared);
        for i in 0..300_u64 {
            let first = i * 5 % N_BLOCKS;
            shared.write(first..(first + i % 3 + 1).min(N_BLOCKS), |first, data| {
                let array = &writers[i as usize % 2];
                let at = array.header_len() + first * BLOCK_LEN as u64;
                if i % 2 == 0 { array.write_npy_at(at, data) } else { array.write_back(&[(at, data)]) }
                    .unwrap();
            });
            if shared.is_over() {
                break;
            }
        }
    });
    rng::covered(shared.n_reads.into_inner(), "reads beside writers of compressed arrays");
}

/// Two contents in turn, in two places of the file in turn: every second state has the same index, byte for byte. A
/// reader may find its block gone, and the state the newest again when it looks for a newer one.
#[test]
fn a_state_that_comes_back_is_not_taken_for_damage() {
    let memory = MemStorage::new();
    let store = Store::create_in(Box::new(memory.clone())).unwrap();
    let [a, b] = [content(1, 1), content(2, 1)];
    let write = |store: &Store, bytes: &[u8]| store.replace_range("a", 0..1, array(1, bytes)).unwrap();
    store.save_as(&[("a", array(1, &a))], Some(&BLOCKS)).unwrap();
    write(&store, &b);
    write(&store, &a);
    let before = blocks::table(&memory).get("a").unwrap().unwrap().blocks;
    let storage = FaultyStorage::new(Arc::new(memory.clone()));
    let reader = Store::with_storage(Box::new(storage.clone()), Access::Read).unwrap();
    let held = reader.array("a").unwrap();
    let (again, expected) = (store.clone(), a.clone());
    storage.around_next_read(
        "data_a.npkd",
        move || {
            write(&store, &b);
            assert!(store.compact("a").unwrap());
        },
        move || write(&again, &a),
    );
    let mut out = vec![0; BLOCK_LEN];
    held.read_into(&mut out).unwrap();
    assert!(out == expected);
    assert_eq!(blocks::table(&memory).get("a").unwrap().unwrap().blocks, before, "it is not what is tested");
    assert!(storage.is_done());
}
