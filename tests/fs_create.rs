//! Making files and folders without a kernel: one test per paragraph of "Making files" in spec/npkfs-semantics.md, for
//! arrays that are compressed as they are written, and for those that are not.

mod common;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use common::FaultyStorage;
use numpack::format::npy;
use numpack::fs::{
    Attr, Caller, Fh, FileKind, Fs, FsError, Ino, Invalidation, NewFile, OpenFlags, Rename, SetAttr, SetMode,
};
use numpack::store::{Access, Compression, Dtype, NewArray, Store};
use numpack::sys::DirStorage;
use tempfile::TempDir;

const ME: Caller = Caller(1);
const YOU: Caller = Caller(2);
const READ: OpenFlags = OpenFlags { write: false, truncate: false };
const WRITE: OpenFlags = OpenFlags { write: true, truncate: false };
const EMPTY: OpenFlags = OpenFlags { write: true, truncate: true };

macro_rules! in_both_ways {
    ($($name:ident)*) => {
        mod uncompressed {
            $(#[test] fn $name() { super::COMPRESSED.set(false); super::$name(); })*
        }
        mod compressed {
            $(#[test] fn $name() { super::COMPRESSED.set(true); super::$name(); })*
        }
    };
}

in_both_ways! {
    a_new_file_is_pending_until_it_is_whole_and_closed
    a_whole_file_named_npy_becomes_an_array_when_it_is_closed
    what_is_set_on_a_pending_file_is_set_on_the_array
    with_holes_or_mappings_the_last_close_makes_the_array
    what_is_not_whole_waits
    what_is_no_array_is_refused_at_close_and_kept
    a_file_of_another_name_waits_to_be_renamed
    emptying_an_array_makes_a_new_version_of_it
    those_who_make_one_name_at_a_time_make_a_version_each
    a_file_of_another_name_is_one_file_for_everybody_who_has_it_open
    a_file_that_became_an_array_is_a_file_of_its_own_when_it_is_changed
    removing_a_pending_file_removes_what_it_hides
    folders_are_made_and_removed
    new_files_belong_to_who_makes_them
    pending_files_go_with_their_folder
    fallocate_reserves_space
    fsync_of_a_whole_file_makes_the_array
    what_is_pending_at_the_end_is_put_into_lost_and_found
    a_full_disk_changes_nothing
    a_large_write_may_be_answered_before_it_is_done
    what_cannot_be_committed_is_not_lost
    a_writer_at_work_is_waited_for
    a_read_only_mount_makes_nothing
    a_store_that_is_taken_away_leaves_errors
    new_names_must_be_ones_that_something_is_shown_under
}

thread_local! {
    /// Whether the mounts of this test compress.
    static COMPRESSED: Cell<bool> = const { Cell::new(false) };
}

/// A store, a file system over it, and another handle of the store, as another process has it.
struct Fixture {
    _dir: TempDir,
    path: PathBuf,
    other: Store,
    fs: Fs,
    faults: FaultyStorage,
    told: Arc<Mutex<Vec<Invalidation>>>,
}

impl Fixture {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(fill: impl FnOnce(&Store)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.npk");
        let other = Store::create(&path).unwrap();
        fill(&other);
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        let faults = FaultyStorage::new(Arc::new(DirStorage::open(&path).unwrap()));
        let store = Store::with_storage(Box::new(faults.clone()), Access::Write).unwrap();
        let mut fs =
            Fs::new(store, false, move |invalidation| tell.lock().unwrap().push(invalidation)).unwrap();
        let small = Compression { level: 1, block_len: 4096, filter: None };
        fs.set_compression(COMPRESSED.get().then_some(small));
        Self { _dir: dir, path, other, fs, faults, told }
    }

    fn lookup_by(&self, caller: Caller, path: &str) -> Result<Attr, FsError> {
        let mut attr = self.fs.getattr(Ino::ROOT)?;
        for name in path.split('/') {
            attr = self.fs.lookup(attr.ino, OsStr::new(name), caller)?;
        }
        Ok(attr)
    }

    fn lookup(&self, path: &str) -> Result<Attr, FsError> {
        self.lookup_by(ME, path)
    }

    fn split(&self, path: &str) -> (Ino, String) {
        match path.rsplit_once('/') {
            Some((folder, name)) => (self.lookup(folder).unwrap().ino, name.to_owned()),
            None => (Ino::ROOT, path.to_owned()),
        }
    }

    fn create_new(&self, path: &str) -> Result<Fh, FsError> {
        let (parent, name) = self.split(path);
        let new = NewFile { write: true, truncate: true, exclusive: true, ..NewFile::default() };
        self.fs.create(parent, OsStr::new(&name), new, ME).map(|(_, fh)| fh)
    }

    fn open_ino(&self, ino: Ino, flags: OpenFlags, caller: Caller) -> Result<Fh, FsError> {
        if ino.is_pending() {
            self.fs.open_pending(ino, flags, caller)
        } else {
            self.fs.open(ino, flags, caller).map(|opened| opened.fh)
        }
    }

    /// As the kernel opens: once more when the name was to be looked up again.
    fn open_by(&self, caller: Caller, path: &str, flags: OpenFlags) -> Result<Fh, FsError> {
        match self.open_ino(self.lookup_by(caller, path)?.ino, flags, caller) {
            Err(FsError::Stale { .. }) => self.open_ino(self.lookup_by(caller, path)?.ino, flags, caller),
            result => result,
        }
    }

    fn open(&self, path: &str, flags: OpenFlags) -> Result<Fh, FsError> {
        self.open_by(ME, path, flags)
    }

    /// As `open(path, "wb")`.
    fn create(&self, path: &str) -> Fh {
        match self.lookup(path) {
            Ok(_) => self.open(path, EMPTY).unwrap(),
            Err(_) => self.create_new(path).unwrap(),
        }
    }

    fn flush(&self, fh: Fh) -> Result<(), FsError> {
        if self.fs.flush(fh)? { self.fs.finish(fh) } else { Ok(()) }
    }

    fn release(&self, fh: Fh) {
        if let Some(closed) = self.fs.release(fh) {
            self.fs.finish_closed(closed);
        }
    }

    fn close(&self, fh: Fh) -> Result<(), FsError> {
        let flushed = self.flush(fh);
        self.release(fh);
        flushed
    }

    fn write(&self, fh: Fh, offset: u64, data: &[u8]) -> Result<(), FsError> {
        self.fs.write(fh, offset, data, false).map(drop)
    }

    /// As `cp`: in pieces, one after the other.
    fn put(&self, path: &str, bytes: &[u8]) -> Result<(), FsError> {
        let fh = self.create(path);
        for (i, piece) in bytes.chunks(100).enumerate() {
            self.write(fh, 100 * i as u64, piece)?;
        }
        self.close(fh)
    }

    fn read(&self, fh: Fh) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let n = self
                .fs
                .read(fh, out.len() as u64, 1001, |bytes| {
                    out.extend_from_slice(bytes);
                    bytes.len()
                })
                .unwrap();
            if n == 0 {
                return out;
            }
        }
    }

    fn content(&self, path: &str) -> Vec<u8> {
        let fh = self.open(path, READ).unwrap();
        let bytes = self.read(fh);
        self.release(fh);
        bytes
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), FsError> {
        self.rename_how(from, to, Rename::Replace)
    }

    fn rename_how(&self, from: &str, to: &str, how: Rename) -> Result<(), FsError> {
        let ((parent, name), (new_parent, new_name)) = (self.split(from), self.split(to));
        self.fs.rename(parent, OsStr::new(&name), new_parent, OsStr::new(&new_name), how)
    }

    fn unlink(&self, path: &str) -> Result<(), FsError> {
        let (parent, name) = self.split(path);
        self.fs.unlink(parent, OsStr::new(&name))
    }

    fn mkdir(&self, path: &str) -> Result<Attr, FsError> {
        let (parent, name) = self.split(path);
        self.fs.mkdir(parent, OsStr::new(&name), SetAttr::default())
    }

    fn rmdir(&self, path: &str) -> Result<(), FsError> {
        let (parent, name) = self.split(path);
        self.fs.rmdir(parent, OsStr::new(&name))
    }

    /// All names in a folder.
    fn list(&self, path: &str) -> BTreeSet<String> {
        let ino = if path.is_empty() { Ino::ROOT } else { self.lookup(path).unwrap().ino };
        let fh = self.fs.opendir(ino).unwrap();
        let mut names = Vec::new();
        self.fs
            .readdirplus(ino, fh, 2, |_, entry, attr| {
                assert_eq!((entry.ino, entry.kind), (attr.ino, attr.kind));
                self.fs.forget(attr.ino, 1);
                names.push(entry.name.to_string());
                true
            })
            .unwrap();
        self.fs.releasedir(fh);
        let unique: BTreeSet<_> = names.iter().cloned().collect();
        assert_eq!(unique.len(), names.len());
        unique
    }

    /// The arrays that the store has, as another process sees them.
    fn stored(&self) -> BTreeSet<String> {
        self.other.refresh().unwrap();
        self.other.names().iter().map(ToString::to_string).collect()
    }

    fn stored_bytes(&self, name: &str) -> Vec<u8> {
        let array = self.other.array(name).unwrap();
        let mut bytes = vec![0; array.npy_len() as usize];
        array.read_npy_at(0, &mut bytes).unwrap();
        bytes
    }

    /// Names and contents of what was put aside.
    fn lost(&self) -> Vec<(String, Vec<u8>)> {
        let Ok(entries) = std::fs::read_dir(self.path.join("lost+found")) else { return Vec::new() };
        let mut lost: Vec<_> = entries
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
            .collect();
        lost.sort();
        lost
    }
}

