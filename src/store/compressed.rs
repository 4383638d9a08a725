//! Changes to compressed arrays, and their space: rows appended or written in place become new blocks, and one commit
//! leads to them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::block_writer::{BlockWriter, Extent, Space, WriteError};
use super::blocks::{Cursor, ReadError, View};
use super::data::DataFile;
use super::error::{BlockFault, StoreError};
use super::writer::{Commit, WriteGuard};
use super::{Array, Shared, Store};
use crate::format::block_index::{self, Pointer, Slot};
use crate::format::{BlockKind, Index, Op, Record};
use crate::sys::process::{n_cores, share_out};

/// Decoded blocks that are in memory at once while an array is changed, in bytes.
const MAX_IN_HAND: u64 = 16 << 20;

/// File systems give back space in pieces of this many bytes, or more.
const PUNCH_ALIGN: u64 = 4096;

/// Bytes to be written at a position of the stored elements.
pub(super) type Part<'a> = (u64, Cow<'a, [u8]>);

/// A block, and what is put over it: positions within the block, and bytes.
type Changes<'a> = (u64, Vec<(usize, &'a [u8])>);

/// What a compressed array takes on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Blocks, the last, partial one included.
    pub n_blocks: u64,
    /// Blocks that are stored as they are.
    pub n_raw: u64,
    /// Blocks that are all zeros and not stored.
    pub n_absent: u64,
    /// Bytes of blocks and index pages that are in use.
    pub live: u64,
    /// Bytes in the data file that are in use no more.
    pub dead: u64,
    /// Bytes that the data file occupies on the disk.
    pub allocated: u64,
}

impl Array {
    /// What the array takes on the disk; `None` if it is not compressed. Reads the index.
    ///
    /// # Errors
    /// `Block` if the index is damaged; `DataFile`; `Io`.
    pub fn usage(&self) -> Result<Option<Usage>, StoreError> {
        if self.codec().is_none() {
            return Ok(None);
        }
        let data = self.data()?;
        let Some(view) = self.shared().newest_view(self.record(), data, false) else { return Ok(None) };
        let mut usage = Usage {
            n_blocks: view.n_blocks(),
            n_absent: view.n_blocks(),
            live: view.index.live,
            dead: view.index.dead(self.record().offset),
            allocated: self.stat()?.allocated,
            ..Usage::default()
        };
        self.shared().walk(self.record(), data, &view, &mut |_, pointer| {
            if pointer.kind != BlockKind::Page {
                usage.n_absent -= 1;
                usage.n_raw += u64::from(pointer.kind.is_raw());
            }
        })?;
        Ok(Some(usage))
    }

    /// Writes byte ranges of the virtual `.npy` file in one commit, whose blocks are on the disk before it is made.
    /// Offsets are those of elements, behind the header; of ranges that overlap the last counts. Waits for other
    /// writers.
    ///
    /// Of a version that has no name any more, what is written is seen by those who have it open. Elements that are not
    /// compressed are written in place, as by [`Array::write_npy_at`], and nothing is synced.
    ///
    /// # Errors
    /// `OutOfBounds`; `ReadOnly`; `Locked`; `Block`; `DataFile`; `Io`.
    pub fn write_back(&self, ranges: &[(u64, &[u8])]) -> Result<(), StoreError> {
        let mut parts = Vec::with_capacity(ranges.len());
        let (header_len, npy_len) = (self.header_len(), self.npy_len());
        for (offset, bytes) in ranges {
            let end = offset.saturating_add(bytes.len() as u64);
            if *offset < header_len || end > npy_len {
                let array = self.name().to_string();
                return Err(StoreError::OutOfBounds { array, range: *offset..end, len: npy_len });
            }
            parts.extend(self.parts(offset - header_len, bytes)?);
        }
        let guard = self.shared().lock_writers()?;
        if self.codec().is_none() {
            self.write_elements(&guard, parts)?;
            return self.shared().tell_written(&guard, self);
        }
        self.write_parts(&guard, parts, true)
    }

