//! Where the blocks of a compressed array are: pointers with checksums, in a tree of small pages.
//!
//! A pointer carries the checksum of what it points to, so one good pointer, the root in the manifest, vouches for
//! the whole array: a block or page that was overwritten, torn or damaged since is never taken for good. Blocks and
//! pages are pure values here; `store` reads and writes them.

use super::{BlockKind, Codec, FormatError, npy};
use crate::bytes::{array_at, put_u32, put_u64, u32_at, u64_at};

/// Bytes of a pointer on disk.
pub const POINTER_LEN: usize = 16;
/// Pointers of a page at most.
pub const PAGE_FANOUT: usize = 256;
/// Bytes of a page at most: pages end after their last pointer that points to something.
pub const PAGE_LEN: usize = PAGE_FANOUT * POINTER_LEN;

/// `log2(PAGE_FANOUT)`.
const FANOUT_BITS: u32 = 8;

const KIND_SHIFT: u32 = 56;
const STORED_LEN_OFFSET: usize = size_of::<u64>();
const CRC_OFFSET: usize = STORED_LEN_OFFSET + size_of::<u32>();

/// First bytes of a compressed data file.
pub const MAGIC: &[u8; 8] = b"\x89NPD\r\n\x1a\n";
/// Length of the header of a compressed data file. The array's `.npy` header follows, then blocks and pages.
pub const FILE_HEADER_LEN: u64 = 4096;

const FILE_VERSION: u32 = 1;
const VERSION_OFFSET: usize = MAGIC.len();
const NPY_LEN_OFFSET: usize = VERSION_OFFSET + size_of::<u32>();
const CODEC_LEN_OFFSET: usize = NPY_LEN_OFFSET + size_of::<u32>();
const HEADER_CRC_OFFSET: usize = CODEC_LEN_OFFSET + size_of::<u32>();
const CODEC_OFFSET: usize = HEADER_CRC_OFFSET + size_of::<u32>();
/// The codec's map ends where the slots begin.
const MAX_CODEC_LEN: usize = 512 - CODEC_OFFSET;

/// Offsets of the two slots: in sectors of their own, so that a torn write spares one.
pub const SLOT_OFFSETS: [u64; 2] = [512, 1024];
/// Length of a slot.
pub const SLOT_LEN: usize = SLOT_CRC_OFFSET + size_of::<u32>() + 4; // + 4 reserved, zero
const SLOT_NBYTES_OFFSET: usize = size_of::<u64>();
const SLOT_INDEX_OFFSET: usize = SLOT_NBYTES_OFFSET + size_of::<u64>();
const SLOT_CRC_OFFSET: usize = SLOT_INDEX_OFFSET + INDEX_LEN;

const INDEX_LEN: usize = 2 * POINTER_LEN + 2 * size_of::<u64>();
const INDEX_END_OFFSET: usize = 2 * POINTER_LEN;
const INDEX_LIVE_OFFSET: usize = INDEX_END_OFFSET + size_of::<u64>();

/// Where a block or page is in the data file, what it is, and the checksum of its bytes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pointer {
    /// What is there; [`BlockKind::Absent`]: nothing, and the block is all zeros.
    pub kind: BlockKind,
    /// Offset in the data file.
    pub offset: u64,
    /// Bytes there.
    pub stored_len: u32,
    /// crc32 of these bytes.
    pub crc: u32,
}

impl Pointer {
    /// Points nowhere.
    pub const ABSENT: Self = Self { kind: BlockKind::Absent, offset: 0, stored_len: 0, crc: 0 };

    /// Whether it points nowhere.
    pub fn is_absent(&self) -> bool {
        self.kind == BlockKind::Absent
    }

    /// Where the bytes end in the data file.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.stored_len))
    }

    fn to_bytes(self) -> [u8; POINTER_LEN] {
        let mut out = [0; POINTER_LEN];
        put_u64(&mut out, 0, self.offset | u64::from(self.kind.to_u8()) << KIND_SHIFT);
        put_u32(&mut out, STORED_LEN_OFFSET, self.stored_len);
        put_u32(&mut out, CRC_OFFSET, self.crc);
        out
    }

    fn parse(bytes: &[u8], offset: usize) -> Result<Self, &'static str> {
        let cut = "is cut";
        let word = u64_at(bytes, offset).ok_or(cut)?;
        let kind = u8::try_from(word >> KIND_SHIFT).map_err(|_| cut)?;
        let pointer = Self {
            kind: BlockKind::from_u8(kind).ok_or("has a pointer of an unknown kind")?,
            offset: word & ((1 << KIND_SHIFT) - 1),
            stored_len: u32_at(bytes, offset.saturating_add(STORED_LEN_OFFSET)).ok_or(cut)?,
            crc: u32_at(bytes, offset.saturating_add(CRC_OFFSET)).ok_or(cut)?,
        };
        if pointer.is_absent() && pointer != Self::ABSENT {
            return Err("has a pointer to nothing that is not empty");
        }
        Ok(pointer)
    }
}

