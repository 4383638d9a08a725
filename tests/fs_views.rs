//! Views without a kernel: the paragraphs of spec/npkfs-semantics.md on them.

mod common;
#[path = "upstream/fixtures.rs"]
mod fixtures;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use common::fixture::*;
use common::rng::Rng;
use common::zip;
use numpack::format::npy;
use numpack::fs::{Fh, FileKind, FsError, Ino, NewFile, OpenFlags, Rename, SetAttr, SetMode, names};
use numpack::store::{Access, Array, Attrs, Compression, Dtype, NewArray, Store};

const ALL: [&str; 2] = [".views/all.npz", ".views/all.safetensors"];
/// As the kernel asks at most.
const REQUEST_LEN: u32 = 1 << 20;

fn small_blocks() -> Compression {
    Compression { block_len: 4096, ..Compression::default() }
}

/// A view that is open.
struct Opened<'a> {
    f: &'a Fixture,
    fh: Fh,
    len: u64,
    ino: Ino,
}

fn open<'a>(f: &'a Fixture, path: &str) -> Opened<'a> {
    let attr = f.lookup(path).unwrap();
    assert!(attr.ino.is_view() && attr.blocks == attr.size.div_ceil(512));
    let fh = f.fs.open_view(attr.ino, READ, CALLER).unwrap();
    Opened { f, fh, len: attr.size, ino: attr.ino }
}

impl Opened<'_> {
    /// One request, with what has to be done before it.
    fn try_read(&self, offset: u64, len: u32) -> Result<Vec<u8>, FsError> {
        match self.f.fs.read(self.fh, offset, len, <[u8]>::to_vec) {
            Err(FsError::Unread { .. }) => {
                self.f.fs.prepare_view(self.fh, offset, len).unwrap();
                self.f.fs.read(self.fh, offset, len, <[u8]>::to_vec)
            }
            result => result,
        }
    }

    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while out.len() < len {
            let wanted = (len - out.len()).min(REQUEST_LEN as usize) as u32;
            let bytes = self.try_read(offset + out.len() as u64, wanted).unwrap();
            if bytes.is_empty() {
                break;
            }
            out.extend(bytes);
        }
        out
    }

    fn whole(&self) -> Vec<u8> {
        let bytes = self.read(0, self.len as usize + 1);
        assert_eq!(bytes.len() as u64, self.len);
        bytes
    }

    fn members(&self) -> Vec<zip::Member> {
        zip::members(self.len, |offset, len| self.read(offset, len))
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.f.fs.release(self.fh);
    }
}

fn whole(f: &Fixture, path: &str) -> Vec<u8> {
    open(f, path).whole()
}

fn elements(array: &Array) -> Vec<u8> {
    let mut bytes = vec![0; array.nbytes() as usize];
    array.read_into(&mut bytes).unwrap();
    bytes
}

/// The members of a zip file: their contents, with the right checksums.
fn unzip(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let read = |offset: u64, len: usize| bytes[offset as usize..][..len].to_vec();
    let members = zip::members(bytes.len() as u64, read);
    let contents: BTreeMap<_, _> = members
        .iter()
        .map(|member| {
            let content = &bytes[member.start as usize..][..member.len as usize];
            assert_eq!(crc32fast::hash(content), member.crc, "{}", member.name);
            (member.name.clone(), content.to_vec())
        })
        .collect();
    assert_eq!(contents.len(), members.len());
    contents
}

/// The header of a safetensors file, and where the elements begin.
fn tensors(bytes: &[u8]) -> (serde_json::Map<String, serde_json::Value>, usize) {
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let serde_json::Value::Object(header) = serde_json::from_slice(&bytes[8..8 + len]).unwrap() else {
        panic!("no object");
    };
    // They follow each other up to the end.
    let mut offsets: Vec<(u64, u64)> = header
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(_, tensor)| serde_json::from_value(tensor["data_offsets"].clone()).unwrap())
        .collect();
    offsets.sort_unstable();
    let end = offsets.iter().fold(0, |end, (start, next)| {
        assert_eq!(*start, end);
        *next
    });
    assert_eq!(8 + len + end as usize, bytes.len());
    (header, 8 + len)
}