    /// What of `parts` is in blocks that differ from what is stored. The writers' lock is held.
    pub(super) fn changed_parts<'a>(&self, parts: &'a [Part<'_>]) -> Result<Vec<Part<'a>>, StoreError> {
        let data = self.data()?;
        let Some(view) = self.shared().newest_view(self.record(), data, false) else {
            unreachable!("only compressed arrays have blocks");
        };
        let pieces: Vec<(u64, &[u8])> = parts
            .iter()
            .flat_map(|(offset, bytes)| block_pieces(view.block_len(), *offset, bytes))
            .map(|(block, within, bytes)| (block * view.block_len() + within as u64, bytes))
            .collect();
        let mut is_changed = vec![false; pieces.len()];
        let n_threads = n_cores().min(pieces.len() / 2);
        let cursor = || Cursor::new(self.shared(), self.record(), data, view);
        let items = pieces.iter().zip(&mut is_changed);
        share_out(n_threads, items, cursor, |cursor, ((offset, bytes), is_changed)| {
            let (block, within) = (offset / view.block_len(), (offset % view.block_len()) as usize);
            *is_changed = cursor.block(block)?[within..within + bytes.len()] != **bytes;
            Ok::<_, StoreError>(())
        })?;
        let changed = pieces.into_iter().zip(is_changed).filter(|(_, is_changed)| *is_changed);
        Ok(changed.map(|((offset, bytes), _)| (offset, bytes.into())).collect())
    }

    /// Writes parts of the stored elements in place. The writers' lock is held. `ordered`: the blocks are on the disk
    /// before the commit is made.
    pub(super) fn write_parts(
        &self,
        _guard: &WriteGuard<'_>,
        parts: Vec<Part<'_>>,
        ordered: bool,
    ) -> Result<(), StoreError> {
        let data = self.data()?;
        let Some(view) = self.shared().newest_view(self.record(), data, false) else {
            unreachable!("only compressed arrays are written in parts");
        };
        let shared = self.shared();
        let mut writer = shared.block_writer(self.record(), data, view)?;
        let written = put_parts(&mut writer, &view, data, &parts).and_then(|()| writer.finish(view.nbytes));
        let (new, space) = written.map_err(|error| shared.write_failed(self.record(), error))?;
        if new == view {
            return Ok(());
        }
        if ordered {
            let synced = data.file.sync_data();
            shared.or_poison(synced.map_err(|e| shared.io_of(self.record(), "sync", e)))?;
        }
        if let Some(current) = self.current() {
            // It may have another name by now, and more rows.
            let name = &current.name;
            let op = Op::Blocks(Arc::clone(name), current.layout.n_rows(), new.index);
            let headers = vec![Arc::clone(name)];
            let spaces = vec![(Arc::clone(data), new.index, space)];
            shared.commit(Commit { ops: vec![op], headers, spaces, ..Commit::default() })?;
        } else {
            // Nobody can look this version up any more. Those who have it open find the blocks through its own header.
            shared.write_slot(self.record(), data, new.nbytes, &new.index)?;
            space.keep(data, &new.index);
        }
        Ok(())
    }
}

impl Store {
    /// Whether a compressed array has dead bytes that, as far as is known, were not given back to the file system.
    pub(super) fn has_dead_bytes(&self, array: &Array) -> Result<bool, StoreError> {
        let data = array.data()?;
        let Some(view) = self.shared.newest_view(array.record(), data, false) else { return Ok(false) };
        let known = Space::known(data, &view.index);
        let given_back = if known.is_punched() { known.len() } else { 0 };
        Ok(view.index.dead(array.header_len()) > given_back)
    }

