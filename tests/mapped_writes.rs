//! Compressed arrays on real mounts: read and written in place by programs of their own.
#![cfg(feature = "fuse")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use common::mounted::*;
use common::rng::{Rng, seed};
use numpack::fuse::{MountOptions, PassthroughMode};
use numpack::store::{Access, Compression, Depth, Store, verify_with};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

const BLOCK_LEN: u64 = 64 << 10;
const N_BLOCKS: u64 = 96;
/// Numbers in as many blocks as [`N_BLOCKS`].
const N_NUMBERS: u32 = (N_BLOCKS * BLOCK_LEN / 4) as u32;

fn save_compressed(store: &Store, name: &str, len: u32, first: u32) {
    let compression = Compression { block_len: BLOCK_LEN as u32, ..Compression::default() };
    let data = numbers(first..first + len);
    store.save_as(&[(name, array(&[len.into()], &data))], Some(&compression)).unwrap();
}

fn sum_of(numbers: std::ops::Range<u32>) -> u64 {
    numbers.map(u64::from).sum()
}

// Reading

#[test]
fn each_block_is_decoded_once_however_many_read_it() {
    for threads in [2, 4] {
        let options = MountOptions { threads, decoded: Some(0), ..MountOptions::default() };
        let mount = || Mount::with(&options, |store| save_compressed(store, "a", N_NUMBERS, 0));
        let decoded_once = |m: &Mount, what: &str| {
            let n = m.mounted.as_ref().unwrap().n_decoded_blocks();
            // The kernel drops pages that look cold to it, and then a block is decoded for each of them once more. How many
            // these are nobody knows; tests/write_back.rs counts without a kernel.
            assert!((N_BLOCKS..2 * N_BLOCKS).contains(&n), "{what}: {n} of {N_BLOCKS}");
        };

        let Some(m) = mount() else { return };
        let all = fs::read(m.path("a.npy")).unwrap();
        assert_eq!(values_of(&all), (0..N_NUMBERS).collect::<Vec<_>>());
        decoded_once(&m, "one after the other");
        assert_eq!(fs::read(m.path("a.npy")).unwrap(), all);
        decoded_once(&m, "from the page cache");
        drop(m);

        let m = mount().unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut mapper = Mapper::new(&m.path("a.npy"), "rb");
                    let sum: u64 = mapper.tell(&format!("sum {HEADER_LEN}")).parse().unwrap();
                    assert_eq!(sum, sum_of(0..N_NUMBERS));
                });
            }
        });
        decoded_once(&m, "mapped, by several");
        drop(m);

        let m = mount().unwrap();
        thread::scope(|scope| {
            for client in 0..2 {
                let path = m.path("a.npy");
                scope.spawn(move || {
                    // Each number is its index.
                    let mut mapper = Mapper::new(&path, "rb");
                    assert_eq!(mapper.tell(&format!("touch {HEADER_LEN} {client} 10000")), "0");
                });
            }
        });
        decoded_once(&m, "at random");
    }
}

#[test]
fn arrays_that_are_compressed_read_as_they_do_uncompressed() {
    for mode in BOTH {
        let Some(m) = Mount::new(mode, |store| {
            save(store, "plain", 100_000, 5);
            save_compressed(store, "a", 100_000, 5);
        }) else {
            return;
        };
        assert_eq!(fs::read(m.path("a.npy")).unwrap(), fs::read(m.path("plain.npy")).unwrap());
        assert!(!m.passes_through("a.npy"));
    }
}

// Writing