/// A set of names.
fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// A `.npy` file of `len` numbers as `numpy.save` writes it: with a header of 128 bytes.
fn npy(len: u32, first: u32) -> Vec<u8> {
    let mut bytes = header("'<u4'", &format!("({len},)"));
    bytes.extend((first..first + len).flat_map(u32::to_le_bytes));
    bytes
}

fn header(descr: &str, shape: &str) -> Vec<u8> {
    let text = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}");
    let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    bytes.extend_from_slice(format!("{text:<117}\n").as_bytes());
    assert_eq!(bytes.len(), 128);
    bytes
}

fn save(store: &Store, name: &str, len: u32, first: u32) {
    let data: Vec<u8> = (first..first + len).flat_map(u32::to_le_bytes).collect();
    let dtype = Dtype::parse_python("'<u4'").unwrap();
    let array = NewArray { dtype, shape: vec![len.into()], fortran_order: false, data: &data };
    store.save(&[(name, array)]).unwrap();
}

fn values(npy: &[u8]) -> Vec<u32> {
    let header_len = npy::parse(npy).unwrap().header_len as usize;
    npy[header_len..].chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[track_caller]
fn assert_errno<T: std::fmt::Debug>(result: Result<T, FsError>, errno: i32) {
    let error = result.unwrap_err();
    assert_eq!(error.errno(), errno, "{error}");
}

fn a_new_file_is_pending_until_it_is_whole_and_closed() {
    let f = Fixture::with(|store| save(store, "g/a", 1, 0));
    let bytes = npy(1000, 0);
    let fh = f.create_new("g/b.npy").unwrap();
    let attr = f.lookup("g/b.npy").unwrap();
    assert!(attr.ino.is_pending());
    assert_eq!((attr.kind, attr.size, attr.nlink), (FileKind::File, 0, 1));
    for (i, piece) in bytes.chunks(777).enumerate() {
        f.write(fh, 777 * i as u64, piece).unwrap();
        assert_eq!(f.lookup("g/b.npy").unwrap().size, (777 * i + piece.len()) as u64);
    }
    assert_eq!(f.list("g"), names(["a.npy", "b.npy"]));
    assert_eq!(f.content("g/b.npy"), bytes);
    // Compressed, it may be in memory still.
    assert!(COMPRESSED.get() || f.lookup("g/b.npy").unwrap().blocks > 0);
    // Nobody else sees it, and nothing of it is in the store's folder.
    assert_eq!(f.stored(), names(["g/a"]));
    let files = std::fs::read_dir(&f.path).unwrap().count();
    f.close(fh).unwrap();
    assert_eq!(f.stored(), names(["g/a", "g/b"]));
    assert_eq!(std::fs::read_dir(&f.path).unwrap().count(), files + 1);

    // As any file: it can be cut, and has holes.
    let fh = f.create_new("c.npy").unwrap();
    let ino = f.lookup("c.npy").unwrap().ino;
    f.write(fh, 10, b"abc").unwrap();
    assert_eq!(f.read(fh), [&[0; 10][..], b"abc"].concat());
    let set = |size| f.fs.setattr(ino, SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
    assert_eq!(set(11).size, 11);
    assert_eq!(set(13).size, 13);
    assert_eq!(f.read(fh)[10..], *b"a\0\0");
    let reader = f.open("c.npy", READ).unwrap();
    assert_errno(f.write(reader, 0, b"x"), libc::EBADF);
    assert_errno(f.create_new("c.npy"), libc::EEXIST);
    assert_errno(f.create_new("g"), libc::EEXIST);
    assert_errno(f.fs.create(ino, OsStr::new("x"), NewFile::default(), ME), libc::ENOTDIR);
    assert_errno(f.fs.opendir(ino), libc::ENOTDIR);
}

fn a_whole_file_named_npy_becomes_an_array_when_it_is_closed() {
    let f = Fixture::new();
    let bytes = npy(1000, 5);
    let fh = f.create_new("a.npy").unwrap();
    let pending = f.lookup("a.npy").unwrap();
    let reader = f.open("a.npy", READ).unwrap();
    f.write(fh, 0, &bytes).unwrap();
    f.told.lock().unwrap().clear();
    let before = f.other.generation().0;
    // Before anybody who comes afterwards can miss it.
    f.flush(fh).unwrap();
    assert_eq!(f.stored(), names(["a"]));
    assert_eq!(f.other.generation().0, before + 1);
    assert_eq!(f.stored_bytes("a"), bytes);
    assert_eq!(f.other.array("a").unwrap().codec().is_some(), COMPRESSED.get());
    let entry = Invalidation::Entry { parent: Ino::ROOT, name: "a.npy".into() };
    assert!(f.told.lock().unwrap().contains(&entry));
    let array = f.lookup("a.npy").unwrap();
    assert!(!array.ino.is_pending());
    assert_eq!((array.size, array.mtime), (bytes.len() as u64, pending.mtime.max(array.mtime)));
    // Those who have it open go on.
    f.release(fh);
    assert_eq!(f.read(reader), bytes);
    assert_eq!(f.fs.getattr(pending.ino).unwrap().nlink, 0);
    f.release(reader);
    assert_eq!(f.content("a.npy"), bytes);
    assert_errno(f.fs.open_pending(pending.ino, READ, ME), libc::ESTALE);
    f.fs.forget(pending.ino, 100);
    assert_errno(f.fs.getattr(pending.ino), libc::ESTALE);

    const TEXT: &[u8] = b"{'descr': '|u1', 'fortran_order': True, 'shape': (1, 2)}    \n";
    assert_eq!(TEXT.len(), 0x3d);
    // Of any dtype, shape and version that NumPy reads without pickle.
    let odd = [
        header("'<f4'", "()").into_iter().chain([0; 4]).collect(),
        header("'>c16'", "(0, 3)"),
        header("[('x', '<i2'), ('y', 'S3', (2,))]", "(2,)").into_iter().chain([7; 16]).collect(),
        [&b"\x93NUMPY\x02\x00\x3d\x00\x00\x00"[..], TEXT, b"12"].concat(),
    ];
    for (i, bytes) in odd.iter().enumerate() {
        let path = format!("odd{i}.npy");
        f.put(&path, bytes).unwrap();
        assert!(!f.lookup(&path).unwrap().ino.is_pending(), "{path}");
        assert_eq!((&f.content(&path), &f.stored_bytes(&format!("odd{i}"))), (bytes, bytes));
    }
}

fn with_holes_or_mappings_the_last_close_makes_the_array() {
    let f = Fixture::new();
    // As `open_memmap(mode="w+")`: the header, closed; the last byte, closed; pages of a mapping; its end.
    let bytes = npy(5000, 1);
    let fh = f.create_new("a.npy").unwrap();
    f.write(fh, 0, &bytes[..128]).unwrap();
    f.close(fh).unwrap();
    assert_eq!(f.content("a.npy"), bytes[..128]);
    let fh = f.open("a.npy", WRITE).unwrap();
    f.write(fh, bytes.len() as u64 - 1, &[0]).unwrap();
    f.flush(fh).unwrap();
    assert_eq!(f.stored(), names([]));
    for (i, page) in bytes.chunks(4096).enumerate() {
        let page: Vec<u8> = page.iter().copied().chain([0; 4096]).take(4096).collect();
        f.fs.write(fh, 4096 * i as u64, &page, true).unwrap();
    }
    // What lies beyond the end of the last page is none of the file.
    assert_eq!(f.lookup("a.npy").unwrap().size, bytes.len() as u64);
    f.flush(fh).unwrap();
    f.fs.fsync(fh).unwrap();
    assert_eq!(f.stored(), names([]));
    f.release(fh);
    assert_eq!(f.stored(), names(["a"]));
    assert_eq!(f.stored_bytes("a"), bytes);

    // Two who write halves.
    let bytes = npy(100, 1);
    let one = f.create_new("b.npy").unwrap();
    let two = f.open("b.npy", WRITE).unwrap();
    f.write(two, 300, &bytes[300..]).unwrap();
    f.close(two).unwrap();
    f.write(one, 0, &bytes[..300]).unwrap();
    f.flush(one).unwrap();
    assert_eq!(f.stored(), names(["a"]));
    f.release(one);
    assert_eq!(f.stored_bytes("b"), bytes);
}

fn what_is_not_whole_waits() {
    let f = Fixture::new();
    let bytes = npy(100, 1);
    for len in (0..bytes.len()).filter(|len| *len < 130 || len % 50 == 0) {
        f.put("a.npy", &bytes[..len]).unwrap();
        assert!(f.lookup("a.npy").unwrap().ino.is_pending());
        assert_eq!(f.content("a.npy"), bytes[..len]);
        assert_eq!(f.stored(), names([]));
        let fh = f.open("a.npy", WRITE).unwrap();
        f.write(fh, len as u64, &bytes[len..]).unwrap();
        f.close(fh).unwrap();
        assert_eq!(f.stored_bytes("a"), bytes);
        f.unlink("a.npy").unwrap();
    }
}

fn what_is_no_array_is_refused_at_close_and_kept() {
    let f = Fixture::with(|store| save(store, "old", 3, 0));
    let too_long = [npy(10, 0), b"x".to_vec()].concat();
    let objects = [header("'|O'", "(1,)"), vec![0; 8]].concat();
    let text = b"three words".to_vec();
    for (name, bytes) in [("long", &too_long), ("objects", &objects), ("text", &text), ("old", &text)] {
        let path = format!("{name}.npy");
        let fh = f.create(&path);
        f.write(fh, 0, bytes).unwrap();
        // numpy.save closes a duplicate first, and looks at the second answer only.
        assert_errno(f.flush(fh), libc::EINVAL);
        assert_errno(f.flush(fh), libc::EINVAL);
        f.release(fh);
        assert!(f.lookup(&path).unwrap().ino.is_pending());
        assert_eq!(&f.content(&path), bytes);
    }
    assert_eq!(f.stored(), names(["old"]));
    assert_eq!(values(&f.stored_bytes("old")), [0, 1, 2]);
    // It can be put right.
    let fh = f.open("long.npy", WRITE).unwrap();
    let ino = f.lookup("long.npy").unwrap().ino;
    f.fs.setattr(ino, SetAttr { size: Some(168), ..SetAttr::default() }).unwrap();
    f.close(fh).unwrap();
    f.put("text.npy", &npy(1, 7)).unwrap();
    assert_eq!(f.stored(), names(["long", "old", "text"]));
}

fn a_file_of_another_name_waits_to_be_renamed() {
    let f = Fixture::with(|store| save(store, "b", 3, 0));
    let bytes = npy(100, 1);
    f.put(".a.npy.Xy12", &bytes).unwrap();
    f.put("notes.txt", b"plain").unwrap();
    assert_eq!(f.stored(), names(["b"]));
    assert_eq!(f.list(""), names([".a.npy.Xy12", "b.npy", "notes.txt"]));
    f.rename(".a.npy.Xy12", "a.npy").unwrap();
    assert_eq!(f.stored_bytes("a"), bytes);
    assert!(!f.lookup("a.npy").unwrap().ino.is_pending());
    f.rename("notes.txt", "notes.bak").unwrap();
    assert_eq!(f.content("notes.bak"), b"plain");

    // Over an array: one commit. Whoever has it open keeps it.
    let old = f.open("b.npy", READ).unwrap();
    f.put("tmp", &bytes).unwrap();
    assert_errno(f.rename_how("tmp", "b.npy", Rename::NoReplace), libc::EEXIST);
    let before = f.fs.store().generation().0;
    f.rename("tmp", "b.npy").unwrap();
    assert_eq!(f.fs.store().generation().0, before + 1);
    assert_eq!(f.content("b.npy"), bytes);
    assert_eq!(values(&f.read(old)), [0, 1, 2]);
    // What is no array does not become one by its name.
    assert_errno(f.rename("notes.bak", "b.npy"), libc::EINVAL);
    assert_errno(f.rename("notes.bak", "c.npy"), libc::EINVAL);
    assert_errno(f.rename("notes.bak", "%41.npy"), libc::EINVAL);
    assert_errno(f.rename("notes.bak", &"x".repeat(256)), libc::ENAMETOOLONG);
    f.mkdir("g").unwrap();
    assert_errno(f.rename("notes.bak", "g"), libc::EISDIR);
    assert_eq!(f.list(""), names(["a.npy", "b.npy", "g", "notes.bak"]));
    // An array over a pending file, and one pending file over another.
    f.put("x.npy", b"").unwrap();
    f.rename("a.npy", "x.npy").unwrap();
    assert_eq!(f.content("x.npy"), bytes);
    f.rename("x.npy", "x").unwrap();
    f.rename("x", "x.npy").unwrap();
    f.put("one", b"1").unwrap();
    f.put("two", b"2").unwrap();
    f.rename("one", "two").unwrap();
    f.rename("two", "two").unwrap();
    assert_eq!(f.content("two"), b"1");
    f.rename("two", "g/two").unwrap();
    assert_eq!(f.list(""), names(["b.npy", "g", "notes.bak", "x.npy"]));

    // While it is written to: when it is closed.
    let fh = f.create("half");
    f.write(fh, 0, &bytes[..200]).unwrap();
    f.rename("half", "whole.npy").unwrap();
    assert!(f.lookup("whole.npy").unwrap().ino.is_pending());
    f.write(fh, 200, &bytes[200..]).unwrap();
    f.close(fh).unwrap();
    assert_eq!(f.stored_bytes("whole"), bytes);
    // Closed, but for what the kernel has not told yet.
    let fh = f.create("late");
    f.write(fh, 0, &bytes).unwrap();
    f.flush(fh).unwrap();
    f.rename("late", "late.npy").unwrap();
    assert_eq!(f.stored_bytes("late"), bytes);
    f.release(fh);
    assert_eq!(f.content("late.npy"), bytes);
}

fn emptying_an_array_makes_a_new_version_of_it() {
    let f = Fixture::with(|store| save(store, "g/a", 3, 0));
    let reader = f.open("g/a.npy", READ).unwrap();
    let array = f.lookup("g/a.npy").unwrap();
    assert_errno(f.fs.open(array.ino, EMPTY, ME), libc::ESTALE);
    // Only for who is about to empty it, until he does.
    assert_eq!(f.lookup_by(YOU, "g/a.npy").unwrap().ino, array.ino);
    let pending = f.lookup("g/a.npy").unwrap();
    assert!(pending.ino.is_pending() && pending.size == 0);
    assert_eq!(f.content_by(YOU, "g/a.npy").len(), 4096 + 12);
    let fh = f.open_ino(pending.ino, EMPTY, ME).unwrap();
    assert_eq!(f.lookup_by(YOU, "g/a.npy").unwrap().ino, pending.ino);
    assert_eq!(f.list("g"), names(["a.npy"]));
    let bytes = npy(5, 50);
    f.write(fh, 0, &bytes[..140]).unwrap();
    f.flush(fh).unwrap();
    // The store has the array until the new version is whole.
    assert_eq!(values(&f.stored_bytes("g/a")), [0, 1, 2]);
    f.write(fh, 140, &bytes[140..]).unwrap();
    f.close(fh).unwrap();
    assert_eq!(f.stored_bytes("g/a"), bytes);
    assert_eq!(f.content("g/a.npy"), bytes);
    assert_eq!(values(&f.read(reader)), [0, 1, 2]);

    // A length that is set is not a new version.
    let ino = f.lookup("g/a.npy").unwrap().ino;
    assert_errno(f.fs.setattr(ino, SetAttr { size: Some(8), ..SetAttr::default() }), libc::EINVAL);
    // Who does not come again leaves nothing behind.
    for caller in 100..400 {
        assert_errno(f.fs.open(ino, EMPTY, Caller(caller)), libc::ESTALE);
    }
    assert_eq!(f.content("g/a.npy"), bytes);
    // A name that is gone is not brought back.
    f.other.remove(&["g/a"]).unwrap();
    assert_errno(f.fs.open(ino, EMPTY, ME), libc::ESTALE);
    assert_errno(f.lookup("g"), libc::ENOENT);
}

impl Fixture {
    fn content_by(&self, caller: Caller, path: &str) -> Vec<u8> {
        let fh = self.open_by(caller, path, READ).unwrap();
        let bytes = self.read(fh);
        self.release(fh);
        bytes
    }
}

fn those_who_make_one_name_at_a_time_make_a_version_each() {
    let f = Fixture::new();
    let (one, two) = (npy(100, 0), npy(100, 500));
    let first = f.create_new("a.npy").unwrap();
    f.write(first, 0, &one[..200]).unwrap();
    let second = f.open_by(YOU, "a.npy", EMPTY).unwrap();
    f.write(second, 0, &two[..200]).unwrap();
    f.write(first, 200, &one[200..]).unwrap();
    assert_eq!(f.content("a.npy"), two[..200]);
    f.close(first).unwrap();
    assert_eq!(f.stored_bytes("a"), one);
    assert_eq!(f.content("a.npy"), two[..200]);
    f.write(second, 200, &two[200..]).unwrap();
    f.close(second).unwrap();
    assert_eq!(f.stored_bytes("a"), two);
    assert_eq!(f.content("a.npy"), two);

    // As the kernel asks of who found no such name, while somebody else made it.
    let new = NewFile { write: true, truncate: true, ..NewFile::default() };
    let create = |new| f.fs.create(Ino::ROOT, OsStr::new("a.npy"), new, ME).map(|(_, fh)| fh);
    let first = f.open("a.npy", EMPTY).unwrap();
    let second = create(new).unwrap();
    assert_errno(create(NewFile { truncate: false, ..new }), libc::ESTALE);
    assert_errno(create(NewFile { exclusive: true, ..new }), libc::EEXIST);
    f.write(second, 0, &two).unwrap();
    f.close(second).unwrap();
    f.write(first, 0, &one).unwrap();
    f.close(first).unwrap();
    assert_eq!((f.stored_bytes("a"), f.content("a.npy")), (one.clone(), one.clone()));

    // A name that went meanwhile is made anew, or not found; one that came is emptied.
    let ino = f.lookup("a.npy").unwrap().ino;
    f.unlink("a.npy").unwrap();
    assert_errno(f.open_ino(ino, EMPTY, ME), libc::ESTALE);
    assert_errno(f.lookup("a.npy"), libc::ENOENT);
    f.put("a.npy", &one).unwrap();
    assert_eq!(f.lookup("a.npy").unwrap().size, one.len() as u64);
    let ino = f.lookup("a.npy").unwrap().ino;
    f.unlink("a.npy").unwrap();
    assert_errno(f.open_ino(ino, EMPTY, ME), libc::ESTALE);
    save(&f.other, "a", 3, 0);
    let again = f.lookup("a.npy").unwrap();
    assert_eq!((again.size, f.lookup_by(YOU, "a.npy").unwrap().size), (0, 4096 + 12));
    // Should he want something else by now, it is not his.
    assert_errno(f.open_ino(again.ino, READ, ME), libc::ESTALE);
    assert_eq!(values(&f.content("a.npy")), [0, 1, 2]);
    let ino = f.lookup("a.npy").unwrap().ino;
    assert_errno(f.open_ino(ino, EMPTY, ME), libc::ESTALE);
    let again = f.lookup("a.npy").unwrap();
    f.release(f.open_ino(again.ino, EMPTY, ME).unwrap());
    let pending = create(new).unwrap();
    let ino = f.lookup("a.npy").unwrap().ino;
    f.unlink("a.npy").unwrap();
    assert_errno(f.open_ino(ino, EMPTY, ME), libc::ESTALE);
    let other = create(NewFile { exclusive: true, ..new }).unwrap();
    assert_ne!(f.lookup("a.npy").unwrap().ino, ino);
    f.release(pending);
    f.release(other);

    // Through a link to the open file there is no name to look up.
    let first = f.open("a.npy", EMPTY).unwrap();
    let ino = f.lookup("a.npy").unwrap().ino;
    f.write(first, 0, b"text").unwrap();
    assert_errno(f.open_ino(ino, EMPTY, ME), libc::ESTALE);
    let same = f.open_ino(ino, EMPTY, ME).unwrap();
    assert_eq!(f.read(first), b"");
    f.release(same);
    f.release(first);

    // One that was given up half-way is not brought back by its end.
    let first = f.open("a.npy", EMPTY).unwrap();
    f.write(first, 0, &one[..200]).unwrap();
    let second = f.open_by(YOU, "a.npy", EMPTY).unwrap();
    f.write(second, 0, &two).unwrap();
    f.close(second).unwrap();
    f.close(first).unwrap();
    assert_eq!((f.stored_bytes("a"), f.content("a.npy")), (two.clone(), two));
    f.fs.end();
    assert_eq!(f.lost(), []);
}

/// Found by pjdfstest: emptying gave another file, as it does of arrays, and what had the old one open was cut off.
fn a_file_of_another_name_is_one_file_for_everybody_who_has_it_open() {
    let f = Fixture::new();
    let log = f.create_new("log.txt").unwrap();
    f.write(log, 0, b"many old lines").unwrap();
    let ino = f.lookup("log.txt").unwrap().ino;
    let emptied = f.open_by(YOU, "log.txt", EMPTY).unwrap();
    assert_eq!((f.lookup("log.txt").unwrap().ino, f.read(log)), (ino, Vec::new()));
    f.write(log, 0, b"new").unwrap();
    f.write(emptied, 3, b" lines").unwrap();
    f.close(emptied).unwrap();
    assert_eq!((f.read(log), f.content("log.txt")), (b"new lines".to_vec(), b"new lines".to_vec()));
    // As the kernel asks of who found no such name: he looks it up again.
    let new = NewFile { write: true, truncate: true, ..NewFile::default() };
    assert_errno(f.fs.create(Ino::ROOT, OsStr::new("log.txt"), new, ME), libc::ESTALE);
    // Removing it waits for nobody, and whoever has it open goes on.
    let remove = |name: &str| f.fs.unlink_other(Ino::ROOT, OsStr::new(name));
    assert!(remove("log.txt").unwrap());
    assert_errno(remove("log.txt"), libc::ENOENT);
    assert_errno(f.lookup("log.txt"), libc::ENOENT);
    f.write(log, 9, b"!").unwrap();
    assert_eq!((f.read(log), f.fs.getattr(ino).unwrap().nlink), (b"new lines!".to_vec(), 0));
    f.close(log).unwrap();
    f.put("empty.npy", b"").unwrap();
    assert!(!remove("empty.npy").unwrap());
    f.unlink("empty.npy").unwrap();

    // Half of an array under a temporary name as well: what was written is begun anew.
    let bytes = npy(100, 0);
    let first = f.create_new("a.tmp").unwrap();
    f.write(first, 0, &npy(300, 7)[..900]).unwrap();
    let second = f.open_by(YOU, "a.tmp", EMPTY).unwrap();
    f.write(second, 0, &bytes[..200]).unwrap();
    f.write(first, 200, &bytes[200..]).unwrap();
    f.close(first).unwrap();
    f.close(second).unwrap();
    f.rename("a.tmp", "a.npy").unwrap();
    assert_eq!(f.stored_bytes("a"), bytes);
}

fn a_file_that_became_an_array_is_a_file_of_its_own_when_it_is_changed() {
    let f = Fixture::new();
    let bytes = npy(100, 0);
    let fh = f.create_new("a.npy").unwrap();
    f.write(fh, 0, &bytes).unwrap();
    f.flush(fh).unwrap();
    // More of the same file, as when two arrays are saved to it.
    assert_errno(f.write(fh, bytes.len() as u64, b"more"), libc::EBUSY);
    f.fs.detach(fh).unwrap();
    f.write(fh, bytes.len() as u64, b"more").unwrap();
    assert!(f.lookup("a.npy").unwrap().ino.is_pending());
    assert_eq!(f.content("a.npy"), [&bytes[..], b"more"].concat());
    assert_eq!(f.stored_bytes("a"), bytes);
    assert_errno(f.flush(fh), libc::EINVAL);
    let ino = f.lookup("a.npy").unwrap().ino;
    f.fs.setattr(ino, SetAttr { size: Some(bytes.len() as u64), ..SetAttr::default() }).unwrap();
    f.write(fh, 128, &[9; 4]).unwrap();
    f.flush(fh).unwrap();
    assert_eq!(f.stored_bytes("a")[128..132], [9; 4]);
    // A page of a mapping.
    assert_errno(f.fs.write(fh, 0, &bytes, true), libc::EBUSY);
    f.fs.detach_inode(ino).unwrap();
    f.fs.write(fh, 0, &bytes, true).unwrap();
    f.flush(fh).unwrap();
    assert_eq!(f.stored_bytes("a")[128..132], [9; 4]);
    f.release(fh);
    assert_eq!(f.stored_bytes("a"), bytes);
    // A length, and space.
    let fh = f.open("a.npy", EMPTY).unwrap();
    f.write(fh, 0, &bytes).unwrap();
    f.flush(fh).unwrap();
    f.fs.fallocate(fh, 0, 10_000, false).unwrap();
    assert_errno(f.fs.fallocate(fh, 0, 10_000, true), libc::EBUSY);

    // After the array was removed or overwritten, it has no name that it could take.
    f.unlink("a.npy").unwrap();
    f.fs.detach(fh).unwrap();
    f.write(fh, 0, b"x").unwrap();
    f.close(fh).unwrap();
    assert_eq!((f.stored(), f.list("")), (names([]), names([])));
}

fn removing_a_pending_file_removes_what_it_hides() {
    let f = Fixture::with(|store| ["g/a", "b"].iter().for_each(|name| save(store, name, 3, 0)));
    let fh = f.open("g/a.npy", EMPTY).unwrap();
    f.write(fh, 0, &npy(100, 0)).unwrap();
    f.unlink("g/a.npy").unwrap();
    assert_eq!(f.stored(), names(["b"]));
    assert_errno(f.lookup("g/a.npy"), libc::ENOENT);
    // Open, it goes on as files do, and ends with its last close.
    assert_eq!(f.read(fh), npy(100, 0));
    f.write(fh, 0, &npy(100, 7)).unwrap();
    f.close(fh).unwrap();
    assert_eq!(f.stored(), names(["b"]));
    f.put("c.txt", b"c").unwrap();
    f.unlink("c.txt").unwrap();
    assert_errno(f.unlink("c.txt"), libc::ENOENT);
    f.fs.end();
    assert_eq!(f.lost(), []);
    // One that hides an array and goes elsewhere shows it again.
    f.put("b.npy", b"no array").unwrap_err();
    f.rename("b.npy", "b.txt").unwrap();
    assert_eq!(values(&f.content("b.npy")), [0, 1, 2]);
}

fn folders_are_made_and_removed() {
    let f = Fixture::with(|store| save(store, "h/a", 1, 0));
    let root = f.fs.getattr(Ino::ROOT).unwrap();
    let made = f.mkdir("g").unwrap();
    assert_eq!((made.kind, made.perm, made.nlink), (FileKind::Directory, root.perm, 2));
    assert_eq!(f.lookup("g").unwrap().ino, made.ino);
    assert_eq!(f.fs.getattr(Ino::ROOT).unwrap().nlink, root.nlink + 1);
    f.mkdir("g/k").unwrap();
    assert_eq!((f.list(""), f.list("g"), f.list("g/k")), (names(["g", "h"]), names(["k"]), names([])));
    assert_errno(f.mkdir("g"), libc::EEXIST);
    assert_errno(f.mkdir("h"), libc::EEXIST);
    for bad in ["x.npy", "%41", ".", ".."] {
        assert_errno(f.fs.mkdir(Ino::ROOT, OsStr::new(bad), SetAttr::default()), libc::EINVAL);
    }
    assert_errno(f.fs.mkdir(Ino::ROOT, OsStr::from_bytes(b"\xe9"), SetAttr::default()), libc::EINVAL);
    assert_errno(f.mkdir(&"x".repeat(256)), libc::ENAMETOOLONG);
    assert_errno(f.rmdir("g"), libc::ENOTEMPTY);
    assert_errno(f.rmdir("h"), libc::ENOTEMPTY);
    assert_errno(f.rmdir("x"), libc::ENOENT);
    assert_errno(f.rmdir("h/a.npy"), libc::ENOTDIR);

    // It stays when it is empty again, and so does one that is emptied here: `rm -r` removes it next.
    f.put("g/k/b.npy", &npy(3, 0)).unwrap();
    assert_eq!(f.stored(), names(["g/k/b", "h/a"]));
    assert_errno(f.rmdir("g/k"), libc::ENOTEMPTY);
    f.unlink("g/k/b.npy").unwrap();
    f.unlink("h/a.npy").unwrap();
    f.put("h/tmp", b"").unwrap();
    assert_errno(f.rmdir("h"), libc::ENOTEMPTY);
    f.unlink("h/tmp").unwrap();
    for path in ["g/k", "g", "h"] {
        f.rmdir(path).unwrap();
        assert_errno(f.lookup(path), libc::ENOENT);
    }
    assert_errno(f.fs.mkdir(made.ino, OsStr::new("x"), SetAttr::default()), libc::ESTALE);
    assert_errno(f.fs.create(made.ino, OsStr::new("x"), NewFile::default(), ME), libc::ESTALE);
    // Arrays of others come into a folder that was made.
    f.mkdir("g").unwrap();
    save(&f.other, "g/c", 1, 0);
    assert_eq!(f.list("g"), names(["c.npy"]));
    f.other.remove(&["g/c"]).unwrap();
    assert_eq!(f.list("g"), names([]));
    // A pending file keeps its folder.
    save(&f.other, "p/a", 1, 0);
    let fh = f.create_new("p/b.npy").unwrap();
    f.other.remove(&["p/a"]).unwrap();
    assert_eq!(f.list("p"), names(["b.npy"]));
    f.write(fh, 0, &npy(1, 1)).unwrap();
    f.close(fh).unwrap();
    f.other.remove(&["p/b"]).unwrap();
    assert_errno(f.lookup("p"), libc::ENOENT);
}

fn pending_files_go_with_their_folder() {
    let f = Fixture::with(|store| save(store, "g/old", 1, 0));
    let open = f.create_new("g/a.npy").unwrap();
    f.write(open, 0, &npy(10, 0)[..100]).unwrap();
    let notes = f.create_new("g/notes").unwrap();
    f.write(notes, 0, b"text").unwrap();
    f.close(notes).unwrap();
    f.rename("g", "h").unwrap();
    assert_eq!(f.list("h"), names(["a.npy", "notes", "old.npy"]));
    f.write(open, 100, &npy(10, 0)[100..]).unwrap();
    f.close(open).unwrap();
    f.other.refresh().unwrap();
    assert!(f.other.contains("h/a") && !f.other.contains("g/a"));
    assert_errno(f.lookup("g"), libc::ENOENT);
    // With nothing in it that the store knows.
    f.mkdir("new").unwrap();
    f.rename("new", "h/newer").unwrap();
    assert_eq!(f.list("h"), names(["a.npy", "newer", "notes", "old.npy"]));
}

fn new_files_belong_to_who_makes_them() {
    let f = Fixture::with(|store| save(store, "old", 1, 0));
    let old = f.lookup("old.npy").unwrap();
    let fh = f.create_new("a.npy").unwrap();
    let attr = f.lookup("a.npy").unwrap();
    assert_eq!((attr.perm, attr.uid, attr.gid), (old.perm, old.uid, old.gid));
    f.write(fh, 0, &npy(10, 0)).unwrap();
    let none = SetAttr::default();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let set = |set| f.fs.setattr(attr.ino, set);
    if attr.uid == 0 {
        let given = set(SetAttr { uid: Some(1), gid: Some(2), ..none }).unwrap();
        assert_eq!((given.uid, given.gid), (1, 2));
        set(SetAttr { uid: Some(0), gid: Some(attr.gid), ..none }).unwrap();
    } else {
        assert_errno(set(SetAttr { uid: Some(attr.uid + 1), ..none }), libc::EPERM);
    }
    assert_errno(set(SetAttr { perm: Some(0o4600), ..none }), libc::EPERM);
    // Execute bits come from elsewhere, and mean nothing here.
    assert_eq!(set(SetAttr { perm: Some(0o700), ..none }).unwrap().perm, 0o600);
    assert_eq!(set(SetAttr { mtime: Some(time), atime: Some(time), ..none }).unwrap().mtime, time);
    f.close(fh).unwrap();
    // The array has them, too.
    let array = f.lookup("a.npy").unwrap();
    assert_eq!((array.perm, array.mtime, array.size), (0o600, time, 168));
    let file = std::fs::metadata(f.path.join(f.other.array("a").unwrap().file_name())).unwrap();
    assert_eq!(file.permissions().mode() & 0o7777, 0o600);
    assert_eq!(f.other.array("a").unwrap().modified().unwrap(), time);
}

fn fallocate_reserves_space() {
    let f = Fixture::with(|store| save(store, "old", 1, 0));
    let fh = f.create_new("a.npy").unwrap();
    f.write(fh, 0, &npy(10, 0)[..128]).unwrap();
    f.fs.fallocate(fh, 128, 1 << 20, false).unwrap();
    let attr = f.lookup("a.npy").unwrap();
    assert_eq!(attr.size, 128);
    f.fs.fallocate(fh, 128, 40, true).unwrap();
    f.fs.fallocate(fh, 0, 10, true).unwrap();
    assert_eq!(f.lookup("a.npy").unwrap().size, 168);
    f.close(fh).unwrap();
    assert_eq!(values(&f.stored_bytes("a")), [0; 10]);
    let old = f.open("old.npy", WRITE).unwrap();
    assert_errno(f.fs.fallocate(old, 0, 1, false), libc::EOPNOTSUPP);
}

fn fsync_of_a_whole_file_makes_the_array() {
    let f = Fixture::new();
    let fh = f.create_new("a.npy").unwrap();
    f.write(fh, 0, &npy(10, 0)[..140]).unwrap();
    f.fs.fsync(fh).unwrap();
    assert_eq!(f.stored(), names([]));
    f.write(fh, 140, &npy(10, 0)[140..]).unwrap();
    f.fs.fsync(fh).unwrap();
    assert_eq!(f.stored_bytes("a"), npy(10, 0));
    f.close(fh).unwrap();
    // One that can be no array is still brought to the disk.
    let fh = f.create_new("b.npy").unwrap();
    f.write(fh, 0, b"text").unwrap();
    f.fs.fsync(fh).unwrap();
}

fn what_is_pending_at_the_end_is_put_into_lost_and_found() {
    let f = Fixture::with(|store| save(store, "old", 3, 0));
    let bytes = npy(100, 0);
    f.put("half.npy", &bytes[..200]).unwrap();
    f.put("g.txt", b"text").unwrap();
    f.put("empty", b"").unwrap();
    f.mkdir("g").unwrap();
    f.put("g/half.npy", &bytes[..300]).unwrap();
    f.put("old.npy", b"bad").unwrap_err();
    f.put("temporary", &bytes).unwrap();
    let fh = f.create_new("cut.npy").unwrap();
    f.write(fh, 0, &[&bytes[..], b"x"].concat()).unwrap();
    f.release(fh);
    // One that became whole without being closed again is an array.
    let ino = f.lookup("cut.npy").unwrap().ino;
    f.fs.setattr(ino, SetAttr { size: Some(bytes.len() as u64), ..SetAttr::default() }).unwrap();
    std::fs::create_dir(f.path.join("lost+found")).unwrap();
    std::fs::write(f.path.join("lost+found/half.npy"), "somebody's").unwrap();
    f.fs.end();
    let expected = [
        ("g%2Fhalf.npy", &bytes[..300]),
        ("half.npy", b"somebody's"),
        ("half.npy~1", &bytes[..200]),
        ("old.npy", b"bad"),
    ];
    assert_eq!(f.lost(), expected.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())));
    assert_eq!(f.stored(), names(["cut", "old"]));
    assert_eq!(values(&f.stored_bytes("old")), [0, 1, 2]);
    // The store does not mind.
    let report = numpack::store::verify(&f.path).unwrap();
    assert!(report.problems.is_empty() && report.leftovers.is_empty());
}