    /// Gives dead bytes of a compressed array back to the file system. Returns whether it could: if not, only a new
    /// version takes less space.
    pub(super) fn punch(&self, array: &Array) -> Result<bool, StoreError> {
        let data = array.data()?;
        let Some(view) = self.shared.newest_view(array.record(), data, false) else { return Ok(true) };
        let space = self.shared.reclaim(array.record(), data, &view)?;
        let is_punched = space.is_punched();
        space.keep(data, &view.index);
        Ok(is_punched)
    }
}

impl Shared {
    /// Appends rows to a compressed array, and returns the index that has them.
    pub(super) fn append_blocks(
        &self,
        record: &Record,
        data: &Arc<DataFile>,
        rows: &[u8],
    ) -> Result<(Index, Space), StoreError> {
        let Some(view) = View::of(record) else { unreachable!("the caller has looked") };
        let mut writer = self.block_writer(record, data, view)?;
        let nbytes = view.nbytes + rows.len() as u64;
        let appended = put_rows(&mut writer, &view, data, rows).and_then(|()| writer.finish(nbytes));
        let (view, space) = appended.map_err(|error| self.write_failed(record, error))?;
        Ok((view.index, space))
    }

    /// A writer of blocks, in a file that has room for as much as it has live: or else the disk is waited for, and
    /// dead bytes are used again.
    fn block_writer(
        &self,
        record: &Record,
        data: &Arc<DataFile>,
        view: View,
    ) -> Result<BlockWriter, StoreError> {
        let mut space = Space::known(data, &view.index);
        let lost = view.index.dead(record.offset).saturating_sub(space.len());
        if lost > view.index.live / 2 {
            space = match self.reclaim(record, data, &view) {
                Err(error @ StoreError::Block { .. }) => {
                    // What is damaged may be saved yet: nothing is overwritten.
                    log::warn!("no space is given back: {error}");
                    Space::default()
                }
                result => result?,
            };
        }
        // Not before: what is reclaimed was synced, and what is written now is not.
        self.note_dirty(record);
        Ok(BlockWriter::new(Arc::clone(data), view, space))
    }

    /// Finds what is dead in a data file, for good: brings the commits that made it so to the disk. Returns what is
    /// free then, and gives it back to the file system meanwhile, if that can take it.
    fn reclaim(&self, record: &Record, data: &DataFile, view: &View) -> Result<Space, StoreError> {
        let synced = data.file.sync_data().map_err(|e| self.io_of(record, "sync", e));
        self.or_poison(synced.and_then(|()| self.sync_all()))?;
        let mut live = Vec::new();
        self.walk(record, data, view, &mut |_, pointer| {
            live.push(Extent { offset: pointer.offset, len: view.reserved_len(pointer) });
        })?;
        let mut space = Space::between(live, view.start, &view.index);
        for extent in space.free() {
            // Of a part of a page, nothing is given back.
            let start = extent.offset.next_multiple_of(PUNCH_ALIGN);
            let end = (extent.offset + extent.len) / PUNCH_ALIGN * PUNCH_ALIGN;
            if start >= end {
                continue;
            }
            let punched = data.file.punch(start, end - start);
            if !punched.map_err(|e| self.io_of(record, "give back space of", e))? {
                return Ok(space);
            }
        }
        space.set_punched();
        Ok(space)
    }

    /// Calls `f` with each pointer of an array that leads somewhere, and the first block that it leads to.
    pub(super) fn walk(
        &self,
        record: &Record,
        data: &DataFile,
        view: &View,
        f: &mut dyn FnMut(u64, &Pointer),
    ) -> Result<(), StoreError> {
        self.walk_past(record, data, view, f, &mut |block, _, error| {
            Err(self.read_failed(record, block, error))
        })
    }