fn open_for_writing(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Number `i` of an array, as the other handle of the store reads it.
fn stored(m: &Mount, i: u64) -> u32 {
    let mut bytes = [0; 4];
    m.other.array("a").unwrap().read_npy_at(HEADER_LEN + 4 * i, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn what_is_written_reaches_the_store_when_a_program_syncs_or_closes() {
    let Some(m) = Mount::new(PassthroughMode::Auto, |store| save_compressed(store, "a", N_NUMBERS, 0)) else {
        return;
    };
    let at = |i: u64| HEADER_LEN + 4 * i;
    let file = open_for_writing(&m.path("a.npy"));
    for (i, value) in [(5, 1_u32), (40_000, 2), (u64::from(N_NUMBERS) - 1, 3)] {
        file.write_all_at(&value.to_le_bytes(), at(i)).unwrap();
        file.sync_data().unwrap();
        assert_eq!(stored(&m, i), value);
        file.write_all_at(&(value + 10).to_le_bytes(), at(i)).unwrap();
        assert_eq!(m.values("a.npy").unwrap()[i as usize], value + 10);
    }
    // Another descriptor of the same file, as `dup` makes it.
    drop(file.try_clone().unwrap());
    assert_eq!((stored(&m, 5), stored(&m, 40_000)), (11, 12));
    file.write_all_at(&[7, 0, 0, 0], at(6)).unwrap();
    drop(file);
    assert_eq!(stored(&m, 6), 7);
    assert_errno(open_for_writing(&m.path("a.npy")).write_all_at(&[1; 8], 16), libc::EPERM);
    assert_errno(
        open_for_writing(&m.path("a.npy")).write_all_at(&[1; 8], at(N_NUMBERS.into()) + 1),
        libc::EFBIG,
    );

    let mut mapper = Mapper::new(&m.path("a.npy"), "r+b");
    mapper.tell(&format!("set {} 100", at(70_000)));
    mapper.tell(&format!("set {} 101", at(0)));
    assert_eq!(mapper.tell("flush"), "None");
    assert_eq!((stored(&m, 70_000), stored(&m, 0)), (100, 101));
    mapper.tell(&format!("set {} 102", at(1)));
    assert_eq!(mapper.tell("fsync"), "None");
    assert_eq!(stored(&m, 1), 102);
    mapper.tell(&format!("set {} 103", at(2)));
    mapper.end();
    // Closing a mapping does not wait for the answer.
    wait_until("the commit after the last munmap", || stored(&m, 2) == 103);
}

#[test]
fn what_nobody_syncs_is_committed_a_second_later_or_at_the_end() {
    let Some(mut m) = Mount::new(PassthroughMode::Off, |store| save_compressed(store, "a", N_NUMBERS, 0))
    else {
        return;
    };
    let file = open_for_writing(&m.path("a.npy"));
    for value in [1_u32, 2] {
        file.write_all_at(&value.to_le_bytes(), HEADER_LEN).unwrap();
        wait_until("the commit", || stored(&m, 0) == value);
    }
    let mut mapper = Mapper::new(&m.path("a.npy"), "r+b");
    drop(file);
    mapper.tell(&format!("set {} 9", HEADER_LEN + 4 * 30_000));
    mapper.end();
    m.unmount();
    assert_eq!(stored(&m, 30_000), 9);
}

#[test]
fn what_the_mount_commits_stays_in_the_page_cache_and_what_others_commit_does_not() {
    let Some(m) = Mount::new(PassthroughMode::Off, |store| save_compressed(store, "a", N_NUMBERS, 0)) else {
        return;
    };
    let n_decoded = || m.mounted.as_ref().unwrap().n_decoded_blocks();
    let mut all: Vec<u32> = (0..N_NUMBERS).collect();
    assert_eq!(m.values("a.npy").unwrap(), all);
    let file = open_for_writing(&m.path("a.npy"));
    let before = n_decoded();
    for i in (0..u64::from(N_NUMBERS)).step_by(100_000) {
        file.write_all_at(&[1, 0, 0, 0], HEADER_LEN + 4 * i).unwrap();
        all[i as usize] = 1;
        file.sync_all().unwrap();
        fs::read(m.path("a.npy")).unwrap();
    }
    assert_eq!(m.values("a.npy").unwrap(), all);
    // Otherwise it would be all blocks each of 16 times. The kernel may drop some pages by itself.
    assert!(n_decoded() < before + 5 * N_BLOCKS, "{} after {before}", n_decoded());
    wait_until("the disk's blocks are shown", || {
        file.metadata().unwrap().blocks() == fs::metadata(m.data_file("a")).unwrap().blocks()
    });

    m.other.replace("a", &[0, 50_000], array(&[2], &numbers(7..9))).unwrap();
    (all[0], all[50_000]) = (7, 8);
    assert_eq!(m.values("a.npy").unwrap(), all);
    // A mapping that is written to all the while keeps what others write in other pages.
    let mut mapper = Mapper::new(&m.path("a.npy"), "r+b");
    for i in 0..50 {
        mapper.tell(&format!("set {} {i}", HEADER_LEN + 4 * (1024 * i)));
        all[1024 * i as usize] = i as u32;
        let row = 1024 * i + 1023;
        m.other.replace("a", &[row + 1], array(&[1], &numbers(5..6))).unwrap();
        all[row as usize + 1] = 5;
    }
    // The last writes were to the same places.
    for i in 1..50 {
        mapper.tell(&format!("set {} {i}", HEADER_LEN + 4 * (1024 * i)));
        all[1024 * i as usize] = i as u32;
    }
    assert_eq!(mapper.tell("flush"), "None");
    wait_until("what others wrote", || mapper.get(HEADER_LEN + 4 * 51_200) == 5);
    assert_eq!(m.values("a.npy").unwrap(), all);
    m.other.refresh().unwrap();
    assert_eq!(stored(&m, 51_200), 5);
}

#[test]
fn more_than_is_collected_can_be_written() {
    let len = 20 << 20;
    let Some(m) = Mount::new(PassthroughMode::Off, |store| {
        let zeros = vec![0; 4 * len];
        store.save_as(&[("a", array(&[len as u64], &zeros))], Some(&Compression::default())).unwrap();
    }) else {
        return;
    };
    let mut mapper = Mapper::new(&m.path("a.npy"), "r+b");
    assert_eq!(mapper.tell(&format!("fill {HEADER_LEN} {} 7", 2 * len)), "filled");
    assert_eq!(
        mapper.tell(&format!("pwrite {} {} 7", HEADER_LEN + 2 * len as u64, 2 * len)),
        format!("{}", 2 * len)
    );
    assert_eq!(mapper.tell("flush"), "None");
    let mut bytes = vec![0; 4 * len];
    m.other.array("a").unwrap().read_into(&mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 7));
}

// Kills

/// A store that `npkfs` mounts in a process of its own.
struct Server {
    child: Child,
}

impl Server {
    fn start(store: &Path, mountpoint: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_npkfs"))
            .args(["mount", "--foreground", "-o", "passthrough=off"])
            .args([store, mountpoint])
            .env_remove("NPKFS_LOG")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains(" mounted at "), "{said:?}");
        Self { child }
    }

    /// Ends it where it stands. What is mounted goes first, so that nobody waits for its answers for ever.
    fn kill(mut self, mountpoint: &Path) {
        self.child.kill().unwrap();
        rustix::mount::unmount(mountpoint, UnmountFlags::FORCE | UnmountFlags::DETACH).unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it in good order, by unmounting or by a signal.
    fn end(mut self, mountpoint: &Path, by_signal: bool) {
        if by_signal {
            let pid = Pid::from_child(&self.child);
            rustix::process::kill_process(pid, Signal::TERM).unwrap();
        } else {
            wait_until("nobody uses the mount", || numpack::sys::mounts::unmount(mountpoint, false).is_ok());
        }
        assert!(self.child.wait().unwrap().success());
    }
}

/// What the bytes of an array may be: what was there at the last sync, or anything that was written since.
struct Model {
    synced: Vec<u8>,
    later: Vec<(Range<usize>, u8)>,
}

impl Model {
    /// The bytes as those see them who write.
    fn current(&self) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        self.later.iter().for_each(|(range, value)| bytes[range.clone()].fill(*value));
        bytes
    }

    fn sync(&mut self) {
        self.synced = self.current();
        self.later.clear();
    }

    /// Takes what is found after a kill, which may have any of the writes since the last sync.
    fn settle(&mut self, found: Vec<u8>) {
        for (i, (byte, synced)) in found.iter().zip(&self.synced).enumerate() {
            let is_later = |(range, value): &(Range<usize>, u8)| range.contains(&i) && value == byte;
            assert!(
                byte == synced || self.later.iter().any(is_later),
                "byte {i}: {byte}, synced as {synced}"
            );
        }
        *self = Self { synced: found, later: Vec::new() };
    }
}

const PAGE_LEN: usize = 4096;
/// Pages that only programs on the mount write; of the rest, every other one is written through the API.
const N_OWN_PAGES: usize = 96;
const N_PAGES: usize = 128;
/// Bytes beyond the last page.
const REST: usize = 100;

fn elements(path: &Path) -> Vec<u8> {
    let array = Store::open(path, Access::Read).unwrap().array("a").unwrap();
    let mut bytes = vec![0; array.nbytes() as usize];
    array.read_into(&mut bytes).unwrap();
    bytes
}

/// A part of a page, or of several, that the program on the mount may write.
fn random_range(rng: &mut Rng) -> Range<usize> {
    if rng.one_in(3) {
        let page = N_OWN_PAGES + 2 * rng.below(((N_PAGES - N_OWN_PAGES) / 2) as u64) as usize;
        let start = rng.below(PAGE_LEN as u64) as usize;
        let len = 1 + rng.below((PAGE_LEN - start) as u64) as usize;
        return page * PAGE_LEN + start..page * PAGE_LEN + start + len;
    }
    if rng.one_in(6) {
        return N_PAGES * PAGE_LEN + rng.below(50) as usize..N_PAGES * PAGE_LEN + REST;
    }
    let start = rng.below((N_OWN_PAGES * PAGE_LEN) as u64) as usize;
    let most = if rng.one_in(2) { 20 } else { 12 * PAGE_LEN as u64 };
    start..(start + 1 + rng.below(most) as usize).min(N_OWN_PAGES * PAGE_LEN)
}

#[test]
fn after_a_kill_everything_synced_is_there_and_each_other_range_is_old_or_new() {
    let Some(m) = Mount::new(PassthroughMode::Off, |_| {}) else { return };
    drop(m);
    let mut rng = Rng::new(seed());
    let dir: TempDir = tempfile::tempdir().unwrap();
    let (path, mnt) = (dir.path().join("data.npk"), dir.path().join("mnt"));
    fs::create_dir(&mnt).unwrap();
    let other = Store::create(&path).unwrap();
    let mut model = Model { synced: vec![0; N_PAGES * PAGE_LEN + REST], later: Vec::new() };
    let compression = Compression { block_len: 4 * PAGE_LEN as u32, ..Compression::default() };
    let shape = [model.synced.len() as u64 / 4];
    other.save_as(&[("a", array(&shape, &model.synced))], Some(&compression)).unwrap();
    let mut value = 0_u8;
    for round in 0..10 {
        let server = Server::start(&path, &mnt);
        let mut mapper = Mapper::new(&mnt.join("a.npy"), "r+b");
        let mut next = |rng: &mut Rng, model: &mut Model| {
            value = value % 255 + 1;
            let range = random_range(rng);
            model.later.push((range.clone(), value));
            let how = if rng.one_in(3) { "pwrite" } else { "fill" };
            format!("{how} {} {} {value}", HEADER_LEN as usize + range.start, range.len())
        };
        for _ in 0..25 {
            match rng.below(8) {
                0 => {
                    assert_eq!(mapper.tell(if rng.one_in(2) { "flush" } else { "fsync" }), "None");
                    model.sync();
                }
                1 => {
                    let page = N_OWN_PAGES + 1 + 2 * rng.below(((N_PAGES - N_OWN_PAGES) / 2) as u64) as usize;
                    let rows = rng.bytes(PAGE_LEN);
                    let first = (page * PAGE_LEN / 4) as u64;
                    other.replace_range("a", first..first + 1024, array(&[1024], &rows)).unwrap();
                    model.synced[page * PAGE_LEN..(page + 1) * PAGE_LEN].copy_from_slice(&rows);
                }
                2 => {
                    let seen = fs::read(mnt.join("a.npy")).unwrap();
                    assert!(seen[HEADER_LEN as usize..] == model.current(), "in round {round}");
                }
                _ => {
                    let line = next(&mut rng, &mut model);
                    let answer = mapper.tell(&line);
                    assert!(!answer.is_empty() && !answer.starts_with("errno"), "{line}: {answer}");
                }
            }
        }
        if round % 3 == 2 {
            mapper.end();
            server.end(&mnt, rng.one_in(2));
            model.sync();
            assert!(elements(&path) == model.synced, "after unmounting in round {round}");
            continue;
        }
        // In the midst of writing, or when it is done.
        let n_lines = rng.below(40);
        let lines: String = (0..n_lines).map(|_| next(&mut rng, &mut model) + "\n").collect();
        mapper.send(&lines);
        for _ in 0..rng.below(n_lines + 1) {
            mapper.answer();
        }
        server.kill(&mnt);
        mapper.end();
        let report = verify_with(&path, Depth::Elements, &mut |_, _, _| ()).unwrap();
        assert!(report.problems.is_empty(), "{report:?}");
        model.settle(elements(&path));
    }
}
