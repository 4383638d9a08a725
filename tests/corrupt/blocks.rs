//! Damage to compressed data files, and indexes with right checksums that say what no index says.

use std::collections::BTreeMap;
use std::sync::Arc;

use numpack::format::block_index::{
    FILE_HEADER_LEN, FileHeader, PAGE_FANOUT, Pointer, SLOT_LEN, SLOT_OFFSETS, encode_page,
};
use numpack::format::{
    ArrayId, BlockKind, Blocks, Codec, Edit, Filter, Generation, Index, Layout, Op, Record, frame, npy,
};
use numpack::store::{
    Access, Array, Compression, Depth, Dtype, NewArray, Store, StoreError, verify_storage_with,
};
use numpack::sys::{DirStorage, FileAccess, Storage as _};
use rmpv::Value;

use crate::common::MemStorage;
use crate::common::blocks::{Found, Place, look, read, table};
use crate::common::rng::Rng;
use crate::sample::{MANIFEST, payloads, put, sample};
use crate::{Told, limit_resources};

const BLOCK_LEN: u64 = 4096;
const BLOCKS: Compression =
    Compression { level: 1, block_len: BLOCK_LEN as u32, filter: Some(Filter::Shuffle) };
const FILE: &str = "data_a.npkd";

/// Of a MessagePack map.
type Entries = Vec<(Value, Value)>;

/// A store with one compressed array `a` of 4-byte items, its files, and where everything is in its data file.
struct Big {
    manifest: Vec<u8>,
    file: Vec<u8>,
    found: Found,
}

/// With a tree of two levels, blocks of several kinds, dead space, and a tail behind which rows were appended.
fn big() -> Big {
    let memory = MemStorage::new();
    let store = Store::create_in(Box::new(memory.clone())).expect("creates");
    let array =
        |data| NewArray { dtype: dtype(), shape: vec![data_len(data) / 4], fortran_order: false, data };
    let n = 258 * 1024_u32;
    let data: Vec<u8> = (0..n).flat_map(|i| (i / 3).to_le_bytes()).collect();
    store.save_as(&[("a", array(&data))], Some(&BLOCKS)).expect("saves");
    let noise = Rng::new(1).bytes(5000);
    store.append(&[("a", array(&noise[..400]))]).expect("appends");
    store.replace_range("a", 73_728..74_978, array(&noise)).expect("replaces");
    let record = table(&memory).get("a").unwrap().expect("is there").clone();
    let file = read(&memory, FILE);
    let found = look(&record, &file);
    assert_eq!((found.pages.len(), found.kinds.len()), (3, 259));
    assert!(found.kinds.contains(&BlockKind::Raw) && found.kinds.last() == Some(&BlockKind::OpenTail));
    Big { manifest: read(&memory, MANIFEST), file, found }
}

fn dtype() -> Dtype {
    Dtype::parse_python("'<u4'").expect("a dtype")
}

fn data_len(data: &[u8]) -> u64 {
    data.len() as u64
}

impl Big {
    fn with(&self, file: &[u8]) -> MemStorage {
        let memory = MemStorage::new();
        put(&memory, MANIFEST, &self.manifest);
        put(&memory, FILE, file);
        memory
    }

    /// Reads a block in some way.
    fn read(&self, array: &Array, block: u64, way: usize) -> Result<(), StoreError> {
        let start = block * BLOCK_LEN;
        let expected = &self.found.elements[start as usize..];
        let expected = &expected[..expected.len().min(BLOCK_LEN as usize)];
        let mut out = vec![0xa5; expected.len()];
        let first = start / 4;
        match way % 3 {
            0 => array.read_rows_into(first..first + expected.len() as u64 / 4, &mut out)?,
            1 => {
                array.gather_into(&[first], &mut out[..4])?;
                out[4..].copy_from_slice(&expected[4..]);
            }
            _ => assert_eq!(array.read_npy_at(array.header_len() + start, &mut out)?, out.len()),
        }
        assert!(out == expected, "block {block} is read as something else");
        Ok(())
    }

