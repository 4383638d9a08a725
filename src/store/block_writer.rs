//! Writing compressed arrays: new blocks and index pages go where nothing is that a committed state needs, and one
//! pointer, the root, is what a commit changes.
//!
//! What is not needed any more is dead. Dead bytes are written to again, and given back to the file system, only when
//! the commit that made them dead is on the disk: see [`Space`].

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread;

use super::blocks::{ReadError, View};
use super::data::{DataFile, lock};
use crate::codec::Encoder;
use crate::format::block_index::{self, MAX_END, PAGE_FANOUT, Pointer};
use crate::format::{BlockKind, Index};
use crate::sys::process::n_cores;
use crate::sys::sync::{Condvar, Mutex};

/// Blocks are encoded in batches of this many raw bytes: each is written in one call.
const BATCH_LEN: usize = 1 << 20;

/// Pointers that are collected before they are written to index pages.
const MAX_CHANGED: usize = 1 << 16;

/// A contiguous part of a data file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Where in a data file new blocks can go.
#[derive(Debug, Clone, Default)]
pub(super) struct Space {
    /// The state of the array for which this is true.
    of: Option<Index>,
    /// Dead extents that nobody needs, in order: the commit that made them so is on the disk.
    free: Vec<Extent>,
    /// Whether the file system has taken them back.
    is_punched: bool,
}

impl Space {
    /// The free space that is known for this state of the array.
    pub(super) fn known(data: &DataFile, index: &Index) -> Self {
        let space = lock(&data.space);
        if space.of == Some(*index) { space.clone() } else { Self::default() }
    }

    /// What is between the live extents `live`, of a file whose blocks are in `start..end`.
    pub(super) fn between(mut live: Vec<Extent>, start: u64, index: &Index) -> Self {
        live.sort_unstable();
        let mut free = Vec::new();
        let mut at = start;
        for extent in live.iter().chain([&Extent { offset: index.end, len: 0 }]) {
            if extent.offset > at {
                free.push(Extent { offset: at, len: extent.offset - at });
            }
            at = at.max(extent.offset + extent.len);
        }
        Self { of: Some(*index), free, is_punched: false }
    }

    /// Remembers this as what is free in the state `index`.
    pub(super) fn keep(mut self, data: &DataFile, index: &Index) {
        self.of = Some(*index);
        *lock(&data.space) = self;
    }

    pub(super) fn free(&self) -> &[Extent] {
        &self.free
    }

    pub(super) fn is_punched(&self) -> bool {
        self.is_punched
    }

    pub(super) fn set_punched(&mut self) {
        self.is_punched = true;
    }

    /// Bytes that are free.
    pub(super) fn len(&self) -> u64 {
        self.free.iter().map(|extent| extent.len).sum()
    }

    /// Takes `len` bytes of the first free extent that has as many.
    fn take(&mut self, len: u64) -> Option<u64> {
        let at = self.free.iter().position(|extent| extent.len >= len)?;
        let extent = &mut self.free[at];
        let offset = extent.offset;
        extent.offset += len;
        extent.len -= len;
        if extent.len == 0 {
            self.free.remove(at);
        }
        Some(offset)
    }
}

/// Why blocks could not be written.
#[derive(Debug)]
pub(super) enum WriteError {
    /// An index page, or a block of which a part is kept, cannot be read: which block.
    Read(u64, ReadError),
    /// The system refused.
    Io(io::Error),
}

/// Writes blocks of one array, and then the index that leads to them. Nothing of it counts before
/// [`BlockWriter::finish`] gave the index and that is committed.
#[derive(Debug)]
pub(super) struct BlockWriter {
    data: Arc<DataFile>,
    /// The state that is changed, with the index as it is so far.
    view: View,
    space: Space,
    /// Pointers of full blocks that are not in index pages yet.
    changed: BTreeMap<u64, Pointer>,
}

impl BlockWriter {
    /// Changes the state `view` of the array in `data`.
    pub(super) fn new(data: Arc<DataFile>, view: View, space: Space) -> Self {
        Self { data, view, space, changed: BTreeMap::new() }
    }

    /// The state with what has been written so far, as far as it is in index pages.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// The pointer of a full block, with what has been written so far.
    fn pointer(&self, block: u64) -> Result<Pointer, ReadError> {
        match self.changed.get(&block) {
            Some(pointer) => Ok(*pointer),
            None if block < self.view.n_full() => self.data.pointer(&self.view, block),
            None => Ok(Pointer::ABSENT),
        }
    }

    /// Decodes a block, with what has been written so far, into `out`, which has its raw length.
    pub(super) fn read_block(&self, block: u64, out: &mut [u8]) -> Result<(), ReadError> {
        let pointer = if block < self.view.n_full() { self.pointer(block)? } else { self.view.index.tail };
        self.data.read_pointer(&self.view, &pointer, out)
    }

