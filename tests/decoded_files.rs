//! Files that compressed arrays are decoded in, without a kernel.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use numpack::fs::{Caller, DecodePolicy, DecodedFile, DecodedFiles, Found, Fs, Ino, Invalidation, OpenFlags};
use numpack::store::{Access, Array, Compression, Dtype, NewArray, Store};
use numpack::sys::DirStorage;
use tempfile::TempDir;

mod common;
use common::FaultyStorage;

const CALLER: Caller = Caller(1);
const MIB: u64 = 1 << 20;

/// A store, a file system over it, and another handle of the store, as another process has it.
struct Fixture {
    _dir: TempDir,
    other: Store,
    fs: Fs,
    faults: FaultyStorage,
    told: Arc<Mutex<Vec<Invalidation>>>,
    files: DecodedFiles,
}

impl Fixture {
    fn new(limit: u64, fill: impl FnOnce(&Store)) -> Self {
        Self::with(DecodePolicy { limit, max_files: 100, min_len: 0, first_open_len: MIB }, fill)
    }

    fn with(policy: DecodePolicy, fill: impl FnOnce(&Store)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("data.npk");
        let other = Store::create(&path).unwrap();
        fill(&other);
        let faults = FaultyStorage::new(Arc::new(DirStorage::open(&path).unwrap()));
        let store = Store::with_storage(Box::new(faults.clone()), Access::Write).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        let fs = Fs::new(store, false, move |invalidation| tell.lock().unwrap().push(invalidation)).unwrap();
        Self { _dir: dir, other, fs, faults, told, files: DecodedFiles::new(policy) }
    }

    fn ino(&self, name: &str) -> Ino {
        self.fs.lookup(Ino::ROOT, OsStr::new(name), CALLER).unwrap().ino
    }

    /// Opens and closes a file.
    fn array(&self, name: &str) -> (Ino, Array) {
        let ino = self.ino(name);
        let flags = OpenFlags { write: false, truncate: false };
        let opened = self.fs.open(ino, flags, CALLER).unwrap();
        self.fs.revalidate(ino);
        self.fs.release(opened.fh);
        (ino, opened.array)
    }

    fn bring(&self, name: &str) -> Option<Arc<DecodedFile>> {
        let (ino, array) = self.array(name);
        self.files.bring(&self.fs, ino, &array)
    }

    fn find(&self, name: &str) -> Found {
        let (ino, array) = self.array(name);
        self.files.find(&self.fs, ino, &array)
    }

    /// Does what is to be done about commits, in order.
    fn follow(&self) {
        self.fs.sync().unwrap();
        for invalidation in std::mem::take(&mut *self.told.lock().unwrap()) {
            match invalidation {
                Invalidation::Content { ino, .. } => {
                    self.files.follow(&self.fs, ino);
                    self.fs.show_length(ino);
                    self.fs.settle(ino);
                    self.files.show_header(&self.fs, ino);
                }
                Invalidation::Attr { .. } => self.files.tidy(&self.fs),
                _ => {}
            }
        }
    }
}

fn array<'a>(shape: &[u64], data: &'a [u8]) -> NewArray<'a> {
    let dtype = Dtype::parse_python("'<u4'").unwrap();
    NewArray { dtype, shape: shape.to_vec(), fortran_order: false, data }
}

fn save(store: &Store, name: &str, data: &[u8]) {
    let compression = Compression { block_len: 4096, ..Compression::default() };
    store.save_as(&[(name, array(&[data.len() as u64 / 4], data))], Some(&compression)).unwrap();
}

/// `n` elements that compress, different ones for each `seed`.
fn numbers(n: usize, seed: u32) -> Vec<u8> {
    (0..n as u32).flat_map(|i| (seed * 1_000_003 + i / 2).to_le_bytes()).collect()
}

