//! Compressed arrays that are decoded whole and served by the kernel: real mounts, as root. Programs of their own
//! (`python3`, with nothing but its standard library) hold the mappings.
#![cfg(feature = "fuse")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use common::mounted::*;
use numpack::fs::Ino;
use numpack::fuse::{MountOptions, Mounted};
use numpack::store::{Compression, Store};
use numpack::sys::mounts;

const MIB: u64 = 1 << 20;
/// Elements of an array that is decoded when it is first opened.
const SMALL: u32 = 140_000;
/// Length of the file "probe.npy", and of all arrays with [`SMALL`] elements.
const SMALL_LEN: u64 = HEADER_LEN + 4 * SMALL as u64;
/// Elements of one that is decoded when it is opened for the second time.
const LARGE: u32 = (33 << 20) / 4;

/// A mount that decodes arrays.
struct Decoding(Mount);

impl Deref for Decoding {
    type Target = Mount;

    fn deref(&self) -> &Mount {
        &self.0
    }
}

impl DerefMut for Decoding {
    fn deref_mut(&mut self) -> &mut Mount {
        &mut self.0
    }
}

impl Decoding {
    /// A mount where decoded arrays may have `limit` bytes.
    fn new(limit: u64, fill: impl FnOnce(&Store)) -> Option<Self> {
        Self::with(&MountOptions { decoded: Some(limit), ..MountOptions::default() }, fill)
    }

    fn with(options: &MountOptions, fill: impl FnOnce(&Store)) -> Option<Self> {
        let this = Self(Mount::with(options, |store| {
            fill(store);
            save(store, "probe", SMALL, 0);
        })?);
        if options.decoded != Some(0) {
            fs::read(this.path("probe.npy")).unwrap();
            if this.decoded_len() == 0 {
                static SAID: AtomicBool = AtomicBool::new(false);
                if !SAID.swap(true, Ordering::Relaxed) {
                    let why = "the kernel takes no files to serve by itself: that needs root, and Linux 6.9";
                    let _ = writeln!(io::stderr(), "SKIPPED all tests of decoded arrays: {why}");
                }
                return None;
            }
        }
        Some(this)
    }

    fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().unwrap()
    }

    fn decoded_len(&self) -> u64 {
        self.mounted().decoded_len()
    }

    fn values(&self, name: &str) -> Vec<u32> {
        values_of(&fs::read(self.path(name)).unwrap())
    }

    fn stored(&self, name: &str) -> Vec<u32> {
        let array = self.other.array(name).unwrap();
        let mut bytes = vec![0; array.nbytes() as usize];
        array.read_into(&mut bytes).unwrap();
        numbers_of(&bytes)
    }

    fn is_decoded(&self, file: &File) -> bool {
        self.mounted().is_decoded(Ino(file.metadata().unwrap().ino()))
    }

    /// Opens a file so that the kernel serves it. Others may have to be closed for that, which takes a moment.
    fn open_decoded(&self, name: &str) -> File {
        let mut decoded = None;
        wait_until("a decoded file", || {
            decoded = File::open(self.path(name)).ok().filter(|file| self.is_decoded(file));
            decoded.is_some()
        });
        decoded.unwrap()
    }

    /// Files without a name that this process has open in the store's folder.
    fn n_unnamed(&self) -> usize {
        let store = fs::canonicalize(self.store_path()).unwrap();
        let links =
            fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        links
            .filter(|link| link.starts_with(&store) && link.to_string_lossy().ends_with(" (deleted)"))
            .count()
    }
}

/// What an array of `len` elements from `first` on holds: numbers that compress, each different from those of another
/// `first`.
fn pattern(len: u32, first: u32) -> Vec<u32> {
    (0..len).map(|i| first.wrapping_mul(1_000_003).wrapping_add(i / 2)).collect()
}

