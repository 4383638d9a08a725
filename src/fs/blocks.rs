//! Decoded blocks of compressed arrays, on their way to the kernel.
//!
//! The kernel asks for pages, in requests that end anywhere in a block, and keeps what it gets. So that each block is
//! decoded once, what a request did not ask for is kept here until the next one does, as it is with those who read on;
//! and for those who jump about, it is stored into the kernel's page cache by and by, when its place is needed for
//! other blocks ([`Invalidation::Pages`](super::Invalidation::Pages)). What is kept is bounded, and never old: it is
//! of one epoch of its inode, and each change of the elements begins another.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::inode::{Epoch, Inode};
use super::{Fs, Ino, lock};
use crate::store::{Array, StoreError};

/// The kernel's pages, which it asks for and keeps whole.
pub(super) const PAGE_LEN: u64 = 4096;

/// Bytes of blocks that wait for the next request.
const MAX_RESIDENT_LEN: usize = 4 << 20;
/// As many may wait however long they are: for each thread that answers requests there should be one.
const MIN_RESIDENT: usize = 4;
/// Bytes of blocks that wait to be stored into the kernel's page cache. What is more is decoded anew if need be.
const MAX_LEAVING_LEN: usize = 32 << 20;
/// Parts of pages that wait for the rest of the page.
const MAX_EDGES: usize = 2048;

/// Which block: a run of the elements as the virtual file has them. Where no rows are dropped, it is one block of the
/// data file.
type Key = (Ino, u64);

/// The decoded blocks of all files.
#[derive(Debug, Default)]
pub(super) struct DecodedBlocks {
    state: Mutex<State>,
    n_decoded: AtomicU64,
    bytes_decoded: AtomicU64,
    hits: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    kept: HashMap<Key, Kept>,
    /// What is resident, oldest first; entries whose number is another's by now are gone.
    order: VecDeque<(Key, u64)>,
    edges: Edges,
    n_resident: usize,
    resident_len: usize,
    leaving_len: usize,
    next_number: u64,
}

#[derive(Debug)]
struct Kept {
    number: u64,
    epoch: Epoch,
    /// Empty while it is being decoded. Others who need it wait for that.
    bytes: Arc<Decoded>,
    place: Place,
    /// Which pages of it nobody was given yet.
    missing: Pages,
    /// Whether the rest is to be stored into the kernel's page cache.
    leaving: bool,
}

/// The bytes of a block, once they are there; `None` if it cannot be decoded.
type Decoded = OnceLock<Option<Vec<u8>>>;

/// Parts of pages that lie in two blocks, of which one has left and the other is not decoded: most files that other
/// programs made have a header that is shorter than a page.
#[derive(Debug, Default)]
struct Edges {
    /// By inode and number of the page.
    parts: HashMap<(Ino, u64), Edge>,
    /// Oldest first; some are gone.
    order: VecDeque<(Ino, u64)>,
}

#[derive(Debug)]
struct Edge {
    epoch: Epoch,
    start: u64,
    bytes: Vec<u8>,
}

impl Edges {
    /// The bytes `range` of a file, if they are there.
    fn get(&self, ino: Ino, epoch: Epoch, range: &Range<u64>) -> Option<&[u8]> {
        let edge = self.parts.get(&(ino, range.start / PAGE_LEN)).filter(|edge| edge.epoch == epoch)?;
        let at = range.start.checked_sub(edge.start)? as usize;
        edge.bytes.get(at..at + (range.end - range.start) as usize)
    }

    fn take(&mut self, ino: Ino, page: u64) -> Option<Edge> {
        self.parts.remove(&(ino, page))
    }

    fn keep(&mut self, ino: Ino, edge: Edge) {
        let key = (ino, edge.start / PAGE_LEN);
        self.parts.insert(key, edge);
        self.order.push_back(key);
        while self.order.len() > MAX_EDGES {
            if let Some(oldest) = self.order.pop_front() {
                self.parts.remove(&oldest);
            }
        }
    }
}

/// Where a block is in the virtual file.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: u64,
    len: usize,
    /// Whether the file ends with it.
    is_last: bool,
}

impl Place {
    fn end(&self) -> u64 {
        self.start + self.len as u64
    }

    /// The first page that has a byte of it.
    fn first_page(&self) -> u64 {
        self.start / PAGE_LEN
    }

    fn n_pages(&self) -> usize {
        (self.end().div_ceil(PAGE_LEN) - self.first_page()) as usize
    }

    /// The part of page number `page`, counted from the first one, that is in the block.
    fn page(&self, page: usize) -> Range<u64> {
        let start = (self.first_page() + page as u64) * PAGE_LEN;
        start.max(self.start)..(start + PAGE_LEN).min(self.end())
    }