    /// Reads the blocks `damaged`, which must give the error of what is at `offset`, and another one, which is right.
    fn assert_damaged(&self, file: &[u8], damaged: std::ops::Range<u64>, offset: usize, way: usize) {
        let store = Store::with_storage(Box::new(self.with(file)), Access::Read).expect("opens");
        let array = store.array("a").expect("is there");
        for block in [damaged.start, damaged.end - 1] {
            match self.read(&array, block, way).expect_err("is damaged") {
                ref error @ StoreError::Block {
                    array: ref name,
                    file: ref own,
                    block: found,
                    offset: at,
                    ..
                } => {
                    assert_eq!((&**name, &**own, found, at), ("a", FILE, block, offset as u64));
                    let text = error.to_string();
                    assert!(
                        text.contains(&format!("array \"a\": block {block} at byte {offset} of {FILE}")),
                        "{text}"
                    );
                }
                error => panic!("{error}"),
            }
        }
        let other = (0..self.found.kinds.len() as u64).find(|block| !damaged.contains(block));
        if let Some(other) = other {
            self.read(&array, other, way).expect("is whole");
        }
    }
}

/// Which byte of a place is damaged, and how.
fn flips(place: &Place, step: usize) -> impl Iterator<Item = (usize, u8)> {
    let (offset, len) = (place.offset, place.len);
    (0..len)
        .filter(move |at| at % step == 0 || at + 1 == len)
        .map(move |at| (offset + at, 1 << (at / step % 8)))
}

#[test]
fn flipped_byte_of_a_page_or_block_is_an_error_of_what_it_leads_to() {
    limit_resources();
    let big = big();
    let n = big.found.blocks.len();
    let some_blocks = [0, 1, 71, 72, 73, 255, 256, n - 2, n - 1].map(|block| &big.found.blocks[block]);
    let pages =
        big.found.pages.iter().flat_map(|page| flips(page, 1 + page.len / 600).map(move |flip| (page, flip)));
    let blocks = some_blocks
        .into_iter()
        .flat_map(|block| flips(block, 1 + block.len / 60).map(move |flip| (block, flip)));
    for (place, (at, flip)) in pages.chain(blocks) {
        let _told = Told(format!("byte {at} ^ {flip:#x} in {place:?}"));
        let mut file = big.file.clone();
        file[at] ^= flip;
        big.assert_damaged(&file, place.blocks.clone(), place.offset, at);
    }
}

#[test]
fn cut_compressed_data_file_is_an_error_of_what_is_missing() {
    limit_resources();
    let big = big();
    let start = (FILE_HEADER_LEN + 4096) as usize;
    for len in (0..start).step_by(577).chain([4095, 4096, start - 1]) {
        let store = Store::with_storage(Box::new(big.with(&big.file[..len])), Access::Read).expect("opens");
        assert!(matches!(store.array("a"), Err(StoreError::DataFile { .. })), "{len}");
    }
    // Where a block or page ends, and within.
    for place in big.found.pages.iter().chain(&big.found.blocks).step_by(5) {
        for len in [place.offset, place.offset + 1, place.offset + place.len - 1] {
            let _told = Told(format!("cut at {len}"));
            let store =
                Store::with_storage(Box::new(big.with(&big.file[..len])), Access::Read).expect("opens");
            let array = store.array("a").expect("is there");
            let error = big.read(&array, place.blocks.start, 0).expect_err("is cut").to_string();
            assert!(error.contains("before the end of the file"), "{error}");
        }
    }
}

/// The header of the data file is for those who have it open after the array is gone; nobody else needs it.
#[test]
fn damaged_header_of_a_compressed_data_file_is_found_by_verifying_only() {
    limit_resources();
    let big = big();
    let used = (0..100).chain(SLOT_OFFSETS.into_iter().flat_map(|at| at as usize..at as usize + SLOT_LEN));
    for at in used {
        let _told = Told(format!("byte {at}"));
        let mut file = big.file.clone();
        file[at] ^= 1 << (at % 8);
        let memory = big.with(&file);
        let store = Store::with_storage(Box::new(memory.clone()), Access::Read).expect("opens");
        let array = store.array("a").expect("is there");
        for block in [0, 258] {
            big.read(&array, block, at).expect("is whole");
        }
        // One slot that is torn is no damage.
        let report = verify_storage_with(Box::new(memory), Depth::Index).expect("verifies");
        let is_header = at < 24 + 40 && file[at] != 0;
        assert!(!report.problems.is_empty() || !is_header, "{at}: {:?}", report.problems);
    }
}