fn bytes_of(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn numbers_of(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn save(store: &Store, name: &str, len: u32, first: u32) {
    let data = bytes_of(&pattern(len, first));
    let compression = Compression { level: 1, ..Compression::default() };
    store.save_as(&[(name, array(&[len.into()], &data))], Some(&compression)).unwrap();
}

fn append(store: &Store, name: &str, elements: &[u32]) {
    store.append(&[(name, array(&[elements.len() as u64], &bytes_of(elements)))]).unwrap();
}

fn replace(store: &Store, name: &str, at: u64, elements: &[u32]) {
    let len = elements.len() as u64;
    store.replace_range(name, at..at + len, array(&[len], &bytes_of(elements))).unwrap();
}

/// Where element `i` is.
fn offset_of(i: u64) -> u64 {
    HEADER_LEN + 4 * i
}

#[test]
fn small_arrays_are_decoded_when_opened_and_large_ones_when_opened_after_much_was_read() {
    let Some(m) = Decoding::new(100 * MIB, |store| {
        save(store, "small", SMALL, 1);
        save(store, "g/large", LARGE, 2);
        save(store, "tiny", 10, 3);
    }) else {
        return;
    };
    let before = m.decoded_len();
    assert_eq!(m.values("small.npy"), pattern(SMALL, 1));
    assert_eq!(m.decoded_len(), before + SMALL_LEN);
    assert_eq!(m.mounted().n_decoded_blocks(), 0);
    // No file is made for what is read in one request.
    for _ in 0..2 {
        assert_eq!(m.values("tiny.npy"), pattern(10, 3));
    }
    assert_eq!(m.decoded_len(), before + SMALL_LEN);

    let before = m.decoded_len();
    for _ in 0..3 {
        File::open(m.path("g/large.npy")).unwrap();
    }
    assert_eq!(m.values("g/large.npy"), pattern(LARGE, 2));
    assert_eq!(m.decoded_len(), before);
    let by_daemon = m.mounted().n_decoded_blocks();
    assert!(by_daemon > 100);
    assert_eq!(m.values("g/large.npy"), pattern(LARGE, 2));
    assert_eq!(m.decoded_len(), before + HEADER_LEN + 4 * u64::from(LARGE));

    // From here on the daemon decodes nothing, whoever reads.
    let mut mapper = Mapper::new(&m.path("g/large.npy"), "rb");
    let sum: u64 = pattern(LARGE, 2).iter().map(|number| u64::from(*number)).sum();
    assert_eq!(mapper.tell("sum 4096"), sum.to_string());
    let file = File::open(m.path("g/large.npy")).unwrap();
    for i in (0..1000).map(|i| i * 7919 % u64::from(LARGE)) {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, HEADER_LEN + 4 * i).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), 2 * 1_000_003 + i as u32 / 2);
    }
    assert_eq!(m.mounted().n_decoded_blocks(), by_daemon);
}

#[test]
fn read_only_mounts_decode_too() {
    let options = MountOptions { read_only: true, decoded: Some(MIB), ..MountOptions::default() };
    let Some(m) = Decoding::with(&options, |store| save(store, "a", SMALL, 1)) else { return };
    m.open_decoded("a.npy");
    assert_eq!(m.values("a.npy"), pattern(SMALL, 1));
}

#[test]
fn nothing_is_decoded_without_room_for_it() {
    for limit in [0, SMALL_LEN] {
        let Some(m) = Decoding::new(limit, |store| save(store, "a", SMALL + 1, 1)) else { return };
        let before = m.decoded_len();
        for _ in 0..3 {
            assert_eq!(m.values("a.npy"), pattern(SMALL + 1, 1));
        }
        assert_eq!(m.decoded_len(), before);
        assert!(m.mounted().n_decoded_blocks() > 0);
    }
}

#[test]
fn decoded_files_follow_commits() {
    let Some(m) = Decoding::new(100 * MIB, |store| save(store, "a", 300_000, 1)) else { return };
    let file = m.open_decoded("a.npy");
    let mut mapper = Mapper::new(&m.path("a.npy"), "rb");
    let mut expected = pattern(300_000, 1);
    for (round, at) in (0..).zip([0_u64, 16_383, 150_000, 299_990]) {
        let new = pattern(10, 100 + round);
        replace(&m.other, "a", at, &new);
        expected[at as usize..at as usize + 10].copy_from_slice(&new);
        wait_until("a replaced row", || mapper.get(offset_of(at + 9)) == new[9]);

        let more = pattern([1, 5, 100_000, 7][round as usize], 200 + round);
        append(&m.other, "a", &more);
        expected.extend(&more);
        let len = HEADER_LEN + 4 * expected.len() as u64;
        wait_until("the new length", || file.metadata().unwrap().len() == len);
        assert_eq!(mapper.tell("size"), len.to_string());
        // Who sees the length finds the rows; the header follows.
        let mut all = vec![0; 4 * expected.len()];
        file.read_exact_at(&mut all, HEADER_LEN).unwrap();
        assert!(numbers_of(&all) == expected);
        // An open is answered when all of it is there.
        assert!(m.values("a.npy") == expected);
    }
    assert_eq!(m.mounted().n_decoded_blocks(), 0);
    assert_eq!(m.decoded_len(), SMALL_LEN + HEADER_LEN + 4 * expected.len() as u64);
}