    /// Whether no other block has a part of the page.
    fn is_whole(&self, page: usize) -> bool {
        let part = self.page(page);
        part.start.is_multiple_of(PAGE_LEN)
            && (part.end.is_multiple_of(PAGE_LEN) || self.is_last && part.end == self.end())
    }
}

/// A set of the pages of a block.
#[derive(Debug, Clone)]
struct Pages(Vec<u64>);

impl Pages {
    fn all(n_pages: usize) -> Self {
        let mut words = vec![u64::MAX; n_pages / 64];
        if !n_pages.is_multiple_of(64) {
            words.push((1 << (n_pages % 64)) - 1);
        }
        Self(words)
    }

    fn remove(&mut self, page: usize) {
        if let Some(word) = self.0.get_mut(page / 64) {
            *word &= !(1 << (page % 64));
        }
    }

    fn has(&self, page: usize) -> bool {
        self.0.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

impl Kept {
    /// Notes that the bytes `range` of the file are given to the kernel.
    fn give(&mut self, range: &Range<u64>) {
        let (start, end) = (range.start.max(self.place.start), range.end.min(self.place.end()));
        let first = start / PAGE_LEN - self.place.first_page();
        for page in first as usize..self.place.n_pages() {
            let part = self.place.page(page);
            if part.start >= end {
                break;
            }
            if part.start >= start && part.end <= end {
                self.missing.remove(page);
            }
        }
    }
}

/// A block as it is read.
struct Wanted<'a> {
    inode: &'a Inode,
    array: &'a Array,
    epoch: Epoch,
    block: u64,
    place: Place,
}

impl Wanted<'_> {
    fn key(&self) -> Key {
        (self.inode.ino, self.block)
    }

    fn decode(&self) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; self.place.len];
        self.array.read_npy_at(self.place.start, &mut bytes)?;
        Ok(bytes)
    }
}

impl DecodedBlocks {
    /// How many blocks were decoded so far.
    pub(super) fn n_decoded(&self) -> u64 {
        self.n_decoded.load(Ordering::Relaxed)
    }

    /// How many bytes they had.
    pub(super) fn bytes_decoded(&self) -> u64 {
        self.bytes_decoded.load(Ordering::Relaxed)
    }

    /// How many parts of reads were answered with bytes that were decoded before.
    pub(super) fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// Reads from byte `offset` of the virtual file on, behind the header, and calls `spare` with each block whose
    /// rest is to be stored into the kernel's page cache. The elements must be of `epoch` or later.
    pub(super) fn read(
        &self,
        inode: &Inode,
        array: &Array,
        epoch: Epoch,
        offset: u64,
        out: &mut [u8],
        mut spare: impl FnMut(Ino, u64),
    ) -> Result<(), StoreError> {
        let Some(codec) = array.codec() else { return array.read_npy_at(offset, out).map(drop) };
        let (block_len, header_len, end) = (u64::from(codec.block_len), array.header_len(), array.npy_len());
        let given = offset..offset + out.len() as u64;
        let (mut at, mut rest) = (offset, out);
        while !rest.is_empty() {
            let block = (at - header_len) / block_len;
            let start = header_len + block * block_len;
            let place =
                Place { start, len: block_len.min(end - start) as usize, is_last: start + block_len >= end };
            let len = if at == start && rest.len() >= place.len {
                // The whole blocks from here on are decoded into the reply itself.
                let is_end = at + rest.len() as u64 == end;
                let len = if is_end { rest.len() } else { rest.len() - rest.len() % block_len as usize };
                let (whole, _) = rest.split_at_mut(len);
                array.read_npy_at(at, whole)?;
                self.n_decoded.fetch_add((len as u64).div_ceil(block_len), Ordering::Relaxed);
                self.bytes_decoded.fetch_add(len as u64, Ordering::Relaxed);
                len
            } else {
                let within = (at - start) as usize;
                let len = rest.len().min(place.len - within);
                if !self.copy_edge(inode.ino, epoch, at, &mut rest[..len]) {
                    let wanted = Wanted { inode, array, epoch, block, place };
                    self.copy_part(&wanted, &given, within, &mut rest[..len], &mut spare)?;
                }
                len
            };
            at += len as u64;
            rest = &mut rest[len..];
        }
        Ok(())
    }