fn a_full_disk_changes_nothing() {
    let full = || std::io::Error::from_raw_os_error(libc::ENOSPC);
    let bytes = npy(1000, 0);
    // At every call that changes something, from the first byte to the commit, as long as there is one.
    for n in 1.. {
        let f = Fixture::with(|store| save(store, "a", 3, 0));
        let attempt = || -> Result<(), FsError> {
            let fh = f.open("a.npy", EMPTY)?;
            let wrote = f.write(fh, 0, &bytes[..500]).and_then(|()| f.write(fh, 500, &bytes[500..]));
            let closed = f.close(fh);
            wrote.and(closed)
        };
        f.faults.fail_halfway_at(f.faults.calls().len() + n, full());
        let result = attempt();
        if f.faults.failed_call().is_none() {
            assert!(n > 5, "{n} calls");
            break;
        }
        let call = f.faults.failed_call();
        if let Err(error) = &result {
            assert_eq!(error.errno(), libc::ENOSPC, "{call:?}: {error}");
            assert_eq!(values(&f.stored_bytes("a")), [0, 1, 2], "{call:?}");
            // With room again: what is there can be completed, or is there at the end.
            match f.open("a.npy", WRITE) {
                Ok(fh) if f.lookup("a.npy").unwrap().ino.is_pending() => {
                    f.write(fh, 0, &bytes).unwrap();
                    f.close(fh).unwrap_or_else(|error| panic!("{call:?}: {error}"));
                }
                _ => attempt().unwrap(),
            }
        }
        assert_eq!(f.stored_bytes("a"), bytes, "{call:?}");
        assert_eq!(f.content("a.npy"), bytes, "{call:?}");
        f.fs.end();
        assert_eq!(f.lost(), [], "{call:?}");
    }
}