#[test]
fn commits_while_nobody_has_the_array_open_are_what_the_next_open_sees() {
    let Some(m) = Decoding::new(10 * MIB, |store| save(store, "a", SMALL, 0)) else { return };
    let mut expected = pattern(SMALL, 0);
    for round in 1..100 {
        assert!(m.values("a.npy") == expected, "{round}");
        let at = u64::from(round * 7919 % SMALL).min(u64::from(SMALL) - 20);
        let new = pattern(20, round);
        replace(&m.other, "a", at, &new);
        expected[at as usize..at as usize + 20].copy_from_slice(&new);
        if round % 3 == 0 {
            append(&m.other, "a", &new);
            expected.extend(&new);
        }
    }
    assert_eq!(m.mounted().n_decoded_blocks(), 0);
}

#[test]
fn a_mapping_follows_commits_when_its_file_is_closed() {
    let Some(m) = Decoding::new(10 * MIB, |store| save(store, "a", SMALL, 1)) else { return };
    let mut mapper = Mapper::new(&m.path("a.npy"), "rb");
    assert_eq!(mapper.tell("close"), "None");
    replace(&m.other, "a", 40_000, &[77]);
    wait_until("a replaced row", || mapper.get(offset_of(40_000)) == 77);
    // It has its place as long as it is mapped.
    assert_eq!(m.decoded_len(), 2 * SMALL_LEN);
}

#[test]
fn overwriting_leaves_those_who_have_the_array_open_alone() {
    let Some(m) = Decoding::new(10 * MIB, |store| save(store, "a", SMALL, 1)) else { return };
    let old = m.open_decoded("a.npy");
    let mut mapper = Mapper::new(&m.path("a.npy"), "rb");
    save(&m.other, "a", 1000, 2);
    assert_eq!(m.values("a.npy"), pattern(1000, 2));
    m.other.drop_rows(&["a"], &[0]).unwrap();
    assert_eq!(m.values("a.npy"), pattern(1000, 2)[1..]);
    let mut bytes = vec![0; 4 * SMALL as usize];
    old.read_exact_at(&mut bytes, HEADER_LEN).unwrap();
    assert!(numbers_of(&bytes) == pattern(SMALL, 1));
    assert_eq!(mapper.get(offset_of(49_999)), pattern(SMALL, 1)[49_999]);
    drop((old, mapper));
    wait_until("the end of decoded versions that are gone", || m.decoded_len() == SMALL_LEN);
    m.other.remove(&["a"]).unwrap();
    wait_until("the end of a name", || !m.path("a.npy").exists());
}

#[test]
fn arrays_make_room_for_each_other_unless_they_are_open() {
    let len = SMALL_LEN;
    let names = ["a", "b", "c", "d", "e"];
    let Some(m) = Decoding::new(2 * len + len / 2, |store| {
        for (first, name) in (1..).zip(names) {
            save(store, name, SMALL, first);
        }
    }) else {
        return;
    };
    for _ in 0..3 {
        for (first, name) in (1..).zip(names) {
            let _file = m.open_decoded(&format!("{name}.npy"));
            assert!(m.values(&format!("{name}.npy")) == pattern(SMALL, first));
            assert!(m.decoded_len() <= m.mounted().decoded_limit());
        }
    }
    let open = [m.open_decoded("a.npy"), m.open_decoded("b.npy")];
    // No room is left: the third is served as it is.
    assert!(!m.is_decoded(&File::open(m.path("c.npy")).unwrap()));
    assert!(m.values("c.npy") == pattern(SMALL, 3));
    assert!(m.decoded_len() <= m.mounted().decoded_limit());
    for (file, first) in open.iter().zip(1..) {
        let mut bytes = vec![0; 4 * SMALL as usize];
        file.read_exact_at(&mut bytes, HEADER_LEN).unwrap();
        assert!(numbers_of(&bytes) == pattern(SMALL, first));
    }
    drop(open);
    m.open_decoded("d.npy");
}