    /// Encodes the full blocks `first..`, which `raw` holds, on all cores, and writes them in order.
    pub(super) fn put_full(&mut self, first: u64, raw: &[u8]) -> Result<(), WriteError> {
        let block_len = self.view.block_len() as usize;
        let per_batch = (BATCH_LEN / block_len).max(1);
        let n_batches = raw.len().div_ceil(block_len * per_batch);
        let n_threads = n_cores().min(n_batches);
        if n_threads < 2 {
            let mut encoder = self.encoder();
            for (batch, raw) in (0_u64..).zip(raw.chunks(block_len * per_batch)) {
                let encoded = encode_batch(&mut encoder, raw, block_len);
                self.put_batch(first + batch * per_batch as u64, &encoded)?;
            }
            return Ok(());
        }
        // Each thread takes the next batch, encodes it, and waits for its turn to write it: blocks are in order.
        let batches = Mutex::new((0_u64..).zip(raw.chunks(block_len * per_batch)));
        let turn = Mutex::new((0_u64, Ok(()), &mut *self));
        let next = Condvar::new();
        let (codec, itemsize) = {
            let (_, _, writer) = &*lock(&turn);
            (writer.view.codec, writer.view.itemsize)
        };
        let work = || {
            let mut encoder = Encoder::new(&codec, itemsize);
            loop {
                let Some((batch, raw)) = lock(&batches).next() else { return };
                let encoded = encode_batch(&mut encoder, raw, block_len);
                let mut state = lock(&turn);
                while state.0 != batch {
                    state = next.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                let (at, result, writer) = &mut *state;
                if result.is_ok() {
                    *result = writer.put_batch(first + batch * per_batch as u64, &encoded);
                }
                *at += 1;
                next.notify_all();
            }
        };
        thread::scope(|scope| {
            for _ in 1..n_threads {
                scope.spawn(work);
            }
            work();
        });
        turn.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).1
    }

    /// Makes `raw` the tail. `grows`: rows will be appended to it.
    pub(super) fn put_tail(&mut self, raw: &[u8], grows: bool) -> Result<(), WriteError> {
        self.drop_tail();
        if raw.is_empty() {
            return Ok(());
        }
        let mut encoder;
        let (kind, stored) = if grows {
            (BlockKind::OpenTail, raw)
        } else {
            encoder = self.encoder();
            encoder.encode(raw).unwrap_or((BlockKind::Raw, raw))
        };
        let reserved = if grows { self.view.block_len() } else { stored.len() as u64 };
        let offset = self.allocate(reserved);
        self.write(stored, offset)?;
        self.view.index.live += reserved;
        self.view.index.tail =
            Pointer { kind, offset, stored_len: stored.len() as u32, crc: crc32fast::hash(stored) };
        Ok(())
    }

    /// Writes `rows` behind an open tail, in place.
    pub(super) fn extend_tail(&mut self, rows: &[u8]) -> Result<(), WriteError> {
        let tail = self.view.index.tail;
        self.write(rows, tail.end())?;
        let mut hasher = crc32fast::Hasher::new_with_initial_len(tail.crc, u64::from(tail.stored_len));
        hasher.update(rows);
        let stored_len = tail.stored_len + rows.len() as u32;
        self.view.index.tail = Pointer { stored_len, crc: hasher.finalize(), ..tail };
        Ok(())
    }

    /// The tail is dead.
    pub(super) fn drop_tail(&mut self) {
        let tail = std::mem::replace(&mut self.view.index.tail, Pointer::ABSENT);
        self.view.index.live = self.view.index.live.saturating_sub(self.view.reserved_len(&tail));
    }

    /// Writes the index pages for an array of `nbytes` bytes, and gives the index and what is free then.
    pub(super) fn finish(mut self, nbytes: u64) -> Result<(View, Space), WriteError> {
        self.flush_index(nbytes)?;
        Ok((self.view, self.space))
    }

    /// Writes the index pages of what has been written so far, of an array that has `nbytes` bytes by now.
    pub(super) fn flush_index(&mut self, nbytes: u64) -> Result<(), WriteError> {
        let before = block_index::height(self.view.n_full());
        self.view.nbytes = nbytes;
        let height = block_index::height(self.view.n_full());
        for _ in before..height {
            if !self.view.index.root.is_absent() {
                self.view.index.root = self.put_page(&[self.view.index.root])?;
            }
        }
        if self.changed.is_empty() {
            return Ok(());
        }
        let changed: Vec<_> = std::mem::take(&mut self.changed).into_iter().collect();
        self.view.index.root = self.update(height, self.view.index.root, &changed)?;
        Ok(())
    }

