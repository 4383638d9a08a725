//! Looks over the data files of compressed arrays, byte by byte, with nothing of the store but the format.

use std::ops::Range;

use numpack::codec::Decoder;
use numpack::format::block_index::{self, FILE_HEADER_LEN, FileHeader, Pointer, Slot};
use numpack::format::frame::{self, Log};
use numpack::format::{BlockKind, Blocks, Edit, Record, Table, npy};
use numpack::sys::{FileAccess, Storage};

/// What is in the data file of a compressed array.
#[derive(Debug, Default, Clone)]
pub struct Found {
    /// Kinds of all blocks, in order; the tail is the last.
    pub kinds: Vec<BlockKind>,
    pub pages: Vec<Place>,
    /// Those that are stored, the tail included.
    pub blocks: Vec<Place>,
    /// The stored elements.
    pub elements: Vec<u8>,
}

/// Where a block or page is.
#[derive(Debug, Clone)]
pub struct Place {
    pub offset: usize,
    pub len: usize,
    /// The blocks that it leads to, or is.
    pub blocks: Range<u64>,
}

pub fn read(storage: &dyn Storage, name: &str) -> Vec<u8> {
    let file = storage.open(name, FileAccess::Read).expect("opens");
    let mut bytes = vec![0; file.stat().expect("stat").len as usize];
    let n = file.read_at(&mut bytes, 0).expect("reads");
    bytes.truncate(n);
    bytes
}

/// The table that is in the manifest of a store.
pub fn table(storage: &dyn Storage) -> Table {
    let manifest = read(storage, "metadata.npkm");
    let mut log = Log::new(&manifest[frame::HEADER_LEN..], frame::HEADER_LEN as u64);
    let mut payload = || log.next().expect("is whole").map(|frame| frame.payload.to_vec());
    let mut table = Table::decode(&payload().expect("there is a snapshot"), 0).expect("decodes");
    while let Some(payload) = payload() {
        table.apply(&Edit::decode(&payload, 0).expect("decodes"), &mut |_| ()).expect("fits");
    }
    table
}

/// # Panics
/// If the data file of a compressed array is not what its record says, down to the last byte that is in use.
pub fn assert_blocks(storage: &dyn Storage) {
    let table = table(storage);
    for record in table.records().expect("decodes").into_iter().filter(|record| record.blocks.is_some()) {
        let file = read(storage, &record.file);
        look(record, &file);
        assert_headers(record, &file);
    }
}

/// As [`assert_blocks`], of a store whose last writer may have died before it wrote headers.
pub fn assert_whole(storage: &dyn Storage) {
    let table = table(storage);
    for record in table.records().expect("decodes").into_iter().filter(|record| record.blocks.is_some()) {
        look(record, &read(storage, &record.file));
    }
}

fn assert_headers(record: &Record, file: &[u8]) {
    let Blocks { index, .. } = record.blocks.expect("is compressed");
    let npy = &file[FILE_HEADER_LEN as usize..][..record.offset as usize];
    let npy = npy::parse(npy).unwrap_or_else(|error| panic!("{:?}: {error}", record.name));
    assert!(npy.describes(&record.dtype, &record.layout), "{:?}: {npy:?}", record.name);
    let slot = Slot::newest(file).0.expect("there is one");
    let expected = (index, record.layout.nbytes());
    assert_eq!((slot.index, slot.nbytes), expected, "{:?}: the slot lags behind", record.name);
}

/// # Panics
/// If `file` is not the data file of `record`, which is that of a compressed array.
pub fn look(record: &Record, file: &[u8]) -> Found {
    let Blocks { codec, index } = record.blocks.expect("is compressed");
    let header = FileHeader::parse(file).unwrap_or_else(|error| panic!("{:?}: {error}", record.name));
    assert_eq!((header.npy_len, header.codec), (record.offset, codec));
    let nbytes = record.layout.nbytes();
    let mut look = Look { record, file, found: Found::default(), extents: Vec::new() };
    let n_full = nbytes / u64::from(codec.block_len);
    look.below(index.root, block_index::height(n_full), 0, n_full);
    assert_eq!(look.found.kinds.len() as u64, n_full);
    let tail_len = nbytes % u64::from(codec.block_len);
    if tail_len > 0 {
        look.block(index.tail, tail_len);
    } else {
        assert!(index.tail.is_absent());
    }
    let Look { mut extents, found, .. } = look;
    extents.sort_unstable();
    assert_eq!(extents.iter().map(|(_, len)| len).sum::<u64>(), index.live, "{:?}", record.name);
    let ends = extents.iter().map(|(offset, len)| offset + len);
    let starts = extents.iter().map(|(offset, _)| *offset).chain([index.end]);
    let before = std::iter::once(FILE_HEADER_LEN + record.offset).chain(ends);
    assert!(before.zip(starts).all(|(end, start)| end <= start), "{:?}: {extents:?} overlap", record.name);
    assert_eq!(found.elements.len() as u64, nbytes);
    found
}

impl Place {
    fn of(pointer: &Pointer, blocks: Range<u64>) -> Self {
        Place { offset: pointer.offset as usize, len: pointer.stored_len as usize, blocks }
    }
}

struct Look<'a> {
    record: &'a Record,
    file: &'a [u8],
    found: Found,
    /// Offset and length of all that is in use.
    extents: Vec<(u64, u64)>,
}

impl Look<'_> {
    fn stored(&self, pointer: &Pointer) -> &[u8] {
        let stored = &self.file[pointer.offset as usize..][..pointer.stored_len as usize];
        assert_eq!(crc32fast::hash(stored), pointer.crc, "{:?}: {pointer:?}", self.record.name);
        stored
    }

    /// Looks at the blocks `first..end`, as far as they are below `pointer`, `level` levels above them.
    fn below(&mut self, pointer: Pointer, level: u32, first: u64, end: u64) {
        if first >= end {
            assert!(pointer.is_absent(), "leads to block {first} of {end}");
        } else if level == 0 {
            self.block(pointer, u64::from(self.record.blocks.expect("is compressed").codec.block_len));
        } else if pointer.is_absent() {
            for block in first..end.min(first.saturating_add(block_index::blocks_below(level))) {
                self.below(Pointer::ABSENT, 0, block, end);
            }
        } else {
            assert_eq!(pointer.kind, BlockKind::Page);
            let page = block_index::parse_page(self.stored(&pointer)).expect("is a page");
            self.extents.push((pointer.offset, pointer.stored_len.into()));
            let blocks = first..end.min(first + block_index::blocks_below(level));
            self.found.pages.push(Place::of(&pointer, blocks));
            for (slot, child) in (0..).zip(page) {
                self.below(child, level - 1, first + slot * block_index::blocks_below(level - 1), end);
            }
        }
    }

    fn block(&mut self, pointer: Pointer, raw_len: u64) {
        let stored = if pointer.is_absent() { &[] } else { self.stored(&pointer) };
        let mut raw = vec![0xa5; raw_len as usize];
        let decoded = Decoder::new().decode(pointer.kind, self.record.dtype.itemsize(), stored, &mut raw);
        decoded.unwrap_or_else(|error| panic!("{:?}: {error}", self.record.name));
        let len = match pointer.kind {
            BlockKind::OpenTail => u64::from(self.record.blocks.expect("is compressed").codec.block_len),
            _ => pointer.stored_len.into(),
        };
        if !pointer.is_absent() {
            let block = self.found.kinds.len() as u64;
            self.found.blocks.push(Place::of(&pointer, block..block + 1));
            self.extents.push((pointer.offset, len));
        }
        self.found.kinds.push(pointer.kind);
        self.found.elements.extend(raw);
    }
}