fn contents(file: &DecodedFile) -> Vec<u8> {
    let file = std::fs::File::from(file.fd().unwrap().as_fd().try_clone_to_owned().unwrap());
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn npy(store: &Store, name: &str) -> Vec<u8> {
    let array = store.array(name).unwrap();
    let mut bytes = vec![0; array.npy_len() as usize];
    array.read_npy_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_decoded_file_follows_whatever_is_done_to_the_array() {
    let f = Fixture::new(100 * MIB, |store| save(store, "a", &numbers(280_000, 0)));
    let mut seed = 3;
    let mut random = |end: usize| {
        seed = u64::wrapping_mul(seed, 0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (seed >> 33) as usize % end
    };
    let ino = f.ino("a.npy");
    let mut file = f.bring("a.npy").unwrap();
    for round in 0..40 {
        let n = (f.other.array("a").unwrap().nbytes() / 4) as usize;
        let at = random(n);
        let new = numbers(1 + random((n - at).min(5000)), round);
        let len = new.len() as u64 / 4;
        match random(4) {
            0 => f.other.replace_range("a", at as u64..at as u64 + len, array(&[len], &new)).unwrap(),
            1 => f.other.append(&[("a", array(&[len], &new))]).unwrap(),
            2 => {
                // Through the mount, by a program that has it open for writing.
                let flags = OpenFlags { write: true, truncate: false };
                let opened = f.fs.open(ino, flags, CALLER).unwrap();
                let offset = opened.array.header_len() + 4 * at as u64;
                let decoded = file.write();
                let end = (opened.array.npy_len() - offset).min(new.len() as u64) as usize;
                f.fs.write(opened.fh, offset, &new[..end], false).unwrap();
                decoded.write(&f.fs, offset, &new[..end]);
                drop(decoded);
                let mut read = vec![0; end];
                let all = contents(&file);
                read.copy_from_slice(&all[offset as usize..][..end]);
                assert!(read == new[..end], "{round}");
                f.fs.fsync(opened.fh).unwrap();
                f.fs.release(opened.fh);
            }
            _ => {
                // Nobody has it for a while.
                drop(file);
                f.other.replace_range("a", at as u64..at as u64 + len, array(&[len], &new)).unwrap();
                f.follow();
                file = f.bring("a.npy").unwrap();
            }
        }
        f.follow();
        assert!(!file.is_behind());
        assert!(contents(&file) == npy(&f.other, "a"), "{round}");
        assert_eq!(f.files.len(), f.other.array("a").unwrap().npy_len());
    }
}

#[test]
fn what_is_not_committed_stays_when_others_change_the_same_block() {
    for through_other in [false, true] {
        let f = Fixture::new(10 * MIB, |store| save(store, "a", &numbers(10_000, 0)));
        let file = f.bring("a.npy").unwrap();
        let first = f.ino("a.npy");
        if through_other {
            f.fs.lead_to_other(first, CALLER);
        }
        let ino = f.ino("a.npy");
        assert_eq!(ino != first, through_other);
        let opened = f.fs.open(ino, OpenFlags { write: true, truncate: false }, CALLER).unwrap();
        let offset = opened.array.header_len() + 400;
        let decoded = file.write();
        f.fs.write(opened.fh, offset, &[7; 4], false).unwrap();
        decoded.write(&f.fs, offset, &[7; 4]);
        drop(decoded);

        // The block is decoded again, and what is stored of it has nothing of that yet.
        f.other.replace_range("a", 102..103, array(&[1], &[8; 4])).unwrap();
        f.follow();
        assert!(f.fs.is_uncommitted(opened.fh) && !file.is_behind());
        let mut expected = npy(&f.other, "a");
        expected[offset as usize..][..4].copy_from_slice(&[7; 4]);
        assert!(contents(&file) == expected, "{through_other}");

        f.fs.fsync(opened.fh).unwrap();
        f.follow();
        assert!(npy(&f.other, "a") == expected && contents(&file) == expected, "{through_other}");
        f.fs.release(opened.fh);
    }
}

#[test]
fn the_header_comes_last() {
    let f = Fixture::new(MIB, |store| save(store, "a", &numbers(1000, 0)));
    let file = f.bring("a.npy").unwrap();
    let before = contents(&file);
    let (ino, _) = f.array("a.npy");
    f.other.append(&[("a", array(&[500], &numbers(500, 1)))]).unwrap();
    f.fs.sync().unwrap();
    f.files.follow(&f.fs, ino);
    f.files.show_header(&f.fs, ino);
    let now = contents(&file);
    assert!(now[..before.len()] == before && now.len() == before.len() + 2000);
    assert_eq!(f.fs.getattr(ino).unwrap().size, before.len() as u64);
    // Whoever opens it meanwhile finds the same.
    let again = f.bring("a.npy").unwrap();
    assert!(contents(&again) == now);
    f.follow();
    assert!(contents(&file) == npy(&f.other, "a"));
    assert_eq!(f.fs.getattr(ino).unwrap().size, before.len() as u64 + 2000);
}

#[test]
fn what_cannot_be_decoded_is_given_up_until_it_changes() {
    let f = Fixture::new(10 * MIB, |store| save(store, "a", &numbers(10_000, 0)));
    let n_before = f.faults.calls().len();
    f.bring("a.npy").unwrap();
    f.other.replace_range("a", 0..1, array(&[1], &numbers(1, 9))).unwrap();
    let n_calls = f.faults.calls().len() - n_before;
    assert!(n_calls >= 3, "{:?}", f.faults.calls());

    // A new mount, for each of the calls that can fail.
    for n in 1..=n_calls {
        let f = Fixture::new(10 * MIB, |store| save(store, "a", &numbers(10_000, 0)));
        f.faults.fail_at(f.faults.calls().len() + n, io::Error::from_raw_os_error(libc::ENOSPC));
        assert!(f.bring("a.npy").is_none(), "{n}: {:?}", f.faults.failed_call());
        assert_eq!(f.files.len(), 0);
        assert!(matches!(f.find("a.npy"), Found::Nothing), "{n}");
        f.other.replace_range("a", 0..1, array(&[1], &numbers(1, 9))).unwrap();
        f.follow();
        assert!(matches!(f.find("a.npy"), Found::Wanted), "{n}");
        assert!(contents(&f.bring("a.npy").unwrap()) == npy(&f.other, "a"));
    }
}

#[test]
fn a_file_that_could_not_follow_is_behind_until_it_can() {
    let f = Fixture::new(10 * MIB, |store| save(store, "a", &numbers(10_000, 0)));
    let file = f.bring("a.npy").unwrap();
    f.other.replace_range("a", 5000..5001, array(&[1], &numbers(1, 9))).unwrap();
    f.faults.fail_at(f.faults.calls().len() + 1, io::Error::from_raw_os_error(libc::ENOSPC));
    f.follow();
    assert!(file.is_behind());
    assert!(matches!(f.find("a.npy"), Found::Wanted));
    f.bring("a.npy").unwrap();
    assert!(!file.is_behind() && contents(&file) == npy(&f.other, "a"));

    // What a program wrote is not in any index yet: all of it is decoded again.
    f.faults.fail_at(f.faults.calls().len() + 1, io::Error::from_raw_os_error(libc::EIO));
    file.write().write(&f.fs, 4096 + 400, &[7; 4]);
    assert!(file.is_behind());
    f.bring("a.npy").unwrap();
    assert!(!file.is_behind() && contents(&file) == npy(&f.other, "a"));
}

#[test]
fn what_was_not_used_for_longest_makes_room() {
    let len = 4096 + 40_000;
    let f = Fixture::new(2 * len + 100, |store| {
        ["a", "b", "c", "d"].iter().for_each(|name| save(store, name, &numbers(10_000, 0)));
    });
    let current = |name| matches!(f.find(name), Found::Current(_));
    for name in ["a.npy", "b.npy"] {
        f.bring(name).unwrap();
    }
    assert!(current("a.npy") && f.files.len() == 2 * len);
    f.bring("c.npy").unwrap();
    assert!(current("a.npy") && !current("b.npy") && current("c.npy"));
    // What is in use stays; where nothing else is, there is no room.
    let a = f.bring("a.npy").unwrap();
    f.bring("b.npy").unwrap();
    let b = f.bring("b.npy").unwrap();
    assert!(f.bring("c.npy").is_none() && f.bring("d.npy").is_none());
    assert!(current("a.npy") && current("b.npy") && f.files.len() == 2 * len);
    // It may grow, though, and what is not in use goes for that.
    drop(b);
    f.other.append(&[("a", array(&[100], &numbers(100, 0)))]).unwrap();
    f.follow();
    assert!(contents(&a) == npy(&f.other, "a"));
    assert_eq!(f.files.len(), len + 400);
    f.other.append(&[("a", array(&[20_000], &numbers(20_000, 0)))]).unwrap();
    f.follow();
    assert!(contents(&a) == npy(&f.other, "a"));
    drop(a);
    // It is too large by now.
    assert!(matches!(f.find("a.npy"), Found::Nothing));
    f.bring("b.npy").unwrap();
    assert_eq!(f.files.len(), len);
}

#[test]
fn versions_that_are_gone_are_dropped_when_nobody_uses_them() {
    let f = Fixture::new(MIB, |store| {
        ["a", "b", "c"].iter().for_each(|name| save(store, name, &numbers(1000, 0)));
    });
    let used = f.bring("a.npy").unwrap();
    let old = contents(&used);
    f.bring("b.npy").unwrap();
    f.bring("c.npy").unwrap();
    save(&f.other, "a", &numbers(10, 1));
    f.other.remove(&["b"]).unwrap();
    f.other.drop_rows(&["c"], &[5]).unwrap();
    f.follow();
    assert_eq!(f.files.len(), 4096 + 4000);
    assert!(f.files.has_leftover() && contents(&used) == old);
    drop(used);
    f.files.tidy(&f.fs);
    assert!(!f.files.has_leftover() && f.files.is_empty());
    assert_eq!(f.files.len(), 0);
}

#[test]
fn small_arrays_are_wanted_at_once_and_large_ones_when_they_come_again_after_much_was_read() {
    let f = Fixture::new(10 * MIB, |store| {
        save(store, "small", &numbers(1000, 0));
        save(store, "large", &numbers(300_000, 0));
        save(store, "huge", &numbers(3_000_000, 0));
        store.save(&[("plain", array(&[1000], &numbers(1000, 0)))]).unwrap();
        save(store, "dropped", &numbers(1000, 0));
        store.drop_rows(&["dropped"], &[3]).unwrap();
    });
    assert!(matches!(f.find("small.npy"), Found::Wanted));
    for _ in 0..3 {
        assert!(matches!(f.find("large.npy"), Found::Nothing));
    }
    f.files.note_read(f.ino("large.npy"), 599_999);
    assert!(matches!(f.find("large.npy"), Found::Nothing));
    f.files.note_read(f.ino("large.npy"), 1);
    assert!(matches!(f.find("large.npy"), Found::Wanted));
    for name in ["huge.npy", "plain.npy", "dropped.npy"] {
        for _ in 0..3 {
            assert!(matches!(f.find(name), Found::Nothing), "{name}");
        }
    }
}

#[test]
fn arrays_of_any_size_and_order_can_be_decoded() {
    let data = numbers(60_000, 5);
    let f = Fixture::new(10 * MIB, |store| {
        let dtype = Dtype::parse_python("'>u4'").unwrap();
        let new = NewArray { dtype, shape: vec![300, 200], fortran_order: true, data: &data };
        let compression = Compression { block_len: 4096, ..Compression::default() };
        store.save_as(&[("fortran", new)], Some(&compression)).unwrap();
        store.save_as(&[("scalar", array(&[], &data[..4]))], Some(&compression)).unwrap();
        store.save_as(&[("empty", array(&[0], &[]))], Some(&compression)).unwrap();
        save(store, "block", &data[..4096]);
        save(store, "zeros", &[0; 20_000]);
    });
    for name in ["fortran", "scalar", "empty", "block", "zeros"] {
        assert!(contents(&f.bring(&format!("{name}.npy")).unwrap()) == npy(&f.other, name), "{name}");
    }
}

#[test]
fn there_are_only_so_many_files_and_none_of_tiny_arrays() {
    let policy = DecodePolicy { limit: MIB, max_files: 2, min_len: 1000, first_open_len: MIB };
    let f = Fixture::with(policy, |store| {
        ["a", "b", "c"].iter().for_each(|name| save(store, name, &numbers(1000, 0)));
        save(store, "tiny", &numbers(249, 0));
    });
    for name in ["a.npy", "b.npy", "c.npy"] {
        assert!(matches!(f.find(name), Found::Wanted));
        f.bring(name).unwrap();
    }
    assert_eq!(f.files.len(), 2 * (4096 + 4000));
    let _used = [f.bring("a.npy"), f.bring("b.npy")].map(Option::unwrap);
    assert!(f.bring("c.npy").is_none());
    for _ in 0..2 {
        assert!(matches!(f.find("tiny.npy"), Found::Nothing));
    }
}
