//! Reading compressed arrays: from positions in the stored elements to blocks, through the index to their bytes.
//!
//! A [`View`] is one committed state of an array's blocks. Whoever holds an old one may find its blocks overwritten,
//! which their checksums show: then there is a newer view, in the manifest or in the data file itself, and only if
//! there is none is it damage. So readers need no lock, and see what is written in place as they do in an
//! uncompressed array.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::Shared;
use super::data::{DataFile, lock};
use super::error::{BlockFault, StoreError};
use crate::codec::Decoder;
use crate::format::block_index::{self, FILE_HEADER_LEN, Pointer, SLOT_LEN, SLOT_OFFSETS, Slot};
use crate::format::{BlockKind, Blocks, Codec, Index, Record};
use crate::sys::sync::{Mutex, thread_local};

/// Index pages that are kept for each open array: those of 4 GiB in blocks of 64 KiB.
const MAX_PAGES: usize = 256;
/// Decoded blocks that are kept for each open array, for those who read it row by row: as many as a row of a
/// Fortran-ordered array with so many columns is in.
const MAX_RECENT: usize = 64;
/// Decoded blocks that are kept have this many bytes in all.
const MAX_RECENT_LEN: usize = 4 << 20;
/// How often a reader looks for newer blocks. Each time, a writer has overwritten blocks that were committed at the
/// time before, for which it has to wait for the disk.
const MAX_ATTEMPTS: u32 = 100;

/// How often it reads the same state again. It may have been another one meanwhile: contents that come back, at places
/// that are used in turn, have the same index.
const MAX_SAME: u32 = 3;

/// How often a reader has looked for newer blocks.
#[derive(Debug, Default)]
struct Attempts {
    n: u32,
    n_same: u32,
}

/// One committed state of the blocks of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    pub(super) index: Index,
    pub(super) codec: Codec,
    /// Bytes of the stored elements.
    pub(super) nbytes: u64,
    /// Bytes of one element, which the filters work on.
    pub(super) itemsize: u64,
    /// Where blocks and pages begin in the data file.
    pub(super) start: u64,
}

impl View {
    /// The state that `record` describes; `None` if the array is not compressed.
    pub(super) fn of(record: &Record) -> Option<Self> {
        let Blocks { codec, index } = record.blocks?;
        Some(Self {
            index,
            codec,
            nbytes: record.layout.nbytes(),
            itemsize: record.layout.itemsize(),
            start: FILE_HEADER_LEN + record.offset,
        })
    }

    pub(super) fn block_len(&self) -> u64 {
        u64::from(self.codec.block_len)
    }

    /// Blocks that are not the tail.
    pub(super) fn n_full(&self) -> u64 {
        self.nbytes / self.block_len()
    }

    /// Bytes of the last, partial block.
    pub(super) fn tail_len(&self) -> u64 {
        self.nbytes % self.block_len()
    }

    /// Blocks, the tail included.
    pub(super) fn n_blocks(&self) -> u64 {
        self.nbytes.div_ceil(self.block_len())
    }

    /// Bytes of the data file that belong to what a pointer leads to: an open tail has room to grow.
    pub(super) fn reserved_len(&self, pointer: &Pointer) -> u64 {
        match pointer.kind {
            BlockKind::OpenTail => self.block_len(),
            _ => u64::from(pointer.stored_len),
        }
    }

    /// Decoded bytes of a block.
    pub(super) fn raw_len(&self, block: u64) -> u64 {
        if block < self.n_full() { self.block_len() } else { self.tail_len() }
    }
}

/// What is kept of the blocks of an open data file. Entries are found by pointers, which are of one state of a block
/// or page only, so none is ever out of date.
#[derive(Debug, Default)]
pub(super) struct BlockCache {
    pages: Mutex<HashMap<Pointer, Arc<[Pointer]>>>,
    recent: Mutex<VecDeque<(Pointer, Arc<[u8]>)>>,
}

impl BlockCache {
    fn page(&self, pointer: &Pointer) -> Option<Arc<[Pointer]>> {
        lock(&self.pages).get(pointer).cloned()
    }

    fn keep_page(&self, pointer: Pointer, page: &Arc<[Pointer]>) {
        let mut pages = lock(&self.pages);
        if pages.len() >= MAX_PAGES {
            // Readers go on through the array, or jump about: no page is better than another.
            pages.clear();
        }
        pages.insert(pointer, Arc::clone(page));
    }

    fn recent(&self, pointer: &Pointer) -> Option<Arc<[u8]>> {
        lock(&self.recent).iter().rev().find(|(of, _)| of == pointer).map(|(_, bytes)| Arc::clone(bytes))
    }