fn a_large_write_may_be_answered_before_it_is_done() {
    let f = Fixture::with(|store| save(store, "a", 3, 0));
    let bytes = npy(5_000_000, 0);
    let fh = f.create("a.npy");
    let write = |offset: usize, end: usize| {
        let mut answered = false;
        let answer = || answered = true;
        let written = f.fs.write_answering(fh, offset as u64, &bytes[offset..end], false, answer);
        (answered, written.map(drop).map_err(|error| error.errno()))
    };
    assert_eq!(write(0, 128), (false, Ok(())));
    assert_eq!(write(128, 100_000), (true, Ok(())));
    assert_eq!(f.read(fh), bytes[..100_000]);
    f.faults.fail_next("write_at", std::io::Error::from_raw_os_error(libc::EDQUOT));
    assert_eq!(write(100_000, bytes.len()), (true, Err(libc::EDQUOT)));
    // The disk works again, and the file could be completed; but whoever wrote it knows nothing of a gap.
    assert_eq!(write(100_000, bytes.len()), (false, Err(libc::EDQUOT)));
    assert_eq!(write(0, 128), (false, Err(libc::EDQUOT)));
    assert_errno(f.fs.fsync(fh), libc::EDQUOT);
    assert_errno(f.flush(fh), libc::EDQUOT);
    assert_errno(f.close(fh), libc::EDQUOT);
    assert_errno(f.rename("a.npy", "b.npy"), libc::EDQUOT);
    assert_eq!(values(&f.stored_bytes("a")), [0, 1, 2]);
    f.put("a.npy", &bytes).unwrap();
    assert_eq!(f.stored_bytes("a"), bytes);
    assert_eq!(f.stored(), names(["a"]));
}