/// Who has a version open that is gone finds its newest state in the slots; damaged ones lead to an older one, or to an
/// error.
#[test]
fn damaged_slots_of_a_version_that_is_gone_never_give_wrong_elements() {
    limit_resources();
    let states: Vec<Vec<u8>> = (1..5).map(|seed| Rng::new(seed).bytes(6000)).collect();
    for at in SLOT_OFFSETS.into_iter().flat_map(|at| at as usize..at as usize + SLOT_LEN) {
        let _told = Told(format!("byte {at}"));
        let memory = MemStorage::new();
        let store = Store::create_in(Box::new(memory.clone())).expect("creates");
        let array = |data| NewArray { dtype: dtype(), shape: vec![1500], fortran_order: false, data };
        store.save_as(&[("a", array(&states[0]))], Some(&BLOCKS)).expect("saves");
        let held = Store::with_storage(Box::new(memory.clone()), Access::Read)
            .expect("opens")
            .array("a")
            .expect("is there");
        for state in &states[1..] {
            store.replace_range("a", 0..1500, array(state)).expect("replaces");
        }
        let file = memory.open(FILE, FileAccess::Write).expect("opens");
        store.remove(&["a"]).expect("removes");
        let mut byte = [0];
        file.read_at(&mut byte, at as u64).expect("reads");
        file.write_at(&[byte[0] ^ (1 << (at % 8))], at as u64).expect("writes");
        let mut out = vec![0; 6000];
        match held.read_into(&mut out) {
            Ok(()) => assert!(states.contains(&out)),
            Err(StoreError::Block { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// A record of a compressed array of bytes.
fn record(nbytes: u64, dtype: &str, index: Index) -> Record {
    let dtype = Dtype::parse_python(dtype).expect("a dtype");
    let n = nbytes / dtype.itemsize().max(1);
    Record {
        name: "x".into(),
        id: ArrayId(1000),
        file: "data_x.npkd".into(),
        layout: Layout::new(&dtype, &[n], false).expect("fits"),
        dtype,
        offset: 128,
        blocks: Some(Blocks { codec: codec(), index }),
        deleted: Default::default(),
        mtime: 0,
        attrs: Arc::default(),
        upstream: None,
    }
}

fn codec() -> Codec {
    Codec::new(1, BLOCK_LEN as u32, Filter::Shuffle).expect("is within the limits")
}

/// Where blocks begin in the data file of [`record`].
const START: u64 = FILE_HEADER_LEN + 128;

/// The sample with one more array, which this record describes, and what its data file has from [`START`] on.
fn with_array(record: &Record, contents: &[u8]) -> MemStorage {
    let mut file = FileHeader { npy_len: 128, codec: codec() }.to_bytes();
    file.extend(npy::encode_within(&record.dtype, &record.layout, 128).expect("is long enough"));
    file.extend(contents);
    let ops = vec![Op::Put(record.clone())];
    let sample = sample();
    let mut payloads = payloads(&sample.files[MANIFEST]);
    let generation = Generation(payloads.len() as u64);
    payloads.push(Edit { generation, time: 0, ops }.encode());
    let memory = sample.with_payloads(&payloads);
    put(&memory, "data_x.npkd", &file);
    memory
}

fn pointer(kind: BlockKind, offset: u64, stored: &[u8]) -> Pointer {
    Pointer { kind, offset, stored_len: stored.len() as u32, crc: crc32fast::hash(stored) }
}

fn index(root: Pointer, tail: Pointer, len: u64) -> Index {
    Index { root, tail, end: START + len, live: 0 }
}

fn opened(memory: &MemStorage) -> Result<Store, StoreError> {
    Store::with_storage(Box::new(memory.clone()), Access::Write)
}

/// Looks at the array `x` in all ways but reading it whole, and changes it; gives what reading byte `at` says.
fn use_array(memory: &MemStorage, at: u64) -> Result<u8, StoreError> {
    let store = opened(memory).expect("opens");
    let array = store.array("x").expect("is there");
    let mut out = [0xa5];
    let read = array.read_npy_at(array.header_len() + at, &mut out);
    let _ = array.usage();
    let report = verify_storage_with(Box::new(memory.clone()), Depth::Elements).expect("verifies");
    let is_told = report.problems.iter().any(|problem| problem.file == "data_x.npkd");
    assert!(read.is_ok() || is_told, "{read:?}, {report:?}");
    // Whatever this does, it comes to an end, and says what is wrong.
    let offset = array.header_len() + at;
    let results =
        [array.write_npy_at(offset, &out), array.write_back(&[(offset, &out)]), store.compact("x").map(drop)];
    for result in results {
        assert!(matches!(result, Ok(()) | Err(StoreError::Block { .. })), "{result:?}");
    }
    read.map(|_| out[0])
}

#[test]
fn indexes_that_cannot_be_are_refused_by_the_name_of_the_array() {
    limit_resources();
    let absent = Pointer::ABSENT;
    let somewhere = |kind, len: usize| pointer(kind, START, &vec![1; len]);
    for (nbytes, index, what) in [
        (4096, index(somewhere(BlockKind::Page, 16), absent, 4096), "wrong kind"),
        (8192, index(somewhere(BlockKind::Raw, 4096), absent, 4096), "wrong kind"),
        (4096, index(somewhere(BlockKind::OpenTail, 4096), absent, 4096), "wrong kind"),
        (4096, index(absent, somewhere(BlockKind::Raw, 4096), 4096), "no partial block"),
        (100, index(somewhere(BlockKind::Raw, 4096), absent, 4096), "no full block"),
        (100, index(absent, somewhere(BlockKind::Zstd, 100), 4096), "wrong kind or length"),
        (4096, index(somewhere(BlockKind::Raw, 4096), absent, 4095), "outside"),
        (0, Index { end: u64::MAX, ..index(absent, absent, 0) }, "no file has"),
        (0, Index { live: u64::MAX, ..index(absent, absent, 0) }, "no file has"),
    ] {
        let memory = with_array(&record(nbytes, "'|u1'", index), &[]);
        let error = opened(&memory).expect("opens").record("x").expect_err(what).to_string();
        assert!(error.contains("\"x\"") && error.contains(what), "{error}");
        assert!(error.contains(MANIFEST) && error.contains("npkfs verify"), "{error}");
    }
    // The same, said by an edit of blocks.
    let root = somewhere(BlockKind::Raw, 4096);
    let good = record(4096, "'|u1'", index(root, absent, 4096));
    for (n_rows, index, what) in [
        (4096, Index { end: u64::MAX, ..index(root, absent, 0) }, "no file has"),
        (4095, index(root, absent, 4096), "4095 rows"),
        (u64::MAX, index(root, absent, 4096), ""),
        (8192, index(root, absent, 4096), "wrong kind"),
    ] {
        let memory = with_array(&good, &[1; 4096]);
        let mut payloads = payloads(&read(&memory, MANIFEST));
        let generation = Generation(payloads.len() as u64);
        payloads
            .push(Edit { generation, time: 0, ops: vec![Op::Blocks("x".into(), n_rows, index)] }.encode());
        put(&memory, MANIFEST, &read(&sample().with_payloads(&payloads), MANIFEST));
        let error = opened(&memory).expect_err(what).to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn blocks_that_are_not_what_they_must_be_are_errors() {
    limit_resources();
    let frame = |len: usize| zstd_frame(&vec![7; len]);
    let absent = Pointer::ABSENT;
    let right = frame(4096);
    let longer = frame(8192);
    let twice = [frame(4096), frame(4096)].concat();
    let shuffled = frame(4096);
    for (dtype, kind, stored, what) in [
        ("'|u1'", BlockKind::Zstd, &right, ""),
        ("'|u1'", BlockKind::Zstd, &longer, "claims 8192 bytes, expected 4096"),
        ("'|u1'", BlockKind::Zstd, &twice, "cannot be decoded"),
        ("'|u1'", BlockKind::ZstdShuffle, &shuffled, "items of 1 byte"),
        ("'|S3'", BlockKind::ZstdDelta, &shuffled, "items of 3 bytes"),
        ("'|S3'", BlockKind::Zstd, &vec![1; 100], "cannot be decoded"),
    ] {
        let root = pointer(kind, START, stored);
        let memory = with_array(&record(4096 / 3 * 3 + 3, dtype, index(root, absent, 4096)), stored);
        // Items of three bytes do not fill a block.
        let memory = if dtype == "'|S3'" {
            let tail =
                Pointer { crc: crc32fast::hash(&[1, 1]), ..pointer(BlockKind::Raw, START + 4096, &[1, 1]) };
            let contents = [&stored[..], &vec![0; 4096 - stored.len()], &[1, 1]].concat();
            with_array(&record(4098, dtype, index(root, tail, 4098)), &contents)
        } else {
            memory
        };
        match use_array(&memory, 0) {
            Ok(byte) => assert_eq!((byte, what), (7, "")),
            Err(error) => assert!(!what.is_empty() && error.to_string().contains(what), "{error}"),
        }
    }
    // The bytes have the checksum that the index says, and the index says that they are a page.
    let page = encode_page(&[pointer(BlockKind::Raw, START, &[1; 4096])]);
    let inner = pointer(BlockKind::Page, START, &page);
    let outer = encode_page(&[inner]);
    let contents = [&page[..], &outer].concat();
    let root = pointer(BlockKind::Page, START + page.len() as u64, &outer);
    let memory = with_array(&record(8192, "'|u1'", index(root, absent, 4096 + 32)), &contents);
    let error = use_array(&memory, 0).expect_err("a page is no block").to_string();
    assert!(error.contains("wrong kind or length"), "{error}");
}

/// A zstd frame of this content, made as small as can be: one block of one byte repeated.
fn zstd_frame(content: &[u8]) -> Vec<u8> {
    let byte = content[0];
    assert!(content.iter().all(|own| *own == byte));
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000];
    frame.extend((content.len() as u32).to_le_bytes());
    // The last block, of kind RLE.
    frame.extend(&((content.len() as u32) << 3 | 0b011).to_le_bytes()[..3]);
    frame.push(byte);
    frame
}

/// Pages that lead to themselves, to each other, and many pointers to one page: all with right checksums.
#[test]
fn pages_in_circles_and_shared_pages_come_to_an_end() {
    limit_resources();
    for n_pointers in [2, 3, 256] {
        // The crc in the last pointer but one is chosen so that the page has the checksum that its pointers say.
        let crc = 0x5eed_5eed;
        let own = Pointer { kind: BlockKind::Page, offset: START, stored_len: n_pointers * 16, crc };
        let mut pointers = vec![own; n_pointers as usize];
        let mut page = encode_page(&pointers);
        let free = page.len() - 4;
        force_crc(&mut page, free, crc);
        pointers[n_pointers as usize - 1].crc =
            u32::from_le_bytes(page[free..].try_into().expect("four bytes"));
        assert_eq!((encode_page(&pointers), crc32fast::hash(&page)), (page.clone(), crc));
        let index = index(own, Pointer::ABSENT, page.len() as u64);
        for nbytes in [8192, 1 << 24, 1 << 62] {
            let _told = Told(format!("{n_pointers} pointers, {nbytes} bytes"));
            let memory = with_array(&record(nbytes, "'|u1'", index), &page);
            for at in [nbytes - 1, nbytes / 2] {
                let read = use_array(&memory, at);
                assert!(read.as_ref().is_ok_and(|byte| *byte == 0) || read.is_err(), "{read:?}");
            }
            use_array(&memory, 0).expect_err("has no end");
        }
    }
    // All blocks of a large array are one and the same: it can be read, and everything ends.
    let block = zstd_frame(&[7; 4096]);
    let mut contents = block.clone();
    let mut child = pointer(BlockKind::Zstd, START, &block);
    for _ in 0..3 {
        let page = encode_page(&[child; PAGE_FANOUT]);
        child = pointer(BlockKind::Page, START + contents.len() as u64, &page);
        contents.extend(page);
    }
    let nbytes = BLOCK_LEN << 24;
    let memory =
        with_array(&record(nbytes, "'|u1'", index(child, Pointer::ABSENT, contents.len() as u64)), &contents);
    for at in [0, nbytes / 2, nbytes - 1] {
        assert_eq!(use_array(&memory, at).expect("is there"), 7);
    }
}

/// Sets the four bytes at `at` so that all have the checksum `crc`: a crc is linear in each of their bits.
fn force_crc(bytes: &mut [u8], at: usize, crc: u32) {
    let mut with = |free: u32| {
        bytes[at..at + 4].copy_from_slice(&free.to_le_bytes());
        crc32fast::hash(bytes)
    };
    let zero = with(0);
    // Rows of what each bit changes, and of which bits, in echelon form.
    let mut rows: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
    let reduced = |rows: &BTreeMap<u32, (u32, u32)>, mut row: (u32, u32)| {
        while row.0 != 0 {
            let Some(other) = rows.get(&row.0.leading_zeros()) else { break };
            row = (row.0 ^ other.0, row.1 ^ other.1);
        }
        row
    };
    for bit in 0..32 {
        let row = reduced(&rows, (with(1 << bit) ^ zero, 1 << bit));
        rows.insert(row.0.leading_zeros(), row);
    }
    let (rest, free) = reduced(&rows, (crc ^ zero, 0));
    assert_eq!((rest, with(free)), (0, crc));
}

/// Blocks behind the last one, which the shape does not have.
#[test]
fn blocks_that_the_array_does_not_have_are_found() {
    limit_resources();
    let block = zstd_frame(&[7; 4096]);
    let page = encode_page(&[pointer(BlockKind::Zstd, START, &block); 5]);
    let root = pointer(BlockKind::Page, START + block.len() as u64, &page);
    let contents = [&block[..], &page].concat();
    for n in [2, 3, 4] {
        let index = index(root, Pointer::ABSENT, contents.len() as u64);
        let memory = with_array(&record(n * 4096, "'|u1'", index), &contents);
        assert_eq!(use_array(&memory, n * 4096 - 1).expect("is there"), 7);
        let array =
            opened(&with_array(&record(n * 4096, "'|u1'", index), &contents)).expect("opens").array("x");
        let error = array.expect("is there").usage().expect_err("has more").to_string();
        assert!(error.contains("does not have"), "{error}");
    }
}

/// What the manifest says of codecs is refused by its name, and so are limits and bytes that are too many.
#[test]
fn codecs_that_nobody_knows_are_refused_by_name() {
    limit_resources();
    let index = Index::empty(128);
    let memory = with_array(&record(0, "'|u1'", index), &[]);
    opened(&memory).expect("opens");
    let all = payloads(&read(&memory, MANIFEST));
    let refuse = |what: &str, change: &dyn Fn(&mut Entries)| {
        let mut payloads = all.clone();
        let last = payloads.last_mut().expect("there is one");
        let mut edit = rmpv::decode::read_value(&mut &last[..]).expect("is MessagePack");
        change_record(&mut edit, change);
        last.clear();
        rmpv::encode::write_value(last, &edit).expect("writes to memory");
        let storage = sample().with_payloads(&payloads);
        put(&storage, "data_x.npkd", &read(&memory, "data_x.npkd"));
        let store = Store::with_storage(Box::new(storage), Access::Read);
        let error = store.and_then(|store| store.record("x")).expect_err(what).to_string();
        assert!(error.contains(what), "{error}");
    };
    let set = |key: &'static str, value: Value| {
        move |record: &mut Entries| {
            let codec =
                record.iter_mut().find(|(own, _)| own.as_str() == Some("codec")).expect("there is one");
            let Value::Map(codec) = &mut codec.1 else { panic!("is a map") };
            codec.iter_mut().find(|(own, _)| own.as_str() == Some(key)).expect("there is one").1 =
                value.clone();
        }
    };
    refuse("codec \"lz4\" is not known to this release", &set("name", "lz4".into()));
    refuse("filter \"bitshuffle\" is not known to this release", &set("filter", "bitshuffle".into()));
    refuse("level is 23", &set("level", 23.into()));
    for block_len in [0_u32, 1, 4095, 4097, (16 << 20) + 4096, u32::MAX] {
        refuse(&format!("block length is {block_len}"), &set("block", block_len.into()));
    }
    refuse("another length than that of an index", &|record| {
        let index = record.iter_mut().find(|(own, _)| own.as_str() == Some("index")).expect("there is one");
        let Value::Binary(bytes) = &mut index.1 else { panic!("is bytes") };
        bytes.push(0);
    });
    for gone in ["codec", "index"] {
        refuse("\"x\"", &|record| record.retain(|(own, _)| own.as_str() != Some(gone)));
    }
}

/// Changes the record that an edit puts.
fn change_record(edit: &mut Value, change: &dyn Fn(&mut Entries)) {
    let Value::Map(entries) = edit else { panic!("is a map") };
    let ops = entries.iter_mut().find(|(key, _)| key.as_str() == Some("ops")).expect("there are some");
    let Value::Array(ops) = &mut ops.1 else { panic!("is an array") };
    let Value::Map(op) = &mut ops[0] else { panic!("is a map") };
    let Value::Array(put) = &mut op[0].1 else { panic!("is an array") };
    let Value::Binary(bytes) = &mut put[1] else { panic!("is bytes") };
    let mut record = rmpv::decode::read_value(&mut &bytes[..]).expect("is MessagePack");
    let Value::Map(entries) = &mut record else { panic!("is a map") };
    change(entries);
    bytes.clear();
    rmpv::encode::write_value(bytes, &record).expect("writes to memory");
}

/// What no pointer could lead to is not written.
#[test]
fn nothing_is_written_behind_the_last_offset_there_is() {
    limit_resources();
    let block = zstd_frame(&[7; 4096]);
    let root = pointer(BlockKind::Zstd, START, &block);
    // All is dead, by what it says, or nothing is.
    for (live, is_written) in [(0, true), ((1 << 56) - START, false)] {
        let index = Index { end: 1 << 56, live, ..index(root, Pointer::ABSENT, 0) };
        let memory = with_array(&record(4096, "'|u1'", index), &block);
        let array = opened(&memory).expect("opens").array("x").expect("is there");
        let written = array.write_npy_at(array.header_len(), &[1]);
        match &written {
            Ok(()) => assert!(is_written),
            Err(StoreError::Io { source, .. }) => assert_eq!(source.raw_os_error(), Some(libc::EFBIG)),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(written.is_ok(), is_written);
        let array = opened(&memory).expect("opens").array("x").expect("is there");
        let mut out = [0; 2];
        array.read_npy_at(array.header_len(), &mut out).expect("reads");
        assert_eq!(out, [if is_written { 1 } else { 7 }, 7]);
    }
}

/// Where no file can be that long, what is written there fails, and all else works.
#[test]
fn an_end_far_away_is_an_error_of_the_disk_or_none() {
    limit_resources();
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("data.npk");
    let elements = Rng::new(1).bytes(5000);
    let array =
        |data| NewArray { dtype: dtype(), shape: vec![data_len(data) / 4], fortran_order: false, data };
    let store = Store::create(&path).expect("creates");
    store.save_as(&[("a", array(&elements))], Some(&BLOCKS)).expect("saves");
    drop(store);
    let storage = DirStorage::open(&path).expect("opens");
    let Blocks { index, .. } =
        table(&storage).get("a").unwrap().expect("is there").blocks.expect("is compressed");
    for end in [1 << 45, 1 << 55, 1 << 56] {
        let mut manifest = read(&storage, MANIFEST);
        let generation = Generation(table(&storage).generation().0 + 1);
        let n_rows = table(&storage).get("a").unwrap().expect("is there").layout.n_rows();
        let ops = vec![Op::Blocks("a".into(), n_rows, Index { end, ..index })];
        manifest.extend(frame::encode(&Edit { generation, time: 0, ops }.encode(), 0).expect("is short"));
        std::fs::write(path.join(MANIFEST), manifest).expect("writes");
        let store = Store::open(&path, Access::Write).expect("opens");
        let written = store.replace_range("a", 0..2, array(&elements[..8]));
        assert!(matches!(written, Ok(()) | Err(StoreError::Io { .. })), "{written:?}");
        let reader = Store::open(&path, Access::Read).expect("opens");
        let mut out = vec![0; elements.len()];
        reader.array("a").expect("is there").read_into(&mut out).expect("reads");
        assert!(out == elements);
        if written.is_ok() {
            // Its end is behind that now; and a file this long takes its time wherever holes are looked for.
            break;
        }
        store.set_attrs(None, Default::default(), &[]).expect("commits");
    }
}