    fn keep_recent(&self, pointer: Pointer, bytes: &Arc<[u8]>) {
        let mut recent = lock(&self.recent);
        let n_kept = MAX_RECENT.min(MAX_RECENT_LEN / bytes.len().max(1)).max(1);
        while recent.len() >= n_kept {
            recent.pop_front();
        }
        recent.push_back((pointer, Arc::clone(bytes)));
    }
}

/// Why a block could not be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// Its bytes are not those that its pointer says, at this offset of the data file.
    Fault(u64, BlockFault),
    /// The system refused.
    Io(std::io::Error),
}

thread_local! {
    /// What decoding needs besides the bytes, kept because it takes as long to make as some blocks take to decode.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    decoder: Decoder,
    stored: Vec<u8>,
}

/// Longest run of blocks that is read from the file in one call, in stored bytes.
const MAX_RUN_LEN: usize = 1 << 20;

/// Reads the stored bytes at `pointer` and checks them.
fn read_stored(data: &DataFile, pointer: &Pointer, out: &mut Vec<u8>) -> Result<(), ReadError> {
    out.resize(pointer.stored_len as usize, 0);
    let read = data.file.read_at(out, pointer.offset).map_err(ReadError::Io)?;
    if read < out.len() {
        let (found, expected) = (read as u64, u64::from(pointer.stored_len));
        return Err(ReadError::Fault(pointer.offset, BlockFault::Short { found, expected }));
    }
    check_crc(pointer, out)
}

fn check_crc(pointer: &Pointer, stored: &[u8]) -> Result<(), ReadError> {
    let found = crc32fast::hash(stored);
    if found == pointer.crc {
        return Ok(());
    }
    Err(ReadError::Fault(pointer.offset, BlockFault::Checksum { found, expected: pointer.crc }))
}

impl DataFile {
    /// The header of a compressed data file: up to its end, or that of the file.
    pub(super) fn file_header(&self) -> std::io::Result<Vec<u8>> {
        let mut header = vec![0; SLOT_OFFSETS[1] as usize + SLOT_LEN];
        let read = self.file.read_at(&mut header, 0)?;
        header.truncate(read);
        Ok(header)
    }

    /// The pointers of an index page that is `level` levels above the blocks of `view`.
    pub(super) fn page(
        &self,
        view: &View,
        pointer: &Pointer,
        level: u32,
    ) -> Result<Arc<[Pointer]>, ReadError> {
        if let Some(page) = self.blocks.page(pointer) {
            return Ok(page);
        }
        let mut stored = Vec::new();
        read_stored(self, pointer, &mut stored)?;
        let fault = |what| ReadError::Fault(pointer.offset, BlockFault::Index(what));
        let page: Arc<[Pointer]> = block_index::parse_page(&stored).map_err(fault)?.into();
        for child in page.iter() {
            block_index::check_pointer(child, level - 1, view.block_len(), view.start, view.index.end)
                .map_err(fault)?;
        }
        self.blocks.keep_page(*pointer, &page);
        Ok(page)
    }

    /// The pointer of a block.
    pub(super) fn pointer(&self, view: &View, block: u64) -> Result<Pointer, ReadError> {
        if block >= view.n_full() {
            return Ok(view.index.tail);
        }
        let mut pointer = view.index.root;
        for level in (1..=block_index::height(view.n_full())).rev() {
            if pointer.is_absent() {
                break;
            }
            pointer = self.page(view, &pointer, level)?[block_index::slot_in_page(block, level)];
        }
        Ok(pointer)
    }

    /// Decodes a whole block into `out`, which has its raw length.
    pub(super) fn read_block(&self, view: &View, block: u64, out: &mut [u8]) -> Result<(), ReadError> {
        let pointer = self.pointer(view, block)?;
        self.read_pointer(view, &pointer, out)
    }

    pub(super) fn read_pointer(
        &self,
        view: &View,
        pointer: &Pointer,
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        if pointer.is_absent() {
            out.fill(0);
            return Ok(());
        }
        SCRATCH.with(|scratch| {
            let Scratch { decoder, stored } = &mut *scratch.borrow_mut();
            read_stored(self, pointer, stored)?;
            decode(decoder, view, pointer, stored, out)
        })
    }