fn what_cannot_be_committed_is_not_lost() {
    // The commit fails, and at the end again.
    let f = Fixture::new();
    let bytes = npy(100, 0);
    let fh = f.create_new("a.npy").unwrap();
    f.write(fh, 0, &bytes).unwrap();
    let calls = f.faults.calls().len();
    f.flush(fh).unwrap();
    let n = f.faults.calls()[calls..].iter().rposition(|call| *call == "link").unwrap() + 2;
    drop(f);
    let f = Fixture::new();
    let fh = f.create_new("a.npy").unwrap();
    f.write(fh, 0, &bytes).unwrap();
    f.faults.fail_at(f.faults.calls().len() + n, std::io::Error::from_raw_os_error(libc::EIO));
    assert_errno(f.close(fh), libc::EIO);
    assert_eq!(f.faults.failed_call().as_deref(), Some("write_at metadata.npkm"));
    assert_eq!(f.content("a.npy"), bytes);
    f.fs.end();
    assert_eq!(f.lost(), [("a.npy".to_owned(), bytes)]);
}

fn a_writer_at_work_is_waited_for() {
    let f = Fixture::new();
    let bytes = npy(100, 0);
    let fh = f.create_new("a.npy").unwrap();
    f.write(fh, 0, &bytes).unwrap();
    let storage = DirStorage::open(&f.path).unwrap();
    let lock =
        numpack::sys::Storage::lock(&storage, numpack::format::names::LOCK, Duration::from_secs(5)).unwrap();
    assert!(f.fs.flush(fh).unwrap());
    std::thread::scope(|scope| {
        let finish = scope.spawn(|| f.fs.finish(fh));
        // Others can read it, and write to it.
        assert_eq!(f.content("a.npy"), bytes);
        assert!(f.lookup("a.npy").unwrap().ino.is_pending());
        drop(lock);
        finish.join().unwrap().unwrap();
    });
    assert_eq!(f.stored_bytes("a"), bytes);
}