    /// As [`Shared::walk`]. Calls `failed` with each page that cannot be read: its first block, and how many levels it
    /// is above the blocks. The walk goes on past it, unless that gives an error.
    pub(super) fn walk_past(
        &self,
        record: &Record,
        data: &DataFile,
        view: &View,
        f: &mut dyn FnMut(u64, &Pointer),
        failed: &mut dyn FnMut(u64, u32, ReadError) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        fn below(
            data: &DataFile,
            view: &View,
            at: (u64, u32, Pointer),
            room: &mut Option<u64>,
            f: &mut dyn FnMut(u64, &Pointer),
            failed: &mut dyn FnMut(u64, u32, ReadError) -> Result<(), StoreError>,
        ) -> Result<(), StoreError> {
            let (block, level, pointer) = at;
            let Some(before) = room.filter(|_| !pointer.is_absent()) else { return Ok(()) };
            *room = before.checked_sub(u64::from(pointer.stored_len));
            if room.is_none() {
                let fault = BlockFault::Index("leads to more than the file has");
                return failed(block, level, ReadError::Fault(pointer.offset, fault));
            }
            if block >= view.n_full() {
                let fault = BlockFault::Index("leads to blocks that the array does not have");
                return failed(block, level, ReadError::Fault(pointer.offset, fault));
            }
            f(block, &pointer);
            if level == 0 {
                return Ok(());
            }
            let page = match data.page(view, &pointer, level) {
                Ok(page) => page,
                Err(error) => return failed(block, level, error),
            };
            let step = block_index::blocks_below(level - 1);
            for (child, pointer) in (0_u64..).zip(page.iter()) {
                below(data, view, (block + child * step, level - 1, *pointer), room, f, failed)?;
            }
            Ok(())
        }
        let height = block_index::height(view.n_full());
        // Pages that lead to each other would have no end.
        let mut room = Some(data.file.stat().map_err(|e| self.io_of(record, "stat", e))?.len);
        below(data, view, (0, height, view.index.root), &mut room, f, failed)?;
        if !view.index.tail.is_absent() {
            f(view.n_full(), &view.index.tail);
        }
        Ok(())
    }

    /// Notes the newest index in a data file's own header.
    pub(super) fn write_slot(
        &self,
        record: &Record,
        data: &DataFile,
        nbytes: u64,
        index: &Index,
    ) -> Result<(), StoreError> {
        let header = data.file_header().map_err(|e| self.io_of(record, "read", e))?;
        let (newest, offset) = Slot::newest(&header);
        let sequence = newest.map_or(0, |slot| slot.sequence).saturating_add(1);
        let slot = Slot { sequence, nbytes, index: *index };
        data.file.write_at(&slot.to_bytes(), offset).map_err(|e| self.io_of(record, "write", e))
    }

    /// Whether a data file's own header has the index of `record`, if that has one.
    pub(super) fn is_slot_current(&self, record: &Record, data: &DataFile) -> bool {
        let Some(blocks) = &record.blocks else { return true };
        let header = data.file_header().unwrap_or_default();
        Slot::newest(&header).0.is_some_and(|slot| slot.index == blocks.index)
    }

    fn read_failed(&self, record: &Record, block: u64, error: ReadError) -> StoreError {
        match error {
            ReadError::Fault(offset, what) => self.block_fault(record, block, offset, what),
            ReadError::Io(source) => self.io_of(record, "read", source),
        }
    }

    fn write_failed(&self, record: &Record, error: WriteError) -> StoreError {
        match error {
            WriteError::Read(block, error) => self.read_failed(record, block, error),
            WriteError::Io(source) => self.io_of(record, "write", source),
        }
    }