    /// Copies the bytes at `offset` of a file, if they are those of an edge.
    fn copy_edge(&self, ino: Ino, epoch: Epoch, offset: u64, out: &mut [u8]) -> bool {
        if out.len() as u64 >= PAGE_LEN {
            return false;
        }
        let state = lock(&self.state);
        let Some(bytes) = state.edges.get(ino, epoch, &(offset..offset + out.len() as u64)) else {
            return false;
        };
        out.copy_from_slice(bytes);
        self.hits.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Copies what follows position `within` of a block. The part of the block that is in `given` goes to the kernel.
    fn copy_part(
        &self,
        wanted: &Wanted<'_>,
        given: &Range<u64>,
        within: usize,
        out: &mut [u8],
        spare: &mut impl FnMut(Ino, u64),
    ) -> Result<(), StoreError> {
        let (number, decoded) = {
            let mut state = lock(&self.state);
            let found = state.find_or_insert(wanted, given);
            for (ino, block) in state.make_room() {
                spare(ino, block);
            }
            found
        };
        let mut failed = None;
        if decoded.get().is_some() {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
        let decoded = decoded.get_or_init(|| {
            self.n_decoded.fetch_add(1, Ordering::Relaxed);
            self.bytes_decoded.fetch_add(wanted.place.len as u64, Ordering::Relaxed);
            wanted.decode().map_err(|error| failed = Some(error)).ok()
        });
        let own;
        let bytes = match decoded {
            Some(bytes) => bytes,
            None => {
                lock(&self.state).remove(wanted.key(), number);
                // Whoever was first knows what is wrong, and nobody else: so they try, too.
                own = failed.map_or_else(|| wanted.decode(), Err)?;
                &own
            }
        };
        out.copy_from_slice(&bytes[within..within + out.len()]);
        Ok(())
    }

    /// The pages of a block that the kernel was not given yet, if they are of `epoch`; see [`Spare`].
    fn spare(&self, key: Key, epoch: Option<Epoch>) -> Option<Spare> {
        let mut state = lock(&self.state);
        let kept = state.kept.get(&key).filter(|kept| kept.leaving)?;
        let spare = Spare {
            key,
            number: kept.number,
            epoch: kept.epoch,
            bytes: Arc::clone(&kept.bytes),
            place: kept.place,
            missing: kept.missing.clone(),
        };
        if Some(kept.epoch) == epoch {
            return Some(spare);
        }
        state.remove(key, spare.number);
        None
    }

    /// Whether pages of an inode are to be stored, or are being stored, into the kernel's page cache.
    pub(super) fn is_leaving(&self, ino: Ino) -> bool {
        let state = lock(&self.state);
        state.leaving_len > 0 && state.kept.iter().any(|((of, _), kept)| *of == ino && kept.leaving)
    }
}

impl State {
    /// The entry of a block, made if there is none of its epoch. Notes what is given of it.
    fn find_or_insert(&mut self, wanted: &Wanted<'_>, given: &Range<u64>) -> (u64, Arc<Decoded>) {
        let key = wanted.key();
        if let Some(kept) = self.kept.get_mut(&key) {
            if kept.epoch == wanted.epoch {
                kept.give(given);
                let found = (kept.number, Arc::clone(&kept.bytes));
                if kept.missing.is_empty() {
                    self.remove(key, found.0);
                }
                return found;
            }
            if kept.epoch > wanted.epoch {
                // Something changed since the request came: it is for this one only.
                return (u64::MAX, Arc::default());
            }
            let old = kept.number;
            self.remove(key, old);
        }
        let number = self.next_number;
        self.next_number += 1;
        let place = wanted.place;
        let mut kept = Kept {
            number,
            epoch: wanted.epoch,
            bytes: Arc::default(),
            place,
            missing: Pages::all(place.n_pages()),
            leaving: false,
        };
        kept.give(given);
        let found = (number, Arc::clone(&kept.bytes));
        if !kept.missing.is_empty() {
            self.resident_len += place.len;
            self.n_resident += 1;
            self.order.push_back((key, number));
            self.kept.insert(key, kept);
        }
        found
    }

    fn remove(&mut self, key: Key, number: u64) {
        if self.kept.get(&key).is_none_or(|kept| kept.number != number) {
            return;
        }
        if let Some(kept) = self.kept.remove(&key) {
            if kept.leaving {
                self.leaving_len -= kept.place.len;
            } else {
                self.resident_len -= kept.place.len;
                self.n_resident -= 1;
            }
        }
        // Those who read on take blocks away in the order in which they came.
        while let Some((key, number)) = self.order.front()
            && self.kept.get(key).is_none_or(|kept| kept.number != *number || kept.leaving)
        {
            self.order.pop_front();
        }
        if self.order.len() > 2 * self.n_resident + 64 {
            let kept = &self.kept;
            self.order.retain(|(key, number)| kept.get(key).is_some_and(|kept| kept.number == *number));
        }
    }

    /// Lets the oldest blocks leave while there are too many. Returns those whose pages are to be stored.
    fn make_room(&mut self) -> Vec<Key> {
        let mut leaving = Vec::new();
        while self.resident_len > MAX_RESIDENT_LEN && self.n_resident > MIN_RESIDENT {
            let Some((key, number)) = self.order.pop_front() else { break };
            let Some(kept) = self.kept.get_mut(&key).filter(|kept| kept.number == number) else { continue };
            if kept.leaving {
                continue;
            }
            if self.leaving_len + kept.place.len > MAX_LEAVING_LEN {
                self.remove(key, number);
                continue;
            }
            kept.leaving = true;
            self.n_resident -= 1;
            self.resident_len -= kept.place.len;
            self.leaving_len += kept.place.len;
            leaving.push(key);
        }
        leaving
    }
}

/// Pages that the kernel does not have.
struct Spare {
    key: Key,
    number: u64,
    epoch: Epoch,
    bytes: Arc<Decoded>,
    place: Place,
    missing: Pages,
}

impl Spare {
    /// Runs of whole pages, as ranges of the file.
    fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for page in 0..self.place.n_pages() {
            if !self.missing.has(page) || !self.place.is_whole(page) {
                continue;
            }
            let part = self.place.page(page);
            match runs.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => runs.push(part),
            }
        }
        runs
    }