    /// Decodes whole blocks from `first` on into `out`, which ends with a block, or with the tail.
    fn read_blocks(&self, view: &View, first: u64, out: &mut [u8]) -> Result<(), (u64, ReadError)> {
        SCRATCH.with(|scratch| {
            let Scratch { decoder, stored } = &mut *scratch.borrow_mut();
            let mut block = first;
            let mut rest = out;
            while !rest.is_empty() {
                // Blocks that follow each other in the file are read in one call.
                let mut run: Vec<Pointer> = Vec::new();
                let mut raw_len = 0;
                let mut run_len = 0;
                while raw_len < rest.len() {
                    let at = block + run.len() as u64;
                    let pointer = self.pointer(view, at).map_err(|error| (at, error))?;
                    let is_next = run.last().is_none_or(|last| {
                        last.end() == pointer.offset && !last.is_absent() && !pointer.is_absent()
                    });
                    if !is_next || run_len + pointer.stored_len as usize > MAX_RUN_LEN && !run.is_empty() {
                        break;
                    }
                    raw_len += view.raw_len(at) as usize;
                    run_len += pointer.stored_len as usize;
                    run.push(pointer);
                }
                let start = run[0].offset;
                stored.resize(run_len, 0);
                let read = match run_len {
                    0 => 0,
                    _ => self.file.read_at(stored, start).map_err(|e| (block, ReadError::Io(e)))?,
                };
                for pointer in run {
                    let failed = |error| (block, error);
                    let (raw, after) = rest.split_at_mut(view.raw_len(block) as usize);
                    if pointer.is_absent() {
                        raw.fill(0);
                    } else {
                        let from = (pointer.offset - start) as usize;
                        let to = from + pointer.stored_len as usize;
                        if to > read {
                            let found = read.saturating_sub(from) as u64;
                            let expected = u64::from(pointer.stored_len);
                            let fault = BlockFault::Short { found, expected };
                            return Err(failed(ReadError::Fault(pointer.offset, fault)));
                        }
                        check_crc(&pointer, &stored[from..to]).map_err(failed)?;
                        decode(decoder, view, &pointer, &stored[from..to], raw).map_err(failed)?;
                    }
                    rest = after;
                    block += 1;
                }
            }
            Ok(())
        })
    }
}

fn decode(
    decoder: &mut Decoder,
    view: &View,
    pointer: &Pointer,
    stored: &[u8],
    out: &mut [u8],
) -> Result<(), ReadError> {
    decoder
        .decode(pointer.kind, view.itemsize, stored, out)
        .map_err(|source| ReadError::Fault(pointer.offset, BlockFault::Codec(source)))
}

/// Reads one array from any position on, and remembers the block it read last.
pub(super) struct Cursor<'a> {
    shared: &'a Shared,
    record: &'a Record,
    data: &'a DataFile,
    view: View,
    current: Option<(u64, Arc<[u8]>)>,
}

impl<'a> Cursor<'a> {
    /// Reads what `record`, which is that of a compressed array, describes, with all that was written in place since.
    pub(super) fn new(shared: &'a Shared, record: &'a Record, data: &'a DataFile, view: View) -> Self {
        Self { shared, record, data, view, current: None }
    }