/// The path of an array in the mount, without `.npy`.
fn shown(array: &str) -> String {
    let (folders, name) =
        array.rsplit_once('/').map_or((None, array), |(folders, name)| (Some(folders), name));
    let folders = folders.into_iter().flat_map(|folders| folders.split('/'));
    let mut parts: Vec<String> = folders.map(|name| names::encode(name, FileKind::Directory, 0)).collect();
    parts.push(names::encode(name, FileKind::File, 0));
    parts.join("/").strip_suffix(".npy").unwrap().to_owned()
}

/// Asserts that all views show what a store has.
fn assert_views(f: &Fixture, store: &Store) {
    let mut zipped = unzip(&whole(f, ALL[0]));
    let bytes = whole(f, ALL[1]);
    let (header, start) = tensors(&bytes);
    for array in store.arrays().unwrap() {
        let (name, expected) = (array.name(), elements(&array));
        let npy_file = zipped.remove(&format!("{}.npy", shown(name))).unwrap();
        let npy = npy::parse(&npy_file).unwrap();
        assert_eq!((&npy.dtype, &*npy.shape), (array.dtype(), array.shape()), "{name}");
        assert_eq!(npy.fortran_order, array.fortran_order(), "{name}");
        assert_eq!(npy_file[npy.header_len as usize..], expected, "{name}");
        assert_eq!(whole(f, &format!(".views/{}.raw", shown(name))), expected, "{name}");
        if let Some(tensor) = header.get(&**name).filter(|_| **name != *"__metadata__") {
            let [from, to]: [usize; 2] = serde_json::from_value(tensor["data_offsets"].clone()).unwrap();
            assert_eq!(tensor["shape"], serde_json::json!(array.shape()));
            let mut found = bytes[start + from..start + to].to_vec();
            if array.dtype().to_string().starts_with('>') {
                found.chunks_exact_mut(array.dtype().itemsize() as usize).for_each(<[u8]>::reverse);
            }
            assert_eq!(found, expected, "{name}");
        }
    }
    assert!(zipped.is_empty());
}

/// Arrays of all kinds.
fn fill(store: &Store) {
    let numbers = numbers(0..60_000);
    for (prefix, compression) in [("", None), ("z/", Some(small_blocks()))] {
        let save = |name: &str, dtype: &str, shape: &[u64], fortran_order: bool| {
            let dtype = Dtype::parse_python(dtype).unwrap();
            let len = shape.iter().product::<u64>() * dtype.itemsize();
            let data = &numbers[..len as usize];
            let array = NewArray { dtype, shape: shape.to_vec(), fortran_order, data };
            store.save_as(&[(&format!("{prefix}{name}"), array)], compression.as_ref()).unwrap();
        };
        save("plain", "'<u4'", &[100, 500], false);
        save("dropped", "'<u4'", &[1000, 30], false);
        store.drop_rows(&[&format!("{prefix}dropped")], &[0, 7, 8, 999]).unwrap();
        save("fortran", "'<f8'", &[30, 70], true);
        save("big", "'>f4'", &[11, 500], false);
        save("g/h/small", "'<i2'", &[3], false);
        save("zero_d", "'<f8'", &[], false);
        save("empty", "'<f4'", &[0, 5], false);
        save("text", "'<U5'", &[100], false);
        save("fields", "[('a', '<f4'), ('b', '|S3', (2,))]", &[50], false);
        save("h\u{e4}", "'|b1'", &[64 << 10], false);
    }
}

#[test]
fn views_are_computed_from_arrays_when_they_are_read() {
    let f = Fixture::with(fill, false);
    let npy = f.path.parent().unwrap().join("i.npy");
    write_npy(&npy, &[10, 100], &numbers(0..1000));
    f.other.import_npy("imported", &npy, false, None, &mut |_| {}).unwrap();
    assert_views(&f, &f.other);

    let before: BTreeSet<_> = std::fs::read_dir(&f.path).unwrap().map(|e| e.unwrap().file_name()).collect();
    let mut rng = Rng::new(17);
    for path in [ALL[0], ALL[1], ".views/plain.raw", ".views/z/dropped.raw", ".views/z/g/h/small.raw"] {
        let view = open(&f, path);
        let bytes = view.whole();
        for _ in 0..300 {
            let offset = rng.below(view.len + 10);
            let len = rng.below(9000).min(view.len.saturating_sub(offset));
            let end = offset.min(view.len) + len;
            assert_eq!(view.read(offset, len as usize), bytes[offset.min(view.len) as usize..end as usize]);
        }
        assert!(view.try_read(u64::MAX, 10).unwrap().is_empty());
    }
    let after: BTreeSet<_> = std::fs::read_dir(&f.path).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(before, after);
}