#[test]
fn many_programs_open_many_arrays_at_once() {
    let names = ["a", "b", "g/c", "g/d"];
    let Some(m) = Decoding::new(100 * MIB, |store| {
        for (first, name) in (1..).zip(names) {
            save(store, name, 400_000, first);
        }
    }) else {
        return;
    };
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let m = &m;
            scope.spawn(move || {
                for (first, name) in (1..).zip(names).cycle().skip(thread % 4).take(12) {
                    assert!(m.values(&format!("{name}.npy")) == pattern(400_000, first));
                }
            });
        }
    });
    assert_eq!(m.decoded_len(), SMALL_LEN + 4 * HEADER_LEN + 4 * 1_600_000);
    assert_eq!(m.mounted().n_decoded_blocks(), 0);
}

#[test]
fn the_space_is_given_back_with_the_mount() {
    let Some(mut m) = Decoding::new(10 * MIB, |store| save(store, "a", SMALL, 1)) else { return };
    // That of "probe" is there, and maybe data files that were made without a name.
    let before = m.n_unnamed();
    m.open_decoded("a.npy");
    assert_eq!(m.n_unnamed(), before + 1);
    m.unmount();
    assert_eq!(m.n_unnamed(), before - 1);
}

#[test]
fn writers_use_a_second_inode() {
    let Some(m) = Decoding::new(10 * MIB, |store| save(store, "a", SMALL, 1)) else { return };
    let reader = m.open_decoded("a.npy");
    let mut mapped = Mapper::new(&m.path("a.npy"), "rb");

    // What write() brings is there at once.
    let writer = OpenOptions::new().read(true).write(true).open(m.path("a.npy")).unwrap();
    writer.write_all_at(&77_u32.to_le_bytes(), HEADER_LEN + 400).unwrap();
    assert_eq!(mapped.get(offset_of(100)), 77);
    let mut bytes = [0; 4];
    for file in [&reader, &writer, &File::open(m.path("a.npy")).unwrap()] {
        file.read_exact_at(&mut bytes, HEADER_LEN + 400).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), 77);
    }
    writer.sync_all().unwrap();
    assert_eq!(m.stored("a")[100], 77);

    // What a mapping changes, when that is flushed, or ends.
    let mut mapping = Mapper::new(&m.path("a.npy"), "r+b");
    assert_eq!(mapping.get(offset_of(100)), 77);
    assert_eq!(mapping.tell(&format!("set {} 88", offset_of(20_000))), "None");
    assert_eq!(mapping.tell("flush"), "None");
    assert_eq!(mapped.get(offset_of(20_000)), 88);
    assert_eq!(mapping.tell(&format!("set {} 89", offset_of(20_001))), "None");
    drop(mapping);
    wait_until("writeback", || mapped.get(offset_of(20_001)) == 89);

    // What others commit, all of them see.
    replace(&m.other, "a", 30_000, &[99]);
    wait_until("a replaced row", || mapped.get(offset_of(30_000)) == 99);
    wait_until("a replaced row", || {
        writer.read_exact_at(&mut bytes, HEADER_LEN + 120_000).unwrap();
        u32::from_le_bytes(bytes) == 99
    });
    append(&m.other, "a", &[1, 2, 3]);
    let len = HEADER_LEN + 4 * u64::from(SMALL + 3);
    for file in [&reader, &writer] {
        wait_until("the new length", || file.metadata().unwrap().len() == len);
    }
    writer.write_all_at(&55_u32.to_le_bytes(), len - 4).unwrap();
    reader.read_exact_at(&mut bytes, len - 4).unwrap();
    assert_eq!(u32::from_le_bytes(bytes), 55);

    // When all have closed it, it has one inode again, and is decoded as it is by now.
    let ino = reader.metadata().unwrap().ino();
    assert_ne!(writer.metadata().unwrap().ino(), ino);
    drop((reader, mapped, writer));
    let mut expected = pattern(SMALL, 1);
    expected.extend([1, 2, 55]);
    for (i, value) in [(100, 77), (20_000, 88), (20_001, 89), (30_000, 99)] {
        expected[i] = value;
    }
    assert!(m.values("a.npy") == expected);
    wait_until("the old inode", || fs::metadata(m.path("a.npy")).unwrap().ino() == ino);
    m.open_decoded("a.npy");
    assert!(m.values("a.npy") == expected && m.stored("a") == expected);
}