    /// Reads from byte `offset` of the stored elements on.
    pub(super) fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let block_len = self.view.block_len();
        let (mut offset, mut out) = (offset, out);
        while !out.is_empty() {
            let (block, within) = (offset / block_len, (offset % block_len) as usize);
            let whole = self.whole_blocks(block, within, out.len());
            let len = if whole > 0 {
                self.read_whole(block, &mut out[..whole])?;
                whole
            } else {
                let bytes = self.block(block)?;
                let len = out.len().min(bytes.len() - within);
                out[..len].copy_from_slice(&bytes[within..within + len]);
                len
            };
            offset += len as u64;
            out = &mut out[len..];
        }
        Ok(())
    }

    /// How many of `len` bytes from position `within` of `block` on are those of whole blocks.
    fn whole_blocks(&self, block: u64, within: usize, len: usize) -> usize {
        if within != 0 {
            return 0;
        }
        let block_len = self.view.block_len() as usize;
        let n_full = (len / block_len) as u64;
        let full_len = n_full as usize * block_len;
        let is_end = block + n_full >= self.view.n_full();
        // The tail is whole only as the view has it: the record may have an earlier, shorter one.
        if is_end && len - full_len == self.view.tail_len() as usize { len } else { full_len }
    }

    fn read_whole(&mut self, block: u64, out: &mut [u8]) -> Result<(), StoreError> {
        let mut attempts = Attempts::default();
        loop {
            let (at, error) = match self.data.read_blocks(&self.view, block, out) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            self.look_again(at, error, &mut attempts)?;
            if self.whole_blocks(block, 0, out.len()) != out.len() {
                // The tail has grown.
                return self.read(block * self.view.block_len(), out);
            }
        }
    }

    /// The decoded bytes of a block.
    pub(super) fn block(&mut self, block: u64) -> Result<Arc<[u8]>, StoreError> {
        if let Some((current, bytes)) = &self.current
            && *current == block
        {
            return Ok(Arc::clone(bytes));
        }
        let mut attempts = Attempts::default();
        let bytes = loop {
            match self.decoded(block) {
                Ok(bytes) => break bytes,
                Err(error) => self.look_again(block, error, &mut attempts)?,
            }
        };
        self.current = Some((block, Arc::clone(&bytes)));
        Ok(bytes)
    }

    fn decoded(&self, block: u64) -> Result<Arc<[u8]>, ReadError> {
        let pointer = self.data.pointer(&self.view, block)?;
        let raw_len = self.view.raw_len(block) as usize;
        if pointer.is_absent() {
            return Ok(std::iter::repeat_n(0, raw_len).collect());
        }
        if let Some(bytes) = self.data.blocks.recent(&pointer) {
            return Ok(bytes);
        }
        // Collected, it is allocated once; a vector would be copied.
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, raw_len).collect();
        let out = Arc::get_mut(&mut bytes).expect("nobody else has it yet");
        self.data.read_pointer(&self.view, &pointer, out)?;
        self.data.blocks.keep_recent(pointer, &bytes);
        Ok(bytes)
    }

    /// After `error`: goes on with a newer view, or says what is damaged.
    fn look_again(
        &mut self,
        block: u64,
        error: ReadError,
        attempts: &mut Attempts,
    ) -> Result<(), StoreError> {
        let (offset, what) = match error {
            ReadError::Fault(offset, what) => (offset, what),
            ReadError::Io(source) => {
                return Err(StoreError::io("read", self.shared.storage.path(), &self.record.file, source));
            }
        };
        let newest = self.shared.newest_view(self.record, self.data, true);
        attempts.n += 1;
        match newest {
            Some(newest) if newest != self.view && attempts.n < MAX_ATTEMPTS => {
                attempts.n_same = 0;
                self.view = newest;
                self.current = None;
                Ok(())
            }
            Some(newest) if newest == self.view && attempts.n_same < MAX_SAME => {
                attempts.n_same += 1;
                Ok(())
            }
            _ => Err(self.shared.block_fault(self.record, block, offset, what)),
        }
    }
}

impl Shared {
    /// The newest state of the blocks of the version that `record` describes. `thorough` asks the system instead of the
    /// shared word.
    ///
    /// `None` if the array is not compressed.
    pub(super) fn newest_view(&self, record: &Record, data: &DataFile, thorough: bool) -> Option<View> {
        let own = View::of(record)?;
        // A store that is damaged or gone does not keep those who have an array open from reading it.
        if thorough || !self.manifest().is_fresh() {
            let _ = self.catch_up(&mut self.manifest_mut(), thorough);
        }
        if let Some(current) = self.current(record, Some(data)) {
            return View::of(&current);
        }
        // Overwritten or removed: the file says what was written to it last.
        let header = data.file_header().unwrap_or_default();
        let noted = Slot::newest(&header).0.filter(|slot| {
            slot.nbytes >= own.nbytes && slot.index.check(slot.nbytes, record.offset, &own.codec).is_ok()
        });
        Some(match noted {
            Some(Slot { index, nbytes, .. }) => View { index, nbytes, ..own },
            None => own,
        })
    }

    /// The newest record of the version that `record` describes, whatever name it has by now, unless it is gone. `data`
    /// is its data file.
    pub(super) fn current(&self, record: &Record, data: Option<&DataFile>) -> Option<Arc<Record>> {
        if data.is_some_and(DataFile::is_gone) {
            return None;
        }
        let current = self.manifest().table.by_id(record.id).ok()?.cloned()?;
        // Another one has this identity if it is of a store that was made anew.
        let key = |record: &Record| (record.blocks.map(|blocks| blocks.codec), record.offset);
        let is_same =
            current.file == record.file && current.dtype == record.dtype && key(&current) == key(record);
        let is_later = current.layout.nbytes() >= record.layout.nbytes();
        (is_same && is_later).then_some(current)
    }

    pub(super) fn block_fault(
        &self,
        record: &Record,
        block: u64,
        offset: u64,
        what: BlockFault,
    ) -> StoreError {
        StoreError::Block {
            store: self.storage.path().to_owned(),
            array: record.name.to_string(),
            file: record.file.to_string(),
            block,
            offset,
            what: Box::new(what),
        }
    }
}
