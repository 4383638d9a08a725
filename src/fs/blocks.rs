//! Decoded blocks of compressed arrays, on their way to the kernel.
//!
//! The kernel asks for pages, in requests that end anywhere in a block, and keeps what it gets. So that each block is
//! decoded once, what a request did not ask for is kept here until the next one does, as it is with those who read on;
//! and for those who jump about, it is stored into the kernel's page cache by and by, when its place is needed for other
//! blocks ([`Invalidation::Pages`](super::Invalidation::Pages)). What is kept is bounded, and never old: it is of one
//! epoch of its inode, and each change of the elements begins another.

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

/// Which block: a run of the elements as the virtual file has them. Where no rows are dropped, it is one block of the
/// data file.
type Key = (Ino, u64);

/// The decoded blocks of all files.
#[derive(Debug, Default)]
pub(super) struct DecodedBlocks {
    state: Mutex<State>,
    n_decoded: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    kept: HashMap<Key, Kept>,
    /// What is resident, oldest first; entries whose number is another's by now are gone.
    order: VecDeque<(Key, u64)>,
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

    /// Reads from byte `offset` of the virtual file on, behind the header, and calls `spare` with each block whose rest
    /// is to be stored into the kernel's page cache. The elements must be of `epoch` or later.
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
                len
            } else {
                let within = (at - start) as usize;
                let len = rest.len().min(place.len - within);
                let wanted = Wanted { inode, array, epoch, block, place };
                self.copy_part(&wanted, &given, within, &mut rest[..len], &mut spare)?;
                len
            };
            at += len as u64;
            rest = &mut rest[len..];
        }
        Ok(())
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
        let decoded = decoded.get_or_init(|| {
            self.n_decoded.fetch_add(1, Ordering::Relaxed);
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
            number: kept.number,
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
            let has_whole =
                (0..kept.place.n_pages()).any(|page| kept.missing.has(page) && kept.place.is_whole(page));
            if !has_whole || self.leaving_len + kept.place.len > MAX_LEAVING_LEN {
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
    number: u64,
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
        // One that is still being decoded is given up.
        let bytes = spare.bytes.get().and_then(Option::as_ref);
        let result = spare.runs().into_iter().zip(bytes.into_iter().cycle()).try_for_each(|(run, bytes)| {
            let start = (run.start - spare.place.start) as usize;
            store(run.start, &bytes[start..start + (run.end - run.start) as usize])
        });
        lock(&self.blocks.state).remove((ino, block), spare.number);
        result
    }
}