    pub(super) fn io_of(&self, record: &Record, action: &'static str, source: std::io::Error) -> StoreError {
        StoreError::io(action, self.storage.path(), &record.file, source)
    }
}

/// Puts rows behind the last one.
fn put_rows(writer: &mut BlockWriter, view: &View, data: &DataFile, rows: &[u8]) -> Result<(), WriteError> {
    let block_len = view.block_len();
    let tail_len = view.tail_len();
    if tail_len + (rows.len() as u64) < block_len && view.index.tail.kind == BlockKind::OpenTail {
        return writer.extend_tail(rows);
    }
    let mut tail = vec![0; tail_len as usize];
    if tail_len > 0 {
        let read = data.read_pointer(view, &view.index.tail, &mut tail);
        read.map_err(|error| WriteError::Read(view.n_full(), error))?;
    }
    let missing = rows.len().min((block_len - tail_len) as usize);
    let (first, rest) = rows.split_at(missing);
    tail.extend_from_slice(first);
    if (tail.len() as u64) < block_len {
        return writer.put_tail(&tail, true);
    }
    writer.put_full(view.n_full(), &tail)?;
    let n_full = rest.len() - rest.len() % block_len as usize;
    writer.put_full(view.n_full() + 1, &rest[..n_full])?;
    writer.put_tail(&rest[n_full..], true)
}

/// `bytes`, which are to be at `offset` of the stored elements, cut where blocks end: block, position within it, bytes.
fn block_pieces(block_len: u64, offset: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, usize, &[u8])> {
    let (mut at, mut rest) = (offset, bytes);
    std::iter::from_fn(move || {
        let within = (at % block_len) as usize;
        let (now, after) = rest.split_at(rest.len().min(block_len as usize - within));
        let block = at / block_len;
        at += now.len() as u64;
        rest = after;
        (!now.is_empty()).then_some((block, within, now))
    })
}

/// Puts parts of the stored elements over what is there.
fn put_parts(
    writer: &mut BlockWriter,
    view: &View,
    data: &DataFile,
    parts: &[Part<'_>],
) -> Result<(), WriteError> {
    let block_len = view.block_len();
    // What each block gets, in the order given.
    let mut blocks: BTreeMap<u64, Vec<(usize, &[u8])>> = BTreeMap::new();
    for (offset, bytes) in parts {
        for (block, within, bytes) in block_pieces(block_len, *offset, bytes) {
            blocks.entry(block).or_default().push((within, bytes));
        }
    }
    let tail = blocks.remove(&view.n_full());
    let blocks: Vec<_> = blocks.into_iter().collect();
    let n_at_once = (MAX_IN_HAND / block_len).max(1) as usize;
    let mut raw = Vec::new();
    for blocks in blocks.chunks(n_at_once) {
        raw.resize(blocks.len() * block_len as usize, 0);
        overlay(view, data, blocks, &mut raw)?;
        // Blocks that follow each other are written in order.
        let mut done = 0;
        for run in blocks.chunk_by(|(a, _), (b, _)| a + 1 == *b) {
            let len = run.len() * block_len as usize;
            writer.put_full(run[0].0, &raw[done..done + len])?;
            done += len;
        }
    }
    if let Some(parts) = tail {
        let mut raw = vec![0; view.tail_len() as usize];
        overlay(view, data, &[(view.n_full(), parts)], &mut raw)?;
        writer.put_tail(&raw, view.index.tail.kind == BlockKind::OpenTail)?;
    }
    Ok(())
}

/// Fills `raw` with blocks as they are after their parts are put over them, on all cores.
fn overlay(view: &View, data: &DataFile, blocks: &[Changes<'_>], raw: &mut [u8]) -> Result<(), WriteError> {
    let items = blocks.iter().zip(raw.chunks_mut(view.block_len() as usize));
    let n_threads = n_cores().min(blocks.len() / 2);
    share_out(
        n_threads,
        items,
        || (),
        |(), ((block, parts), raw)| {
            let is_whole = parts.iter().any(|(_, bytes)| bytes.len() == raw.len());
            if !is_whole {
                data.read_block(view, *block, raw).map_err(|error| WriteError::Read(*block, error))?;
            }
            for (within, bytes) in parts {
                raw[*within..*within + bytes.len()].copy_from_slice(bytes);
            }
            Ok(())
        },
    )
}

/// Reads rows, given as positions in the stored elements with the buffers that they go to, from blocks that are each
/// decoded once.
pub(super) fn gather(
    shared: &Shared,
    record: &Record,
    data: &DataFile,
    mut rows: Vec<(u64, &mut [u8])>,
) -> Result<(), StoreError> {
    let Some(view) = shared.newest_view(record, data, false) else { unreachable!("the caller has looked") };
    rows.sort_unstable_by_key(|(offset, _)| *offset);
    let n_blocks = rows.chunk_by(|(a, _), (b, _)| a / view.block_len() == b / view.block_len()).count();
    let n_threads = n_cores().min(n_blocks / 4);
    // One part each, so that no block is decoded for more than two of them.
    let part_len = rows.len().div_ceil(n_threads.max(1)).max(1);
    let cursor = || Cursor::new(shared, record, data, view);
    share_out(n_threads, rows.chunks_mut(part_len), cursor, |cursor, rows| {
        rows.iter_mut().try_for_each(|(offset, out)| cursor.read(*offset, out))
    })
}