#[test]
fn what_is_written_while_others_map_the_array_is_seen_and_stored() {
    let Some(m) = Decoding::new(10 * MIB, |store| save(store, "a", SMALL, 1)) else { return };
    let reader = m.open_decoded("a.npy");
    let mut mapped = Mapper::new(&m.path("a.npy"), "rb");
    assert!(m.is_decoded(&reader));
    let mut expected = pattern(SMALL, 1);
    assert_eq!(mapped.get(offset_of(100)), expected[100]);

    // Side by side in one block, at the edge of two, and at the end.
    let last = u64::from(SMALL) - 1;
    let by_write = [(100, 1), (16_383, 2), (16_384, 3), (last - 1, 4)];
    let by_mapping = [(101, 5), (16_382, 6), (16_385, 7), (last, 8)];
    let writer = OpenOptions::new().read(true).write(true).open(m.path("a.npy")).unwrap();
    let mut mapping = Mapper::new(&m.path("a.npy"), "r+b");
    for (i, value) in by_write {
        writer.write_all_at(&u32::to_le_bytes(value), offset_of(i)).unwrap();
        assert_eq!(mapped.get(offset_of(i)), value);
        assert_eq!(mapping.get(offset_of(i)), value);
        expected[i as usize] = value;
    }
    for (i, value) in by_mapping {
        assert_eq!(mapping.tell(&format!("set {} {value}", offset_of(i))), "None");
        expected[i as usize] = value;
    }
    assert_eq!(mapping.tell("flush"), "None");
    assert_eq!(mapping.tell("fsync"), "None");
    writer.sync_all().unwrap();
    assert!(m.stored("a") == expected);

    // Nor does the commit bring anything old back to those who have the array mapped, or open.
    for (i, value) in by_write.into_iter().chain(by_mapping) {
        assert_eq!(mapped.get(offset_of(i)), value);
    }
    for file in [&reader, &writer] {
        let mut npy = vec![0; SMALL_LEN as usize];
        file.read_exact_at(&mut npy, 0).unwrap();
        assert!(values_of(&npy) == expected);
    }
    assert!(m.is_decoded(&reader));
}

#[test]
fn arrays_that_are_open_for_writing_are_not_decoded() {
    let Some(m) = Decoding::new(10 * MIB, |store| save(store, "a", SMALL, 1)) else { return };
    let mut expected = pattern(SMALL, 1);
    for round in 0..20 {
        let writer = OpenOptions::new().read(true).write(true).open(m.path("a.npy")).unwrap();
        writer.write_all_at(&[round; 8], HEADER_LEN + 4000 * u64::from(round)).unwrap();
        expected[1000 * round as usize..][..2].fill(u32::from_le_bytes([round; 4]));
        assert!(!m.is_decoded(&File::open(m.path("a.npy")).unwrap()));
        assert!(m.values("a.npy") == expected);
        let decoded = (round % 2 == 0).then(|| File::open(m.path("a.npy")).unwrap());
        drop(writer);
        assert!(m.values("a.npy") == expected);
        drop(decoded);
        assert!(m.values("a.npy") == expected);
    }
}

#[test]
fn damage_stays_where_it_is() {
    let Some(m) = Decoding::new(10 * MIB, |store| {
        let compression = Compression { block_len: 65536, ..Compression::default() };
        store
            .save_as(&[("a", array(&[200_000], &bytes_of(&pattern(200_000, 1))))], Some(&compression))
            .unwrap();
    }) else {
        return;
    };
    // The first blocks are written first, behind the headers.
    let data = OpenOptions::new().write(true).open(m.store_path().join("data_a.npkd")).unwrap();
    data.write_all_at(&[0xff; 16], 4096 + HEADER_LEN).unwrap();
    let before = m.decoded_len();
    for _ in 0..2 {
        let file = File::open(m.path("a.npy")).unwrap();
        let mut bytes = [0; 4];
        let error = file.read_exact_at(&mut bytes, HEADER_LEN).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        file.read_exact_at(&mut bytes, HEADER_LEN + 4 * 190_000).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), pattern(200_000, 1)[190_000]);
    }
    assert_eq!(m.decoded_len(), before);
}