fn a_read_only_mount_makes_nothing() {
    let f = Fixture::with(|store| save(store, "a", 3, 0));
    let fs = Fs::new(Store::open(&f.path, Access::Read).unwrap(), true, |_| {}).unwrap();
    let a = fs.lookup(Ino::ROOT, OsStr::new("a.npy"), ME).unwrap();
    let new = NewFile { write: true, ..NewFile::default() };
    assert_errno(fs.create(Ino::ROOT, OsStr::new("b.npy"), new, ME), libc::EROFS);
    assert_errno(fs.mkdir(Ino::ROOT, OsStr::new("g"), SetAttr::default()), libc::EROFS);
    assert_errno(fs.open(a.ino, EMPTY, ME), libc::EROFS);
    assert_errno(fs.open(a.ino, OpenFlags { write: false, truncate: true }, ME), libc::EROFS);
    let perm = SetAttr { perm: Some(0o600), ..SetAttr::default() };
    assert_errno(fs.setattr(a.ino, perm), libc::EROFS);
}

fn a_store_that_is_taken_away_leaves_errors() {
    let f = Fixture::new();
    let fh = f.create_new("a.npy").unwrap();
    f.write(fh, 0, &npy(10, 0)).unwrap();
    std::fs::remove_dir_all(&f.path).unwrap();
    assert_errno(f.fs.create(Ino::ROOT, OsStr::new("b"), NewFile::default(), ME), libc::EIO);
    assert_errno(f.fs.mkdir(Ino::ROOT, OsStr::new("g"), SetAttr::default()), libc::EIO);
    assert_eq!(f.read(fh), npy(10, 0));
    f.write(fh, 128, &[1; 4]).unwrap();
    f.close(fh).unwrap_err();
    f.fs.end();
}