#[test]
fn views_of_an_empty_store_are_valid() {
    let f = Fixture::new();
    assert!(unzip(&whole(&f, ALL[0])).is_empty());
    assert!(tensors(&whole(&f, ALL[1])).0.is_empty());
    assert_errno(f.lookup(".views/a.raw"), libc::ENOENT);
}

#[test]
fn stores_of_old_releases_have_views() {
    let mut n_arrays = 0;
    for fixture in fixtures::all() {
        let copy = fixture.copy();
        let store = Store::open(&copy.path, Access::Read).unwrap();
        let f = Fixture::over(Store::open(&copy.path, Access::Read).unwrap(), store, true);
        assert_views(&f, &f.other);
        n_arrays += f.other.len();
    }
    assert!(n_arrays > 100, "{n_arrays}");
}

fn listed(f: &Fixture, path: &str) -> BTreeSet<String> {
    let ino = f.lookup(path).unwrap().ino;
    let fh = f.fs.opendir(ino).unwrap();
    let mut names = BTreeSet::new();
    f.fs.readdirplus(ino, fh, 0, |_, entry, attr| {
        assert_eq!(entry.kind, attr.kind);
        names.insert(entry.name.to_string())
    })
    .unwrap();
    f.fs.releasedir(fh);
    names
}

#[test]
fn the_folder_is_found_by_its_name_and_not_listed_in_the_root() {
    let arrays = ["a", "g/b", ".views/x", ".views", "all.npz/x", "g/c.raw/x", "g/c", "%2Eraw/x"];
    let f = Fixture::with(|store| arrays.iter().for_each(|name| save(store, name, 1, 0)), false);
    assert!(f.tree().iter().all(|path| !path.starts_with(".views/")));
    assert!(f.tree().contains("%2Eviews/x.npy") && f.tree().contains(".views.npy"));
    let own = ["all.npz", "all.safetensors"];
    let expected = ["a.raw", ".views.raw", "g", "%2Eviews", "all%2Enpz", "%252Eraw"];
    let expected: BTreeSet<_> =
        [".", ".."].iter().chain(&own).chain(&expected).map(|name| name.to_string()).collect();
    assert_eq!(listed(&f, ".views"), expected);
    assert_eq!(listed(&f, ".views/g"), [".", "..", "b.raw", "c.raw", "c%2Eraw"].map(str::to_owned).into());
    for path in ["%2Eviews/x", "all%2Enpz/x", "g/c%2Eraw/x", "g/c", "%252Eraw/x"] {
        assert_eq!(values_of_raw(&whole(&f, &format!(".views/{path}.raw"))), [0, 1], "{path}");
    }
    for missing in [".views/a.npy", ".views/all.npz/x.raw", ".views/g/all.npz", ".views/.views", "g/.views"] {
        assert!(f.lookup(missing).is_err(), "{missing}");
    }
    let up = f.lookup(".views/g").unwrap();
    assert_eq!(up.nlink, 3);
    // Pending files have none, and hide none.
    let new = NewFile { write: true, exclusive: true, ..NewFile::default() };
    f.fs.create(Ino::ROOT, OsStr::new("new.npy"), new, CALLER).unwrap();
    assert_eq!(listed(&f, ".views"), expected);
    f.other.remove(&["g/b", "g/c", "g/c.raw/x"]).unwrap();
    assert_errno(f.lookup(".views/g"), libc::ENOENT);
    assert_errno(f.fs.getattr(up.ino), libc::ESTALE);
}