/// What an array's record says about its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Index {
    /// The tree of the full blocks: see [`height`].
    pub root: Pointer,
    /// The last block, if it is not full. It is raw while it grows.
    pub tail: Pointer,
    /// Where the data file ends, as far as it is in use or reserved.
    pub end: u64,
    /// Bytes of all blocks and pages that `root` and `tail` lead to.
    pub live: u64,
}

impl Index {
    /// The index of an array without elements whose `.npy` header has `npy_len` bytes.
    pub fn empty(npy_len: u64) -> Self {
        let end = FILE_HEADER_LEN.saturating_add(npy_len);
        Self { root: Pointer::ABSENT, tail: Pointer::ABSENT, end, live: 0 }
    }

    /// Bytes in the data file that belong to no block, page or header.
    pub fn dead(&self, npy_len: u64) -> u64 {
        self.end.saturating_sub(FILE_HEADER_LEN).saturating_sub(npy_len).saturating_sub(self.live)
    }

    /// The bytes on disk.
    pub fn to_bytes(self) -> [u8; INDEX_LEN] {
        let mut out = [0; INDEX_LEN];
        let (root, rest) = out.split_at_mut(POINTER_LEN);
        root.copy_from_slice(&self.root.to_bytes());
        let (tail, _) = rest.split_at_mut(POINTER_LEN);
        tail.copy_from_slice(&self.tail.to_bytes());
        put_u64(&mut out, INDEX_END_OFFSET, self.end);
        put_u64(&mut out, INDEX_LIVE_OFFSET, self.live);
        out
    }

    /// Reads [`Index::to_bytes`].
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() != INDEX_LEN {
            return Err("has another length than that of an index");
        }
        let number = |offset| u64_at(bytes, offset).ok_or("is cut");
        Ok(Self {
            root: Pointer::parse(bytes, 0)?,
            tail: Pointer::parse(bytes, POINTER_LEN)?,
            end: number(INDEX_END_OFFSET)?,
            live: number(INDEX_LIVE_OFFSET)?,
        })
    }

    /// Checks this index of an array of `nbytes` bytes and a `.npy` header of `npy_len` bytes, as far as it can be
    /// checked without the data file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, nbytes: u64, npy_len: u64, codec: &Codec) -> Result<(), &'static str> {
        let start = FILE_HEADER_LEN.saturating_add(npy_len);
        if self.end > i64::MAX.unsigned_abs() || self.end < start || self.live > self.end {
            return Err("has an end or a size that no file has");
        }
        let n_blocks = nbytes.checked_div(u64::from(codec.block_len)).unwrap_or(0);
        let height = height(n_blocks);
        if n_blocks == 0 && !self.root.is_absent() {
            return Err("has a root, but no full block");
        }
        check_pointer(&self.root, height, u64::from(codec.block_len), start, self.end)?;
        let tail_len = nbytes.checked_rem(u64::from(codec.block_len)).unwrap_or(0);
        if tail_len == 0 && !self.tail.is_absent() {
            return Err("has a tail, but no partial block");
        }
        if self.tail.kind == BlockKind::OpenTail {
            let fits = u64::from(self.tail.stored_len) == tail_len
                && self.tail.offset >= start
                && self.tail.offset.saturating_add(u64::from(codec.block_len)) <= self.end;
            return if fits { Ok(()) } else { Err("has a tail that is not where it can be") };
        }
        check_pointer(&self.tail, 0, tail_len, start, self.end)
    }
}

/// Levels of pages above `n_blocks` full blocks: 0 if the root points to the only block, or nowhere.
pub fn height(n_blocks: u64) -> u32 {
    let bits = u64::BITS.saturating_sub(n_blocks.saturating_sub(1).leading_zeros());
    bits.div_ceil(FANOUT_BITS)
}

/// Which pointer leads to block `block`, in a page that is `level` levels above the blocks (1: its pointers are the
/// blocks').
pub fn slot_in_page(block: u64, level: u32) -> usize {
    let shift = level.saturating_sub(1).saturating_mul(FANOUT_BITS);
    let slot = block.checked_shr(shift).unwrap_or(0) & 0xff;
    usize::try_from(slot).unwrap_or(0)
}