fn new_names_must_be_ones_that_something_is_shown_under() {
    let f = Fixture::new();
    for bad in ["%41.npy", "a%00.npy", ".npy"] {
        assert_errno(f.create_new(bad), libc::EINVAL);
    }
    let latin1 = OsStr::from_bytes(b"\xe9");
    assert_errno(f.fs.create(Ino::ROOT, latin1, NewFile::default(), ME), libc::EINVAL);
    assert_errno(f.create_new(&"x".repeat(256)), libc::ENAMETOOLONG);
    f.put("%2541.npy", &npy(1, 0)).unwrap();
    f.put("%2E%2E.npy", &npy(1, 0)).unwrap();
    assert_eq!(f.stored(), names(["%41", ".."]));
    // Names that are cut lead to the array that has them.
    save(&f.other, &"y".repeat(300), 1, 0);
    let cut = f.list("").into_iter().find(|name| name.starts_with('y')).unwrap();
    f.put(&cut, &npy(1, 5)).unwrap();
    assert_eq!(values(&f.stored_bytes(&"y".repeat(300))), [5]);
}

fn what_is_set_on_a_pending_file_is_set_on_the_array() {
    let f = Fixture::with(|store| {
        save(store, "a", 3, 0);
        store
            .set_attrs(Some("a"), [("old".to_owned(), 1.into()), ("gone".to_owned(), 2.into())].into(), &[])
            .unwrap();
    });
    // As rsync does: another name, then the attributes, then the name.
    let fh = f.create(".a.npy.tmp");
    f.write(fh, 0, &npy(5, 7)).unwrap();
    let ino = f.lookup(".a.npy.tmp").unwrap().ino;
    let name = |attr: &str| std::ffi::OsString::from(format!("user.npk.attrs.{attr}"));
    f.fs.setxattr(ino, &name("unit"), b"\"m\"", SetMode::Any).unwrap();
    assert_eq!(f.fs.getxattr(ino, &name("unit")).unwrap(), b"\"m\"");
    assert_eq!(f.fs.listxattr(ino).unwrap(), b"user.npk.attrs.unit\0");
    f.close(fh).unwrap();
    f.rename(".a.npy.tmp", "a.npy").unwrap();
    f.other.refresh().unwrap();
    let attrs = f.other.array("a").unwrap().attrs().clone();
    assert_eq!(attrs.keys().collect::<Vec<_>>(), ["gone", "old", "unit"]);

    // As cp does, over the array.
    let fh = f.open("a.npy", OpenFlags { write: true, truncate: true }).unwrap();
    let ino = f.lookup("a.npy").unwrap().ino;
    f.fs.removexattr(ino, &name("gone")).unwrap();
    f.fs.setxattr(ino, &name("old"), b"3", SetMode::Replace).unwrap();
    f.write(fh, 0, &npy(2, 0)).unwrap();
    f.close(fh).unwrap();
    f.other.refresh().unwrap();
    let attrs = f.other.array("a").unwrap().attrs().clone();
    assert_eq!(
        attrs.into_iter().collect::<Vec<_>>(),
        [("old".into(), 3.into()), ("unit".into(), "m".into())]
    );
}