fn values_of_raw(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn a_view_is_of_one_moment() {
    let names = ["appended", "dropped", "overwritten", "renamed", "removed", "compacted"];
    for compression in [None, Some(small_blocks())] {
        let f = Fixture::with(
            |store| {
                for (name, first) in names.into_iter().zip((0..).step_by(10_000)) {
                    let data = numbers(first..first + 3000);
                    store.save_as(&[(name, array(&[1500, 2], &data))], compression.as_ref()).unwrap();
                }
                store.drop_rows(&["compacted"], &[5]).unwrap();
            },
            false,
        );
        let raw: Vec<String> = names.iter().map(|name| format!(".views/{name}.raw")).collect();
        let paths: Vec<&str> = ALL.into_iter().chain(raw.iter().map(String::as_str)).collect();
        let expected: Vec<Vec<u8>> = paths.iter().map(|path| whole(&f, path)).collect();
        let views: Vec<Opened<'_>> = paths.iter().map(|path| open(&f, path)).collect();

        append(&f.other, "appended", 100, 7);
        f.other.drop_rows(&["dropped"], &[0, 1]).unwrap();
        save(&f.other, "overwritten", 5, 1);
        f.other.rename("renamed", "g/renamed", false).unwrap();
        f.other.remove(&["removed"]).unwrap();
        f.other.compact("compacted").unwrap();
        save(&f.other, "new", 4, 4);
        assert_views(&f, &f.other);
        for (view, expected) in views.iter().zip(&expected) {
            assert_eq!(view.whole(), *expected);
            assert_eq!(f.fs.getattr(view.ino).unwrap().size, expected.len() as u64);
        }
        for (path, view) in paths.iter().zip(&views) {
            match f.lookup(path) {
                Ok(attr) => assert_ne!(attr.ino, view.ino, "{path}"),
                Err(error) => assert_eq!(error.errno(), libc::ENOENT, "{path}"),
            }
        }
    }
}

#[test]
fn a_view_that_did_not_change_has_the_same_inode() {
    let f = Fixture::with(|store| ["a", "b"].iter().for_each(|name| save(store, name, 5, 0)), false);
    let old = SystemTime::now() - Duration::from_secs(60);
    for name in ["a", "b"] {
        f.other.array(name).unwrap().set_times(None, Some(old)).unwrap();
    }
    let inos = || [ALL[0], ALL[1], ".views/a.raw"].map(|path| f.lookup(path).unwrap().ino);
    let before = inos();
    assert_eq!(inos(), before);
    f.other.set_attrs(None, Attrs::from([("k".to_owned(), 1.into())]), &[]).unwrap();
    assert_eq!(inos(), before);
    append(&f.other, "b", 1, 0);
    f.other.array("b").unwrap().set_times(None, Some(old)).unwrap();
    let after = inos();
    assert!(after[0] != before[0] && after[1] != before[1] && after[2] == before[2]);
    assert_eq!(inos(), after);
    // What the kernel forgets has another number.
    f.fs.forget(after[2], 100);
    assert_errno(f.fs.getattr(after[2]), libc::ESTALE);
    assert_ne!(inos()[2], after[2]);
}

#[test]
fn what_is_written_in_place_shows_in_parts_that_are_read_later() {
    for compression in [None, Some(small_blocks())] {
        let data = numbers(0..50_000);
        let f = Fixture::with(
            |store| store.save_as(&[("a", array(&[25_000, 2], &data))], compression.as_ref()).unwrap(),
            false,
        );
        let (zip, raw) = (open(&f, ALL[0]), open(&f, ".views/a.raw"));
        let member = zip.members().remove(0);
        // Its header, which promises the old elements.
        zip.read(member.start, 128);
        f.other.replace("a", &[20_000], array(&[1, 2], &numbers(1..3))).unwrap();
        assert_eq!(values_of_raw(&raw.read(160_000, 8)), [1, 2]);
        let content = zip.read(member.start, member.len as usize);
        assert_ne!(crc32fast::hash(&content), member.crc);
        // Who opens it now finds what is there, under another number.
        assert_views(&f, &f.other);
        let (new_zip, new_raw) = (open(&f, ALL[0]), open(&f, ".views/a.raw"));
        assert!(new_zip.ino != zip.ino && new_raw.ino != raw.ino);
    }
}

#[test]
fn what_was_written_through_the_mount_is_committed_before_a_view_opens() {
    let data = numbers(0..50_000);
    let f = Fixture::with(
        |store| {
            store.save_as(&[("a", array(&[50_000], &data))], Some(&small_blocks())).unwrap();
            save(store, "other", 1, 0);
        },
        false,
    );
    let writer = f.open("a.npy", WRITE).unwrap();
    f.fs.write(writer.fh, 4096, &numbers(7..8), false).unwrap();
    let ino = f.lookup(".views/a.raw").unwrap().ino;
    assert!(matches!(f.fs.open_view(ino, READ, CALLER), Err(FsError::Uncommitted { .. })));
    let all = f.lookup(ALL[1]).unwrap().ino;
    assert!(matches!(f.fs.open_view(all, READ, CALLER), Err(FsError::Uncommitted { .. })));
    assert_eq!(values_of_raw(&whole(&f, ".views/other.raw")), [0, 1], "nobody writes to that");
    f.fs.commit_view(ino).unwrap();
    assert_eq!(f.fs.look_again(ino, CALLER).errno(), libc::ESTALE);
    let again = f.lookup(".views/a.raw").unwrap().ino;
    assert_ne!(again, ino);
    // Whoever comes again opens what he found, even if more was written or the array is gone meanwhile.
    f.fs.write(writer.fh, 4096, &numbers(8..9), false).unwrap();
    f.other.remove(&["a"]).unwrap();
    let fh = f.fs.open_view(again, READ, CALLER).unwrap();
    assert_eq!(f.fs.read(fh, 0, 8, values_of_raw).unwrap(), [7, 1]);
    f.fs.release(fh);
}

#[test]
fn a_version_that_is_gone_before_open_is_looked_up_again() {
    let f = Fixture::with(|store| save(store, "a", 5, 0), false);
    let inos = [ALL[0], ALL[1], ".views/a.raw"].map(|path| f.lookup(path).unwrap().ino);
    save(&f.other, "a", 2, 7);
    for (ino, path) in inos.into_iter().zip([ALL[0], ALL[1], ".views/a.raw"]) {
        assert_errno(f.fs.open_view(ino, READ, CALLER), libc::ESTALE);
        let again = f.lookup(path).unwrap().ino;
        let fh = f.fs.open_view(again, READ, CALLER).unwrap();
        f.fs.release(fh);
    }
    assert_eq!(values_of_raw(&whole(&f, ".views/a.raw")), [7, 8, 9, 10]);
}

#[test]
fn no_array_is_read_for_the_checksum_of_another() {
    let f = Fixture::with(
        |store| {
            let data = numbers(0..3 << 19);
            store.save_as(&[("large", array(&[3 << 18, 2], &data))], Some(&Compression::default())).unwrap();
            save(store, "small", 5, 3);
            store.save(&[("plain", array(&[5 << 17, 2], &data[..5 << 20]))]).unwrap();
        },
        false,
    );
    let view = open(&f, ALL[0]);
    // Nothing that is read here has to be prepared.
    let read = |offset, len| f.fs.read(view.fh, offset, len, <[u8]>::to_vec);
    let members = zip::members(view.len, |offset, len| read(offset, len as u32).unwrap());
    let order: Vec<&str> = members.iter().map(|member| &*member.name).collect();
    assert_eq!(order, ["large.npy", "small.npy", "plain.npy"]);
    let [large, small, plain] = &members[..] else { panic!("{members:?}") };
    assert!(large.start < plain.start && plain.start < small.start, "largest first");
    assert_eq!(values_of(&read(small.start, small.len as u32).unwrap()).len(), 10);
    for large in [large, plain] {
        let elements = large.start + 128;
        assert!(elements.is_multiple_of(4096));
        assert!(read(elements, 1 << 20).is_ok());
    }
    assert!(matches!(read(large.start, 128), Err(FsError::Unread { len, .. }) if len == 6 << 20));
    assert!(matches!(read(plain.start, 128), Err(FsError::Unread { len, .. }) if len == 5 << 20));
    // Once for each state: opening a view of that state, or of others beside it, does not take it again.
    f.fs.prepare_view(view.fh, large.start, 128).unwrap();
    assert!(read(large.start, 128).is_ok());
    append(&f.other, "small", 1, 0);
    let later = open(&f, ALL[0]);
    assert_ne!(later.ino, view.ino);
    let read = |offset| f.fs.read(later.fh, offset, 128, |_| ());
    assert!(read(large.start).is_ok() && read(plain.start).is_err());
    append(&f.other, "large", 1, 0);
    let latest = open(&f, ALL[0]);
    assert!(matches!(f.fs.read(latest.fh, large.start, 128, |_| ()), Err(FsError::Unread { .. })));
    assert_eq!(unzip(&latest.whole()).len(), 3);
}

#[test]
fn a_mount_that_ends_does_not_wait_for_checksums() {
    let data = numbers(0..5 << 18);
    let f = Fixture::with(|store| store.save(&[("a", array(&[5 << 18], &data))]).unwrap(), false);
    let view = open(&f, ALL[0]);
    let start = view.members()[0].start;
    f.fs.end_views();
    // Blanks, and an array that can be read still.
    let header = view.try_read(start, 128).unwrap();
    assert!(header.ends_with(&[[b' '; 32].as_slice(), b"\n"].concat()));
    assert_eq!(view.read(start + 128, data.len()), data);
}

#[test]
fn all_npz_uses_zip64_where_it_needs_it() {
    let f = Fixture::with(
        |store| {
            let dtype = Dtype::parse_python("'<f8'").unwrap();
            store.create_zeros("zeros", &dtype, &[600 << 20], None).unwrap();
            store.create_zeros("more", &dtype, &[512 << 20], Some(&Compression::default())).unwrap();
            save(store, "last", 3, 5);
        },
        false,
    );
    let view = open(&f, ALL[0]);
    let members = view.members();
    let names: Vec<&str> = members.iter().map(|member| &*member.name).collect();
    assert_eq!(names, ["zeros.npy", "more.npy", "last.npy"]);
    assert!(members[0].len > 4800 << 20 && members[2].start > 8 << 30);
    let content = view.read(members[2].start, members[2].len as usize);
    assert_eq!(crc32fast::hash(&content), members[2].crc);
    assert_eq!(values_of(&content), [5, 6, 7, 8, 9, 10]);
}

#[test]
fn all_npz_is_a_zip_file_of_arrays_as_numpy_saves_them() {
    let f = Fixture::with(
        |store| {
            let names: Vec<String> = (0..700).map(|i| format!("g{}/a{i}", i % 7)).collect();
            let data = numbers(0..300);
            let arrays: Vec<_> = names.iter().map(|name| (&**name, array(&[300], &data))).collect();
            store.save(&arrays).unwrap();
        },
        false,
    );
    assert_views(&f, &f.other);
}

#[test]
fn all_safetensors_has_what_safetensors_can_hold() {
    let dtypes = [
        ("'|b1'", "BOOL"),
        ("'|i1'", "I8"),
        ("'|u1'", "U8"),
        ("'<i2'", "I16"),
        ("'>u2'", "U16"),
        ("'<f2'", "F16"),
        ("'>i4'", "I32"),
        ("'<u4'", "U32"),
        ("'<f4'", "F32"),
        ("'<i8'", "I64"),
        ("'<u8'", "U64"),
        ("'>f8'", "F64"),
        ("'<c8'", "has the dtype <c8"),
        ("'<c16'", "has the dtype <c16"),
        ("'<f16'", "has the dtype <f16"),
        ("'<U2'", "has the dtype <U2"),
        ("'|S3'", "has the dtype |S3"),
        ("'|V2'", "has the dtype |V2"),
        ("'<M8[ns]'", "has the dtype <M8[ns]"),
        ("[('a', '<f4')]", "has the dtype [('a', '<f4')]"),
    ];
    let data = numbers(0..100);
    let save = |store: &Store, name: &str, dtype: &str, shape: &[u64], fortran_order: bool| {
        let dtype = Dtype::parse_python(dtype).unwrap();
        let len = shape.iter().product::<u64>() * dtype.itemsize();
        let array = NewArray { dtype, shape: shape.to_vec(), fortran_order, data: &data[..len as usize] };
        store.save(&[(name, array)]).unwrap();
    };
    let f = Fixture::with(
        |store| {
            dtypes.iter().for_each(|(dtype, _)| save(store, &format!("g/{dtype}"), dtype, &[3], false));
            save(store, "fortran", "'<f4'", &[2, 3], true);
            save(store, "row", "'<f4'", &[1, 3], true);
            save(store, "__metadata__", "'<f4'", &[3], false);
        },
        false,
    );
    let bytes = whole(&f, ALL[1]);
    let (mut header, start) = tensors(&bytes);
    assert_eq!(start, 4096);
    let metadata = header.remove("__metadata__").unwrap();
    let left_out: BTreeMap<String, String> =
        serde_json::from_str(metadata["npk.left_out"].as_str().unwrap()).unwrap();
    assert_eq!(left_out["fortran"], "is in Fortran order");
    assert_eq!(left_out["__metadata__"], "has the name of the metadata");
    for (dtype, what) in dtypes {
        let name = format!("g/{dtype}");
        match header.get(&name) {
            Some(tensor) => {
                assert_eq!((&tensor["dtype"], &tensor["shape"]), (&what.into(), &serde_json::json!([3])));
                let from = tensor["data_offsets"][0].as_u64().unwrap();
                let itemsize = Dtype::parse_python(dtype).unwrap().itemsize();
                assert!(from.is_multiple_of(itemsize), "{name}");
            }
            None => assert_eq!(left_out[&name], what),
        }
    }
    assert_eq!(header.len() + left_out.len(), dtypes.len() + 3);
    assert_views(&f, &f.other);
}

#[test]
fn nothing_of_a_view_can_be_changed() {
    for read_only in [false, true] {
        let f =
            Fixture::with(|store| ["a", "g/b"].iter().for_each(|name| save(store, name, 3, 0)), read_only);
        let views = f.lookup(".views").unwrap().ino;
        let new = NewFile { write: true, truncate: true, ..NewFile::default() };
        for folder in [views, f.lookup(".views/g").unwrap().ino] {
            for name in ["all.npz", "a.raw", "b.raw", "new", "new.npy", "g"] {
                let name = OsStr::new(name);
                assert_errno(f.fs.unlink(folder, name), libc::EROFS);
                assert_errno(f.fs.rmdir(folder, name), libc::EROFS);
                assert_errno(f.fs.mkdir(folder, name, SetAttr::default()), libc::EROFS);
                assert_errno(f.fs.create(folder, name, new, CALLER), libc::EROFS);
                let a = OsStr::new("a.npy");
                assert_errno(f.fs.rename(folder, name, Ino::ROOT, a, Rename::Replace), libc::EROFS);
                assert_errno(f.fs.rename(Ino::ROOT, a, folder, name, Rename::Replace), libc::EROFS);
            }
        }
        assert_errno(f.fs.rmdir(Ino::ROOT, OsStr::new(".views")), libc::EROFS);
        assert_errno(f.fs.mkdir(Ino::ROOT, OsStr::new(".views"), SetAttr::default()), libc::EROFS);
        for path in [".views", ".views/g", ".views/a.raw", ALL[0], ALL[1]] {
            let attr = f.lookup(path).unwrap();
            assert_eq!(attr.perm & 0o222, 0, "{path}");
            assert_errno(
                f.fs.setattr(attr.ino, SetAttr { perm: Some(0o444), ..SetAttr::default() }),
                libc::EROFS,
            );
            let set = SetAttr { size: Some(0), ..SetAttr::default() };
            assert_errno(f.fs.setattr(attr.ino, set), libc::EROFS);
            let xattr = OsStr::new("user.npk.attrs.k");
            assert_errno(f.fs.setxattr(attr.ino, xattr, b"1", SetMode::Any), libc::EROFS);
            assert_errno(f.fs.removexattr(attr.ino, xattr), libc::EROFS);
            if attr.ino.is_view() {
                for (write, truncate) in [(true, false), (false, true), (true, true)] {
                    let flags = OpenFlags { write, truncate };
                    assert_errno(f.fs.open_view(attr.ino, flags, CALLER), libc::EROFS);
                }
                let view = open(&f, path);
                assert!(f.fs.write(view.fh, 0, b"x", false).is_err());
                assert!(f.fs.fallocate(view.fh, 0, 1, true).is_err());
                assert!(!f.fs.flush(view.fh).unwrap());
                f.fs.fsync(view.fh).unwrap();
            }
        }
        let raw = f.lookup(".views/g/b.raw").unwrap().ino;
        assert_eq!(f.fs.getxattr(raw, OsStr::new("user.npk.dtype")).unwrap(), b"<u4");
        assert_eq!(f.fs.getxattr(raw, OsStr::new("user.npk.shape")).unwrap(), b"[3, 2]");
        let zip = f.lookup(ALL[0]).unwrap().ino;
        assert_errno(f.fs.getxattr(zip, OsStr::new("user.npk.dtype")), libc::ENODATA);
        assert!(f.fs.listxattr(zip).unwrap().is_empty());
    }
}

#[test]
fn who_may_read_all_data_files_may_read_a_view() {
    let f = Fixture::with(|store| ["a", "b"].iter().for_each(|name| save(store, name, 3, 0)), false);
    let chmod = |name: &str, mode| {
        let path = f.path.join(f.other.array(name).unwrap().file_name());
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    // Long enough ago: only what is allowed changes from now on.
    let old = SystemTime::now() - Duration::from_secs(60);
    ["a", "b"].iter().for_each(|name| f.other.array(name).unwrap().set_times(None, Some(old)).unwrap());
    chmod("a", 0o644);
    chmod("b", 0o640);
    let perm = |path: &str| f.lookup(path).unwrap().perm;
    assert_eq!((perm(".views/a.raw"), perm(".views/b.raw")), (0o444, 0o440));
    assert_eq!((perm(ALL[0]), perm(ALL[1])), (0o440, 0o440));
    chmod("a", 0o600);
    assert_eq!((perm(ALL[0]), perm(ALL[1])), (0o400, 0o400));
    chmod("a", 0o644);
    chmod("b", 0o644);
    assert_eq!(
        (perm(ALL[0]), perm(ALL[1]), perm(".views")),
        (0o444, 0o444, f.fs.getattr(Ino::ROOT).unwrap().perm & 0o555)
    );
    // A folder that one may not enter hides what is in it.
    let folder =
        f.fs.mkdir(Ino::ROOT, OsStr::new("g"), SetAttr { perm: Some(0o750), ..SetAttr::default() }).unwrap();
    save(&f.other, "g/c", 1, 0);
    assert_eq!((perm(ALL[0]), perm(ALL[1]), perm(".views/g")), (0o440, 0o440, 0o550));
    assert_eq!(f.fs.getattr(folder.ino).unwrap().perm, 0o750);
    let latest = f.lookup("g/c.npy").unwrap().mtime;
    let latest = latest.max(f.lookup("b.npy").unwrap().mtime);
    assert_eq!(f.lookup(ALL[0]).unwrap().mtime, latest);
}

#[test]
fn damage_is_an_error_where_it_is_read() {
    let f = Fixture::with(
        |store| {
            // Blocks that are stored as they are.
            let data = Rng::new(3).bytes(200_000);
            store.save_as(&[("damaged", array(&[50_000], &data))], Some(&small_blocks())).unwrap();
            store.save(&[("sound", array(&[40_000], &data[..160_000]))]).unwrap();
            save(store, "missing", 3, 0);
        },
        false,
    );
    let array = f.other.array("damaged").unwrap();
    let file = OpenOptions::new().read(true).write(true).open(f.path.join(array.file_name())).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[!byte[0]], middle).unwrap();
    std::fs::remove_file(f.path.join(f.other.array("missing").unwrap().file_name())).unwrap();

    for path in [ALL[0], ALL[1]] {
        let ino = f.lookup(path).unwrap().ino;
        // It is looked for once more first: it might have been overwritten.
        assert_errno(f.fs.open_view(ino, READ, CALLER), libc::ESTALE);
        let view = open(&f, path);
        let pages: Vec<_> =
            (0..view.len.div_ceil(4096)).map(|page| view.try_read(page * 4096, 4096)).collect();
        let n_failed = pages.iter().filter(|page| page.is_err()).count();
        // A block, which is one page or lies in two, and the one where the missing elements are.
        assert!((2..=3).contains(&n_failed), "{path}: {n_failed}");
        pages
            .iter()
            .filter_map(|page| page.as_ref().err())
            .for_each(|error| assert_eq!(error.errno(), libc::EIO));
    }
    let view = open_damaged(&f, ALL[0]);
    let members = view.members();
    let sound = members.iter().find(|member| member.name == "sound.npy").unwrap();
    let content = view.read(sound.start, sound.len as usize);
    assert_eq!(crc32fast::hash(&content), sound.crc);
    assert!(view.try_read(members[0].start, 128).unwrap().ends_with(b"    \n"));
    assert!(view.try_read(members[0].start, members[0].len as u32).is_err());
}

fn open_damaged<'a>(f: &'a Fixture, path: &str) -> Opened<'a> {
    let ino = f.lookup(path).unwrap().ino;
    match f.fs.open_view(ino, READ, CALLER) {
        Ok(fh) => drop(f.fs.release(fh)),
        Err(error) => assert_eq!(error.errno(), libc::ESTALE),
    }
    open(f, path)
}

#[test]
fn a_view_leaves_no_descriptor_behind() {
    let n_arrays = 300;
    let f = Fixture::with(|store| (0..n_arrays).for_each(|i| save(store, &format!("a{i}"), 1, i)), false);
    // Of this store: other tests run meanwhile.
    let n_open = || {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        targets.filter(|target| target.starts_with(&f.path)).count()
    };
    let before = n_open();
    {
        let (first, second) = (open(&f, ALL[0]), open(&f, ALL[1]));
        assert!(n_open() >= before + n_arrays as usize);
        assert_eq!(unzip(&first.whole()).len(), 300);
        second.whole();
        assert!(n_open() < before + n_arrays as usize + 100, "they share them");
    }
    assert!(n_open() < before + 100);
}