#[test]
fn readers_among_busy_writers_never_see_less_than_was_written() {
    for is_decoded in [true, false] {
        let Some(m) = Decoding::new(10 * MIB, |store| save(store, "a", SMALL, 1)) else { return };
        let reader = is_decoded.then(|| m.open_decoded("a.npy"));
        read_among_busy_writers(&m, reader.as_ref());
    }
}

fn read_among_busy_writers(m: &Decoding, reader: Option<&File>) {
    const ROUNDS: u32 = 80;
    let path = m.path("a.npy");
    // Each writer has an element, far from the others', and counts it up; so does another process.
    let places = [10, 25_000, 49_000].map(offset_of);
    let written = places.map(|_| AtomicU32::new(0));
    let count_up = |i: usize, write: &dyn Fn(u32)| {
        for round in 1..=ROUNDS {
            write(round);
            written[i].store(round, Ordering::SeqCst);
        }
    };
    for i in [10, 25_000, 49_000] {
        replace(&m.other, "a", i, &[0]);
    }
    for i in [10, 25_000, 49_000] {
        wait_until("the beginning", || m.values("a.npy")[i] == 0);
    }
    let check = |file: &File, i: usize| {
        let least = written[i].load(Ordering::SeqCst);
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, places[i]).unwrap();
        let found = u32::from_le_bytes(bytes);
        assert!(found >= least && found <= ROUNDS, "{found} after {least}");
    };
    std::thread::scope(|scope| {
        let (path, count_up, places, check, written) = (&path, &count_up, &places, &check, &written);
        // One opens it anew each time, one has it open.
        scope.spawn(move || {
            count_up(0, &|round| {
                let file = OpenOptions::new().write(true).open(path).unwrap();
                file.write_all_at(&round.to_le_bytes(), places[0]).unwrap();
            });
        });
        scope.spawn(move || {
            let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
            count_up(1, &|round| {
                file.write_all_at(&round.to_le_bytes(), places[1]).unwrap();
                if round % 50 == 0 {
                    file.sync_all().unwrap();
                }
            });
        });
        scope.spawn(move || count_up(2, &|round| replace(&m.other, "a", 49_000, &[round])));
        for _ in 0..2 {
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    // What others commit, an open sees; what is written through the mount, everybody.
                    let committed = written[2].load(Ordering::SeqCst);
                    let file = File::open(path).unwrap();
                    let mut bytes = [0; 4];
                    file.read_exact_at(&mut bytes, places[2]).unwrap();
                    let found = u32::from_le_bytes(bytes);
                    assert!(found >= committed && found <= ROUNDS, "{found} after {committed}");
                    for file in reader.into_iter().chain([&file]).cycle().take(10) {
                        check(file, 0);
                        check(file, 1);
                    }
                }
            });
        }
    });
    let mut expected = pattern(SMALL, 1);
    for i in [10, 25_000, 49_000] {
        expected[i] = ROUNDS;
    }
    assert!(m.values("a.npy") == expected);
    drop(OpenOptions::new().write(true).open(&path).unwrap());
    assert!(m.stored("a") == expected);
}

#[test]
fn the_process_needs_little_memory() {
    const LEN: usize = 40 << 20;
    let mut elements = vec![0; LEN];
    for i in (0..LEN).step_by(100_003) {
        elements[i] = i as u32;
    }
    let mut m = match Decoding::new(MIB, |_| {}) {
        Some(m) => m,
        None => return,
    };
    m.unmount();
    let compression = Compression { level: 1, ..Compression::default() };
    let data = bytes_of(&elements);
    m.other.save_as(&[("a", array(&[LEN as u64], &data))], Some(&compression)).unwrap();

    let mut program = Command::new(env!("CARGO_BIN_EXE_npkfs"))
        .args(["mount", "--foreground", "-o", "decoded=200M"])
        .arg(m.store_path())
        .arg(m.path(""))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(program.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let read = || fs::read(m.path("a.npy")).map(|all| all[HEADER_LEN as usize..] == data);
    let both = [read(), read()];
    let status = fs::read_to_string(format!("/proc/{}/status", program.id())).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let most: u64 = most.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    mounts::unmount(&m.path(""), false).unwrap();
    assert!(program.wait().unwrap().success());
    assert!(both.iter().all(|is_same| matches!(is_same, Ok(true))), "{both:?}");
    assert!(most < 100 << 10, "{most} KiB, of an array of 160 MiB");
}