/// How many blocks are below a pointer that is `level` levels above them.
pub fn blocks_below(level: u32) -> u64 {
    1_u64.checked_shl(level.saturating_mul(FANOUT_BITS)).unwrap_or(u64::MAX)
}

/// The first block under the page that holds block `block`, `level` levels above the blocks.
pub fn first_block_of_page(block: u64, level: u32) -> u64 {
    let shift = level.saturating_mul(FANOUT_BITS);
    block.checked_shr(shift).and_then(|page| page.checked_shl(shift)).unwrap_or(0)
}

/// Checks a pointer in a page `level` levels above the blocks, or with `level` 0 one to a block of `raw_len` bytes.
/// `start..end` is the part of the data file where blocks and pages are.
///
/// # Errors
/// What is wrong with it.
pub fn check_pointer(
    pointer: &Pointer,
    level: u32,
    raw_len: u64,
    start: u64,
    end: u64,
) -> Result<(), &'static str> {
    let stored_len = u64::from(pointer.stored_len);
    let fits = match pointer.kind {
        BlockKind::Absent => return Ok(()),
        BlockKind::Page => {
            level > 0
                && stored_len > 0
                && stored_len <= PAGE_LEN as u64
                && stored_len.is_multiple_of(POINTER_LEN as u64)
        }
        BlockKind::Raw => level == 0 && stored_len == raw_len,
        BlockKind::Zstd
        | BlockKind::ZstdShuffle
        | BlockKind::ZstdDelta
        | BlockKind::ZstdDelta2
        | BlockKind::ZstdDelta3
        | BlockKind::ZstdDelta4 => level == 0 && stored_len > 0 && stored_len < raw_len,
        BlockKind::OpenTail => false,
    };
    if !fits {
        return Err("points to something of a wrong kind or length");
    }
    if pointer.offset < start || pointer.end() > end {
        return Err("points outside of the data file's blocks");
    }
    Ok(())
}

/// The bytes of a page.
pub fn encode_page(pointers: &[Pointer]) -> Vec<u8> {
    let used =
        pointers.iter().rposition(|pointer| !pointer.is_absent()).map_or(0, |last| last.saturating_add(1));
    pointers.iter().take(used).flat_map(|pointer| pointer.to_bytes()).collect()
}

/// The pointers of a page, [`PAGE_FANOUT`] of them.
///
/// # Errors
/// What is wrong with it.
pub fn parse_page(bytes: &[u8]) -> Result<Vec<Pointer>, &'static str> {
    if bytes.len() > PAGE_LEN || !bytes.len().is_multiple_of(POINTER_LEN) {
        return Err("has a length that no page has");
    }
    let mut pointers = Vec::with_capacity(PAGE_FANOUT);
    for at in (0..bytes.len()).step_by(POINTER_LEN) {
        pointers.push(Pointer::parse(bytes, at)?);
    }
    pointers.resize(PAGE_FANOUT, Pointer::ABSENT);
    Ok(pointers)
}

/// The header of a compressed data file, without its slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHeader {
    /// Length of the `.npy` header that follows.
    pub npy_len: u64,
    /// How the blocks are encoded.
    pub codec: Codec,
}