    /// The parts of pages that lie in another block as well.
    fn edges(&self) -> Vec<Range<u64>> {
        let last = self.place.n_pages() - 1;
        let ends = if last == 0 { vec![0] } else { vec![0, last] };
        let edges = ends.into_iter().filter(|page| self.missing.has(*page) && !self.place.is_whole(*page));
        edges.map(|page| self.place.page(page)).collect()
    }

    /// The bytes `range` of the file; none if the block is still being decoded: it is given up then.
    fn bytes(&self, range: &Range<u64>) -> &[u8] {
        let Some(Some(bytes)) = self.bytes.get() else { return &[] };
        let start = (range.start - self.place.start) as usize;
        &bytes[start..start + (range.end - range.start) as usize]
    }
}

impl State {
    /// The page of which `spare` has the part `part`, and its offset, if the other part is here; or else this one is
    /// kept.
    fn join(&mut self, spare: &Spare, part: &Range<u64>) -> Option<(u64, Vec<u8>)> {
        let (ino, block) = spare.key;
        let page = part.start / PAGE_LEN;
        let own = spare.bytes(part);
        if own.is_empty() {
            return None;
        }
        let is_first = part.start == page * PAGE_LEN;
        let other = if is_first { Some(block + 1) } else { block.checked_sub(1) };
        let neighbour = other.and_then(|other| self.kept.get_mut(&(ino, other)));
        let rest = if let Some(kept) = neighbour.filter(|kept| kept.epoch == spare.epoch)
            && let Some(Some(bytes)) = kept.bytes.get()
        {
            let at = (page - kept.place.first_page()) as usize;
            let range = kept.place.page(at);
            let start = (range.start - kept.place.start) as usize;
            kept.missing.remove(at);
            Some(bytes[start..start + (range.end - range.start) as usize].to_vec())
        } else {
            self.edges.take(ino, page).filter(|edge| edge.epoch == spare.epoch).map(|edge| edge.bytes)
        };
        let Some(rest) = rest else {
            self.edges.keep(ino, Edge { epoch: spare.epoch, start: part.start, bytes: own.to_vec() });
            return None;
        };
        let parts = if is_first { [own, &rest] } else { [&rest, own] };
        Some((page * PAGE_LEN, parts.concat()))
    }
}

impl Fs {
    /// How many blocks of compressed arrays were decoded to be read, so far. A test may want to know.
    pub fn n_decoded_blocks(&self) -> u64 {
        self.blocks.n_decoded()
    }

    /// Of an [`Invalidation::Pages`](super::Invalidation::Pages): calls `store` with pages of block `block` that the
    /// kernel does not have, and their offset, if they are of the present state and nobody can have written to them.
    ///
    /// To be called by the thread that carries out invalidations, and by no other.
    pub fn store_pages<E>(
        &self,
        ino: Ino,
        block: u64,
        mut store: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let epoch = self.inodes.get(ino).and_then(|inode| inode.storable());
        let Some(spare) = self.blocks.spare((ino, block), epoch) else { return Ok(()) };
        let mut result = Ok(());
        for run in spare.runs() {
            let bytes = spare.bytes(&run);
            if !bytes.is_empty() {
                result = result.and(store(run.start, bytes));
            }
        }
        for part in spare.edges() {
            let joined = lock(&self.blocks.state).join(&spare, &part);
            if let Some((offset, bytes)) = joined {
                result = result.and(store(offset, &bytes));
            }
        }
        lock(&self.blocks.state).remove(spare.key, spare.number);
        result
    }
}