    /// Writes the page at `pointer`, `level` levels above the blocks, anew with the pointers `changed`.
    fn update(
        &mut self,
        level: u32,
        pointer: Pointer,
        changed: &[(u64, Pointer)],
    ) -> Result<Pointer, WriteError> {
        if level == 0 {
            return Ok(changed[0].1);
        }
        let mut pointers = match pointer.is_absent() {
            true => vec![Pointer::ABSENT; PAGE_FANOUT],
            false => {
                let page = self.data.page(&self.view, &pointer, level);
                page.map_err(|error| WriteError::Read(changed[0].0, error))?.to_vec()
            }
        };
        let below = |block| block_index::first_block_of_page(block, level - 1);
        for group in changed.chunk_by(|(a, _), (b, _)| below(*a) == below(*b)) {
            let slot = block_index::slot_in_page(group[0].0, level);
            pointers[slot] = self.update(level - 1, pointers[slot], group)?;
        }
        self.view.index.live = self.view.index.live.saturating_sub(u64::from(pointer.stored_len));
        self.put_page(&pointers)
    }

    fn put_page(&mut self, pointers: &[Pointer]) -> Result<Pointer, WriteError> {
        let bytes = block_index::encode_page(pointers);
        if bytes.is_empty() {
            return Ok(Pointer::ABSENT);
        }
        let offset = self.allocate(bytes.len() as u64);
        self.write(&bytes, offset)?;
        self.view.index.live += bytes.len() as u64;
        let (stored_len, crc) = (bytes.len() as u32, crc32fast::hash(&bytes));
        Ok(Pointer { kind: BlockKind::Page, offset, stored_len, crc })
    }

    /// Writes blocks that are encoded, from `first` on.
    fn put_batch(&mut self, first: u64, encoded: &Encoded) -> Result<(), WriteError> {
        let len = encoded.bytes.len() as u64;
        // In one piece, where that is possible: so are they read.
        let in_one = self.space.take(len).or_else(|| self.space.free.is_empty().then(|| self.extend(len)));
        if let Some(offset) = in_one {
            self.write(&encoded.bytes, offset)?;
        }
        let mut done = 0;
        for (block, &(kind, stored_len, crc)) in (first..).zip(&encoded.blocks) {
            let stored = &encoded.bytes[done..done + stored_len as usize];
            let offset = match in_one {
                Some(offset) => offset + done as u64,
                None => {
                    let offset = self.allocate(u64::from(stored_len));
                    self.write(stored, offset)?;
                    offset
                }
            };
            done += stored_len as usize;
            let before = self.pointer(block).map_err(|error| WriteError::Read(block, error))?;
            let live = self.view.index.live.saturating_sub(u64::from(before.stored_len));
            self.view.index.live = live + u64::from(stored_len);
            self.changed.insert(block, Pointer { kind, offset, stored_len, crc });
        }
        Ok(())
    }

    /// Whether so many pointers are collected that they should go to index pages, by [`BlockWriter::flush_index`].
    pub(super) fn wants_flush(&self) -> bool {
        self.changed.len() >= MAX_CHANGED
    }

    fn encoder(&self) -> Encoder {
        Encoder::new(&self.view.codec, self.view.itemsize)
    }

    fn allocate(&mut self, len: u64) -> u64 {
        self.space.take(len).unwrap_or_else(|| self.extend(len))
    }

    fn extend(&mut self, len: u64) -> u64 {
        let offset = self.view.index.end;
        self.view.index.end += len;
        offset
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), WriteError> {
        if offset.saturating_add(bytes.len() as u64) > MAX_END {
            return Err(WriteError::Io(io::Error::from_raw_os_error(libc::EFBIG)));
        }
        self.data.file.write_at(bytes, offset).map_err(WriteError::Io)
    }
}

/// Blocks that are encoded, one behind the other.
struct Encoded {
    bytes: Vec<u8>,
    /// Kind, length and checksum of each.
    blocks: Vec<(BlockKind, u32, u32)>,
}

fn encode_batch(encoder: &mut Encoder, raw: &[u8], block_len: usize) -> Encoded {
    let mut encoded = Encoded { bytes: Vec::new(), blocks: Vec::new() };
    for block in raw.chunks(block_len) {
        // What zstd cannot take, for want of memory, is stored as it is.
        let (kind, stored) = encoder.encode(block).unwrap_or((BlockKind::Raw, block));
        encoded.blocks.push((kind, stored.len() as u32, crc32fast::hash(stored)));
        encoded.bytes.extend_from_slice(stored);
    }
    encoded
}
