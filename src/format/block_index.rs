//! Where the blocks of a compressed array are: pointers with checksums, in a tree of small pages.
//!
//! A pointer carries the checksum of what it points to, so one good pointer, the root in the manifest, vouches for
//! the whole array: a block or page that was overwritten, torn or damaged since is never taken for good. Blocks and
//! pages are pure values here; `store` reads and writes them.

use super::messagepack::read_all;
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

/// A pointer's offset has this many bits; the kind is above them.
const KIND_SHIFT: u32 = 56;
/// No data file goes on behind this offset, which is the first that a pointer cannot say.
pub const MAX_END: u64 = 1 << KIND_SHIFT;
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
        if self.end > MAX_END || self.end < start || self.live > self.end {
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
        let codec = read_all(codec, Codec::read).map_err(|wrong| wrong.at(CODEC_OFFSET as u64))?;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Filter, MAX_BLOCK_LEN};
    use super::*;

    const START: u64 = FILE_HEADER_LEN + 128;

    fn codec() -> Codec {
        Codec::new(1, 4096, Filter::None).unwrap()
    }

    fn pointer(kind: BlockKind, offset: u64, stored_len: u32) -> Pointer {
        Pointer { kind, offset, stored_len, crc: 0x1234_5678 }
    }

    /// Kinds of what is somewhere.
    fn kinds() -> Vec<BlockKind> {
        (1..=u8::MAX).filter_map(BlockKind::from_u8).collect()
    }

    fn pointers() -> impl Strategy<Value = Pointer> {
        let somewhere = (prop::sample::select(kinds()), 0..1_u64 << KIND_SHIFT, any::<u32>(), any::<u32>());
        let somewhere =
            somewhere.prop_map(|(kind, offset, stored_len, crc)| Pointer { kind, offset, stored_len, crc });
        prop_oneof![Just(Pointer::ABSENT), somewhere]
    }

    fn indexes() -> impl Strategy<Value = Index> {
        (pointers(), pointers(), any::<u64>(), any::<u64>()).prop_map(|(root, tail, end, live)| Index {
            root,
            tail,
            end,
            live,
        })
    }

    #[test]
    fn pointers_are_sixteen_bytes() {
        let bytes = pointer(BlockKind::ZstdShuffle, 0x00ab_cdef_0123_4567, 0x89).to_bytes();
        assert_eq!(
            bytes,
            [0x67, 0x45, 0x23, 0x01, 0xef, 0xcd, 0xab, 3, 0x89, 0, 0, 0, 0x78, 0x56, 0x34, 0x12]
        );
        assert_eq!(Pointer::ABSENT.to_bytes(), [0; POINTER_LEN]);
        let mut unknown = bytes;
        unknown[7] = 0xff;
        assert!(Pointer::parse(&unknown, 0).unwrap_err().contains("unknown kind"));
        // What leads nowhere has nothing to say.
        for at in (0..POINTER_LEN).filter(|at| *at != 7) {
            let mut bytes = [0; POINTER_LEN];
            bytes[at] = 1;
            assert!(Pointer::parse(&bytes, 0).unwrap_err().contains("not empty"));
        }
        assert!(Pointer::parse(&bytes, 1).is_err());
        assert!(Pointer::parse(&bytes, usize::MAX).is_err());
    }

    #[test]
    fn trees_are_as_high_as_they_must_be() {
        let heights = [(0, 0), (1, 0), (2, 1), (256, 1), (257, 2), (65_536, 2), (65_537, 3), (1 << 51, 7)];
        for (n_blocks, expected) in heights {
            assert_eq!(height(n_blocks), expected, "{n_blocks} blocks");
        }
        assert_eq!([0, 1, 2, 7, 8].map(blocks_below), [1, 256, 65_536, 1 << 56, u64::MAX]);
        let block = 0x0403_0201;
        assert_eq!([1, 2, 3, 4, 5].map(|level| slot_in_page(block, level)), [1, 2, 3, 4, 0]);
        assert_eq!(
            [0, 1, 2, 3, 4, 8].map(|level| first_block_of_page(block, level)),
            [block, 0x0403_0200, 0x0403_0000, 0x0400_0000, 0, 0]
        );
    }

    #[test]
    fn an_index_is_checked_against_the_array() {
        let index = |root, tail, end| Index { root, tail, end, live: 0 };
        let absent = Pointer::ABSENT;
        let page = pointer(BlockKind::Page, START, 32);
        let raw = pointer(BlockKind::Raw, START, 4096);
        let zstd = pointer(BlockKind::Zstd, START, 100);
        let open_tail = pointer(BlockKind::OpenTail, START, 100);
        let raw_tail = pointer(BlockKind::Raw, START, 100);
        let end = START + 4096;
        for (nbytes, index) in [
            (0, Index::empty(128)),
            (0, index(absent, absent, START)),
            (4096, index(absent, absent, START)),
            (4196, index(absent, absent, START)),
            (4096, index(raw, absent, end)),
            (4096, index(zstd, absent, START + 100)),
            (8192, index(page, absent, end)),
            (100, index(absent, raw_tail, START + 100)),
            (101, index(absent, zstd, START + 100)),
            (100, index(absent, open_tail, end)),
            (4196, index(zstd, open_tail, end)),
        ] {
            assert_eq!(index.check(nbytes, 128, &codec()), Ok(()), "{nbytes}: {index:?}");
        }
        let moved = |pointer: Pointer, offset| Pointer { offset, ..pointer };
        let long = |pointer: Pointer, stored_len| Pointer { stored_len, ..pointer };
        for (nbytes, index, what) in [
            (0, index(zstd, absent, end), "no full block"),
            (4095, index(raw, absent, end), "no full block"),
            (4096, index(page, absent, end), "wrong kind"),
            (8192, index(raw, absent, end), "wrong kind"),
            (8192, index(long(page, 4112), absent, end + 16), "wrong kind or length"),
            (8192, index(long(page, 8), absent, end), "wrong kind or length"),
            (8192, index(long(page, 0), absent, end), "wrong kind or length"),
            (4096, index(long(raw, 4095), absent, end), "wrong kind or length"),
            (4096, index(long(zstd, 4096), absent, end), "wrong kind or length"),
            (4096, index(long(zstd, 0), absent, end), "wrong kind or length"),
            (4096, index(open_tail, absent, end), "wrong kind"),
            (4096, index(absent, raw_tail, end), "no partial block"),
            (100, index(absent, zstd, end), "wrong kind or length"),
            (100, index(absent, page, end), "wrong kind or length"),
            (101, index(absent, open_tail, end), "not where it can be"),
            (100, index(absent, open_tail, end - 1), "not where it can be"),
            (100, index(absent, moved(open_tail, START - 1), end), "not where it can be"),
            (
                100,
                index(absent, moved(open_tail, (1 << KIND_SHIFT) - 1), 1 << KIND_SHIFT),
                "not where it can be",
            ),
            (4096, index(moved(raw, START - 1), absent, end), "outside"),
            (4096, index(moved(raw, START + 1), absent, end), "outside"),
            (4096, index(moved(raw, (1 << KIND_SHIFT) - 1), absent, 1 << KIND_SHIFT), "outside"),
            (0, index(absent, absent, START - 1), "no file has"),
            (0, index(absent, absent, (1 << KIND_SHIFT) + 1), "no file has"),
            (0, index(absent, absent, u64::MAX), "no file has"),
            (0, Index { live: START + 1, ..Index::empty(128) }, "no file has"),
        ] {
            let error = index.check(nbytes, 128, &codec()).expect_err(what);
            assert!(error.contains(what), "{nbytes}: {index:?} {error}");
        }
    }

    #[test]
    fn pages_end_after_their_last_pointer() {
        let block = pointer(BlockKind::Zstd, START, 9);
        for used in [0, 1, 2, 255, 256] {
            let mut pointers = vec![Pointer::ABSENT; PAGE_FANOUT];
            if let Some(last) = pointers[..used].last_mut() {
                *last = block;
            }
            let bytes = encode_page(&pointers);
            assert_eq!(bytes.len(), used * POINTER_LEN);
            assert_eq!(parse_page(&bytes).unwrap(), pointers);
        }
        for len in [1, 15, 17, PAGE_LEN + POINTER_LEN] {
            assert!(parse_page(&vec![0; len]).unwrap_err().contains("length"));
        }
    }

    #[test]
    fn the_newest_slot_that_is_whole_counts() {
        let slot = |sequence| Slot { sequence, nbytes: 7, index: Index::empty(128) };
        let header = |first: Option<Slot>, second: Option<Slot>| {
            let mut header = FileHeader { npy_len: 128, codec: codec() }.to_bytes();
            for (slot, offset) in [first, second].into_iter().zip(SLOT_OFFSETS) {
                if let Some(slot) = slot {
                    header[offset as usize..][..SLOT_LEN].copy_from_slice(&slot.to_bytes());
                }
            }
            header
        };
        let [first, second] = SLOT_OFFSETS;
        assert_eq!(Slot::newest(&header(None, None)), (None, first));
        assert_eq!(Slot::newest(&header(Some(slot(0)), None)), (Some(slot(0)), second));
        assert_eq!(Slot::newest(&header(Some(slot(0)), Some(slot(1)))), (Some(slot(1)), first));
        assert_eq!(Slot::newest(&header(Some(slot(2)), Some(slot(1)))), (Some(slot(2)), second));
        assert_eq!(Slot::newest(&[]), (None, first));
        // A torn one is none, wherever it is torn; the last bytes are reserved.
        let whole = header(Some(slot(2)), Some(slot(1)));
        for at in 0..SLOT_LEN {
            let mut torn = whole.clone();
            torn[first as usize + at] ^= 0x10;
            let expected = if at < SLOT_LEN - 4 { (Some(slot(1)), first) } else { (Some(slot(2)), second) };
            assert_eq!(Slot::newest(&torn), expected, "{at}");
            assert_eq!(Slot::newest(&whole[..first as usize + at]), (None, first));
        }
    }

    #[test]
    fn file_headers_that_are_cut_or_damaged_are_refused() {
        let header =
            FileHeader { npy_len: 4096, codec: Codec::new(-7, MAX_BLOCK_LEN, Filter::Shuffle).unwrap() };
        let bytes = header.to_bytes();
        assert_eq!(bytes.len() as u64, FILE_HEADER_LEN);
        assert_eq!(FileHeader::parse(&bytes).unwrap(), header);
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        for len in 0..used {
            assert!(FileHeader::parse(&bytes[..len]).is_err(), "{len}");
        }
        for at in 0..used {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert!(FileHeader::parse(&bad).is_err(), "{at}");
            }
        }
        // With a right checksum as well.
        for (offset, number, what) in [
            (VERSION_OFFSET, 2, "version 2"),
            (NPY_LEN_OFFSET, (1 << 20) + 1, "1048577"),
            (CODEC_LEN_OFFSET, u32::MAX, "4294967295"),
            (CODEC_LEN_OFFSET, MAX_CODEC_LEN as u32 + 1, "bytes"),
            (CODEC_LEN_OFFSET, 3, "byte"),
        ] {
            let mut bad = bytes.clone();
            put_u32(&mut bad, offset, number);
            let codec_len = (number as usize).min(MAX_CODEC_LEN);
            let end = if offset == CODEC_LEN_OFFSET { CODEC_OFFSET + codec_len } else { used };
            let crc = header_crc(&bad[..end]).unwrap();
            put_u32(&mut bad, HEADER_CRC_OFFSET, crc);
            let error = FileHeader::parse(&bad).expect_err(what).to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    proptest! {
        #[test]
        fn indexes_and_slots_come_back(index in indexes(), sequence in any::<u64>(), nbytes in any::<u64>()) {
            prop_assert_eq!(Index::parse(&index.to_bytes()), Ok(index));
            let slot = Slot { sequence, nbytes, index };
            prop_assert_eq!(Slot::parse(&slot.to_bytes(), 0), Some(slot));
            // Whatever it says, it is looked at without harm.
            for npy_len in [0, 128, u64::MAX] {
                let _ = (index.check(nbytes, npy_len, &codec()), index.dead(npy_len));
            }
        }

        #[test]
        fn pages_come_back(mut pointers in prop::collection::vec(pointers(), 0..=PAGE_FANOUT)) {
            let page = parse_page(&encode_page(&pointers)).unwrap();
            pointers.resize(PAGE_FANOUT, Pointer::ABSENT);
            prop_assert_eq!(page, pointers);
        }

        #[test]
        fn hostile_bytes_are_refused_or_come_back(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(page) = parse_page(&bytes) {
                prop_assert!(bytes.starts_with(&encode_page(&page)));
            }
            if let Ok(index) = Index::parse(&bytes) {
                prop_assert_eq!(&index.to_bytes()[..], &bytes[..]);
            }
            let _ = (FileHeader::parse(&bytes), Slot::newest(&bytes), Slot::parse(&bytes, u64::MAX));
            let mut header = FileHeader { npy_len: 128, codec: codec() }.to_bytes();
            header[MAGIC.len()..][..bytes.len()].copy_from_slice(&bytes);
            let _ = (FileHeader::parse(&header), Slot::newest(&header));
        }

        #[test]
        fn each_block_is_in_one_slot_of_each_level(block in 0_u64..1 << 51, level in 1_u32..8) {
            let first = first_block_of_page(block, level);
            prop_assert!((first..first + blocks_below(level)).contains(&block));
            let child = first + slot_in_page(block, level) as u64 * blocks_below(level - 1);
            prop_assert_eq!(child, first_block_of_page(block, level - 1));
        }

        #[test]
        fn pointers_that_are_checked_stay_within_the_file(
            pointer in pointers(), level in 0_u32..3, raw_len in 0_u64..1 << 24, end in START..1 << KIND_SHIFT,
        ) {
            if check_pointer(&pointer, level, raw_len, START, end).is_ok() && !pointer.is_absent() {
                prop_assert!(START <= pointer.offset && pointer.end() <= end);
                let most = if level == 0 { raw_len } else { PAGE_LEN as u64 };
                prop_assert!(u64::from(pointer.stored_len) <= most);
            }
        }
    }
}