impl FileHeader {
    /// The bytes on disk, with empty slots.
    pub fn to_bytes(&self) -> Vec<u8> {
        let codec = rmp_serde::to_vec_named(&self.codec).expect("four short values fit in memory");
        let mut out = vec![0; CODEC_OFFSET];
        let (magic, _) = out.split_at_mut(MAGIC.len());
        magic.copy_from_slice(MAGIC);
        put_u32(&mut out, VERSION_OFFSET, FILE_VERSION);
        put_u32(&mut out, NPY_LEN_OFFSET, u32::try_from(self.npy_len).unwrap_or(u32::MAX));
        put_u32(&mut out, CODEC_LEN_OFFSET, u32::try_from(codec.len()).unwrap_or(u32::MAX));
        out.extend_from_slice(&codec);
        let crc = header_crc(&out).unwrap_or(0);
        put_u32(&mut out, HEADER_CRC_OFFSET, crc);
        out.resize(usize::try_from(FILE_HEADER_LEN).unwrap_or(0), 0);
        out
    }

    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// `Magic`, `Truncated`, `Version`, `TooLong`, `Checksum`, `Payload`.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let part = "the header of a compressed data file";
        if !bytes.starts_with(MAGIC) {
            let found = bytes.get(..MAGIC.len().min(bytes.len())).unwrap_or(&[]).to_vec();
            return Err(FormatError::Magic { expected: part, found });
        }
        let found_len = bytes.len() as u64;
        let truncated = || FormatError::Truncated {
            part,
            needed: (CODEC_OFFSET + MAX_CODEC_LEN) as u64,
            found: found_len,
        };
        let number = |offset| u32_at(bytes, offset).ok_or_else(truncated);
        let version = number(VERSION_OFFSET)?;
        if version != FILE_VERSION {
            return Err(FormatError::Version { found: version, newest: FILE_VERSION });
        }
        let codec_len = usize::try_from(number(CODEC_LEN_OFFSET)?).unwrap_or(usize::MAX);
        if codec_len > MAX_CODEC_LEN {
            return Err(FormatError::TooLong { part, len: codec_len as u64, max: MAX_CODEC_LEN as u64 });
        }
        let covered = bytes.get(..CODEC_OFFSET.saturating_add(codec_len)).ok_or_else(truncated)?;
        let expected = number(HEADER_CRC_OFFSET)?;
        let found = header_crc(covered).ok_or_else(truncated)?;
        if found != expected {
            return Err(FormatError::Checksum { part, offset: 0, found, expected });
        }
        let npy_len = u64::from(number(NPY_LEN_OFFSET)?);
        if npy_len > npy::MAX_HEADER_LEN as u64 {
            let max = npy::MAX_HEADER_LEN as u64;
            return Err(FormatError::TooLong { part: "the .npy header", len: npy_len, max });
        }
        let codec = covered.get(CODEC_OFFSET..).unwrap_or(&[]);
        let codec = rmp_serde::from_slice(codec)
            .map_err(|source| FormatError::Payload { offset: CODEC_OFFSET as u64, source })?;
        Ok(Self { npy_len, codec })
    }
}

/// The checksum of a file header up to the end of its codec, without the checksum's own bytes.
fn header_crc(header: &[u8]) -> Option<u32> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header.get(..HEADER_CRC_OFFSET)?);
    hasher.update(header.get(CODEC_OFFSET..)?);
    Some(hasher.finalize())
}

/// The newest index, as the data file itself tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Counts the changes of the index; the slot with the larger one counts.
    pub sequence: u64,
    /// Bytes of the stored elements.
    pub nbytes: u64,
    /// Where they are.
    pub index: Index,
}

impl Slot {
    /// The bytes on disk.
    pub fn to_bytes(self) -> [u8; SLOT_LEN] {
        let mut out = [0; SLOT_LEN];
        put_u64(&mut out, 0, self.sequence);
        put_u64(&mut out, SLOT_NBYTES_OFFSET, self.nbytes);
        let (_, rest) = out.split_at_mut(SLOT_INDEX_OFFSET);
        let (index, _) = rest.split_at_mut(INDEX_LEN);
        index.copy_from_slice(&self.index.to_bytes());
        let crc = crc32fast::hash(out.split_at(SLOT_CRC_OFFSET).0);
        put_u32(&mut out, SLOT_CRC_OFFSET, crc);
        out
    }

    /// The slot that starts at `offset` of a data file's header, unless it is empty or torn.
    pub fn parse(header: &[u8], offset: u64) -> Option<Self> {
        let bytes: [u8; SLOT_LEN] = array_at(header, usize::try_from(offset).ok()?)?;
        let crc = crc32fast::hash(bytes.get(..SLOT_CRC_OFFSET)?);
        if crc != u32_at(&bytes, SLOT_CRC_OFFSET)? {
            return None;
        }
        Some(Self {
            sequence: u64_at(&bytes, 0)?,
            nbytes: u64_at(&bytes, SLOT_NBYTES_OFFSET)?,
            index: Index::parse(bytes.get(SLOT_INDEX_OFFSET..SLOT_CRC_OFFSET)?).ok()?,
        })
    }

    /// The newer of the two slots of a data file's header, and the offset of the other, which is next.
    pub fn newest(header: &[u8]) -> (Option<Self>, u64) {
        let [first, second] = SLOT_OFFSETS.map(|offset| Self::parse(header, offset));
        let sequence = |slot: &Option<Self>| slot.map(|slot| slot.sequence);
        if sequence(&first) > sequence(&second) {
            (first, SLOT_OFFSETS[1])
        } else {
            (second, SLOT_OFFSETS[0])
        }
    }
}
