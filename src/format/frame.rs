//! The manifest as bytes: a file header, then a log of checksummed frames.
//!
//! Frames are only ever appended, so what a crash leaves is a log whose end is missing. What lies after a bad
//! frame decides whether it is such an end, which is silently not there, or damage, which is an error: see
//! [`Log::next`] and spec/npk-format.md, "Torn ends and damage".

use std::ops::Range;

use super::FormatError;
use crate::bytes::{array_at, put_u32, put_u64, u32_at, u64_at};

/// First bytes of a manifest. The bytes after the letters show a file mangled by a text-mode copy.
pub const MAGIC: &[u8; 8] = b"\x89NPK\r\n\x1a\n";
/// The version that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;
/// Feature bits that this program knows: none yet.
pub const KNOWN_FEATURES: u32 = 0;

const MAGIC_LEN: usize = MAGIC.len();
const VERSION_OFFSET: usize = MAGIC_LEN;
const FEATURES_OFFSET: usize = VERSION_OFFSET + size_of::<u32>();
const STORE_ID_OFFSET: usize = FEATURES_OFFSET + size_of::<u32>();
const HEADER_CRC_OFFSET: usize = STORE_ID_OFFSET + STORE_ID_LEN;
/// Offset of the published length: a `u64` that writers store after each commit, and set to [`RETIRED`] before
/// they write. Who has read just as much has everything; all others look at the file.
pub const PUBLISHED_OFFSET: usize = HEADER_CRC_OFFSET + size_of::<u32>() + 4; // + 4 reserved, zero
/// Length of the file header; the first frame follows.
pub const HEADER_LEN: usize = PUBLISHED_OFFSET + size_of::<u64>() + 16; // + 16 reserved, zero

/// The published length while a commit is being written, and of a manifest that has been replaced.
pub const RETIRED: u64 = u64::MAX;

/// Length of a store's random identity.
pub const STORE_ID_LEN: usize = 16;

const FRAME_MARK: u32 = u32::from_le_bytes(*b"npkF");
const CRC_OFFSET: usize = size_of::<u32>();
const LEN_OFFSET: usize = CRC_OFFSET + size_of::<u32>();
const SYNCED_OFFSET: usize = LEN_OFFSET + size_of::<u32>() + 4; // + 4 reserved, zero
/// Length of a frame's header; the payload follows, then zeros up to a multiple of [`FRAME_ALIGN`].
pub const FRAME_HEADER_LEN: usize = SYNCED_OFFSET + size_of::<u64>();
/// Frames start at multiples of this.
pub const FRAME_ALIGN: usize = 8;
/// Longest payload of a frame.
pub const MAX_PAYLOAD_LEN: usize = 1 << 30;

/// The unit that disks write whole.
const SECTOR_LEN: usize = 512;

/// How many times the length of the log bad frames may claim before the search for a later one gives up.
const MAX_OVERLAP: usize = 8;

/// Writes a file header.
pub fn encode_header(store_id: [u8; STORE_ID_LEN], published: u64) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    let (magic, _) = out.split_at_mut(MAGIC_LEN);
    magic.copy_from_slice(MAGIC);
    put_u32(&mut out, VERSION_OFFSET, VERSION);
    let (_, rest) = out.split_at_mut(STORE_ID_OFFSET);
    let (id, _) = rest.split_at_mut(STORE_ID_LEN);
    id.copy_from_slice(&store_id);
    let crc = crc32fast::hash(out.split_at(HEADER_CRC_OFFSET).0);
    put_u32(&mut out, HEADER_CRC_OFFSET, crc);
    put_u64(&mut out, PUBLISHED_OFFSET, published);
    out
}

/// Reads a file header and returns the store's identity. `bytes` starts at the start of the file.
///
/// # Errors
/// `Magic`, `Version`, `Features`, `Truncated` or `Checksum`.
pub fn parse_header(bytes: &[u8]) -> Result<[u8; STORE_ID_LEN], FormatError> {
    if !bytes.starts_with(MAGIC) {
        let found = bytes.get(..MAGIC_LEN.min(bytes.len())).unwrap_or(&[]).to_vec();
        return Err(FormatError::Magic { expected: "an npk manifest", found });
    }
    let truncated = || FormatError::Truncated {
        part: "the manifest's header",
        needed: HEADER_LEN as u64,
        found: bytes.len() as u64,
    };
    let header = bytes.get(..HEADER_LEN).ok_or_else(truncated)?;
    // The version comes before the checksum: a newer version may compute another one.
    let version = u32_at(header, VERSION_OFFSET).ok_or_else(truncated)?;
    if version != VERSION {
        return Err(FormatError::Version { found: version, newest: VERSION });
    }
    let expected = u32_at(header, HEADER_CRC_OFFSET).ok_or_else(truncated)?;
    let found = crc32fast::hash(header.get(..HEADER_CRC_OFFSET).unwrap_or(&[]));
    if found != expected {
        return Err(FormatError::Checksum { part: "the manifest's header", offset: 0, found, expected });
    }
    let unknown = u32_at(header, FEATURES_OFFSET).unwrap_or(0) & !KNOWN_FEATURES;
    if unknown != 0 {
        return Err(FormatError::Features { unknown });
    }
    array_at(header, STORE_ID_OFFSET).ok_or_else(truncated)
}

/// Writes one frame: header, payload, zeros up to the alignment.
///
/// `synced_len` is the length of the manifest that is known to be on the disk.
///
/// # Errors
/// `TooLong` over [`MAX_PAYLOAD_LEN`].
pub fn encode(payload: &[u8], synced_len: u64) -> Result<Vec<u8>, FormatError> {
    let too_long = || FormatError::TooLong {
        part: "a manifest frame",
        len: payload.len() as u64,
        max: MAX_PAYLOAD_LEN as u64,
    };
    if payload.len() > MAX_PAYLOAD_LEN {
        return Err(too_long());
    }
    let payload_len = u32::try_from(payload.len()).map_err(|_| too_long())?;
    let len = FRAME_HEADER_LEN.saturating_add(payload.len());
    let mut out = Vec::with_capacity(len.next_multiple_of(FRAME_ALIGN));
    out.resize(FRAME_HEADER_LEN, 0);
    put_u32(&mut out, 0, FRAME_MARK);
    put_u32(&mut out, LEN_OFFSET, payload_len);
    put_u64(&mut out, SYNCED_OFFSET, synced_len);
    out.extend_from_slice(payload);
    let crc = crc32fast::hash(out.get(LEN_OFFSET..).unwrap_or(&[]));
    put_u32(&mut out, CRC_OFFSET, crc);
    out.resize(len.next_multiple_of(FRAME_ALIGN), 0);
    Ok(out)
}

/// One good frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Where the frame starts in the manifest.
    pub offset: u64,
    /// Where it ends, and the next one starts.
    pub end: u64,
    /// The length of the manifest that was known to be on the disk when the frame was written.
    pub synced_len: u64,
    /// The MessagePack payload.
    pub payload: &'a [u8],
}

/// A run of bytes of the manifest that starts at a frame boundary, read frame by frame.
#[derive(Debug)]
pub struct Log<'a> {
    bytes: &'a [u8],
    start: u64,
    pos: usize,
}

impl<'a> Log<'a> {
    /// Reads `bytes`, which were found at offset `start` of the manifest.
    pub fn new(bytes: &'a [u8], start: u64) -> Self {
        Self { bytes, start, pos: 0 }
    }

    /// The offset of the next frame in the manifest: after [`Log::next`] gave `None`, the end of the log.
    pub fn offset(&self) -> u64 {
        self.start.saturating_add(self.pos as u64)
    }

    /// The next frame, or `None` at the end of the log, which may be torn.
    ///
    /// # Errors
    /// `Checksum` where a bad frame is followed by good ones and cannot be a write that never reached the disk:
    /// a later frame knew it synced, or its bytes are there, but wrong.
    #[expect(clippy::should_implement_trait, reason = "fallible: Iterator would hide the error in an item")]
    pub fn next(&mut self) -> Result<Option<Frame<'a>>, FormatError> {
        if self.pos == self.bytes.len() {
            return Ok(None);
        }
        match self.frame_at(self.pos) {
            Ok(frame) => {
                self.pos = usize::try_from(frame.end.saturating_sub(self.start)).unwrap_or(self.bytes.len());
                Ok(Some(frame))
            }
            Err(bad) => match self.frame_after(self.pos) {
                Some(good) if good.synced_len > self.offset() || !self.is_unwritten(good.offset) => Err(bad),
                _ => Ok(None),
            },
        }
    }

    /// After a bad frame: goes on with the first good one behind it, and returns the offsets of what is left out. `None`
    /// if no good one follows. For those who want what is left of a damaged manifest.
    pub fn skip_damage(&mut self) -> Option<Range<u64>> {
        let from = self.offset();
        let to = self.frame_after(self.pos)?.offset;
        self.pos = usize::try_from(to.saturating_sub(self.start)).ok()?;
        Some(from..to)
    }

    fn frame_at(&self, pos: usize) -> Result<Frame<'a>, FormatError> {
        let offset = self.start.saturating_add(pos as u64);
        let rest = self.bytes.get(pos..).unwrap_or(&[]);
        let bad = |found, expected| FormatError::Checksum { part: "manifest frame", offset, found, expected };
        let header = rest.get(..FRAME_HEADER_LEN).ok_or_else(|| bad(0, 0))?;
        let expected = u32_at(header, CRC_OFFSET).unwrap_or(0);
        let payload_len =
            u32_at(header, LEN_OFFSET).map_or(usize::MAX, |len| usize::try_from(len).unwrap_or(usize::MAX));
        if u32_at(header, 0) != Some(FRAME_MARK) || payload_len > MAX_PAYLOAD_LEN {
            return Err(bad(0, expected));
        }
        let len = FRAME_HEADER_LEN.saturating_add(payload_len);
        let covered = rest.get(LEN_OFFSET..len).ok_or_else(|| bad(0, expected))?;
        let found = crc32fast::hash(covered);
        let end = len.next_multiple_of(FRAME_ALIGN);
        if found != expected || rest.len() < end {
            return Err(bad(found, expected));
        }
        Ok(Frame {
            offset,
            end: offset.saturating_add(end as u64),
            synced_len: u64_at(header, SYNCED_OFFSET).unwrap_or(0),
            payload: rest.get(FRAME_HEADER_LEN..len).unwrap_or(&[]),
        })
    }

    /// The first good frame after the bad one at `bad`.
    fn frame_after(&self, bad: usize) -> Option<Frame<'a>> {
        let mark = FRAME_MARK.to_le_bytes();
        // Frames do not overlap, so that checking them all takes their bytes once. Marks that are none could claim the
        // rest of the file each: who has claimed several times its length is not believed any more.
        let mut believed = self.bytes.len().saturating_mul(MAX_OVERLAP);
        let mut pos = bad.saturating_add(FRAME_ALIGN);
        while let Some(head) = self.bytes.get(pos..pos.saturating_add(mark.len())) {
            if head == mark {
                if let Ok(frame) = self.frame_at(pos) {
                    return Some(frame);
                }
                let claimed = u32_at(self.bytes, pos.saturating_add(LEN_OFFSET)).unwrap_or(0);
                let claimed = usize::try_from(claimed).unwrap_or(usize::MAX).saturating_add(FRAME_HEADER_LEN);
                // A length past the end costs nothing but the look.
                let rest = self.bytes.len().saturating_sub(pos);
                let cost = if claimed <= rest { claimed } else { FRAME_HEADER_LEN };
                believed = believed.checked_sub(cost)?;
            }
            pos = pos.saturating_add(FRAME_ALIGN);
        }
        None
    }

    /// Whether a sector between here and `next_offset` holds nothing: the write of a lost page.
    fn is_unwritten(&self, next_offset: u64) -> bool {
        let end = usize::try_from(next_offset.saturating_sub(self.start)).unwrap_or(self.bytes.len());
        let misaligned = usize::try_from(self.start).unwrap_or(0).checked_rem(SECTOR_LEN).unwrap_or(0);
        let mut from = self.pos;
        while from < end {
            let sector_end = from.saturating_add(misaligned).saturating_add(1).next_multiple_of(SECTOR_LEN);
            let to = sector_end.saturating_sub(misaligned).min(end);
            if self.bytes.get(from..to).is_some_and(|part| part.iter().all(|byte| *byte == 0)) {
                return true;
            }
            from = to;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_of(payloads: &[&[u8]], synced_len: u64) -> Vec<u8> {
        payloads.iter().flat_map(|payload| encode(payload, synced_len).unwrap()).collect()
    }

    fn read(bytes: &[u8]) -> Result<Vec<Vec<u8>>, FormatError> {
        let mut log = Log::new(bytes, 64);
        let mut payloads = Vec::new();
        while let Some(frame) = log.next()? {
            payloads.push(frame.payload.to_vec());
        }
        Ok(payloads)
    }

    #[test]
    fn frames_follow_each_other() {
        let bytes = log_of(&[b"one", b"", b"three and more"], 64);
        assert_eq!(bytes.len() % FRAME_ALIGN, 0);
        assert_eq!(read(&bytes).unwrap(), [&b"one"[..], b"", b"three and more"]);
    }

    #[test]
    fn a_cut_end_is_not_there() {
        let bytes = log_of(&[b"one", b"two"], 64);
        let first = log_of(&[b"one"], 64).len();
        for len in 0..bytes.len() {
            let expected = usize::from(len >= first);
            assert_eq!(read(&bytes[..len]).unwrap().len(), expected, "cut at {len}");
        }
    }

    #[test]
    fn damage_before_a_good_frame_is_an_error_that_names_the_offset() {
        let good = log_of(&[b"one", b"two", b"three"], 0);
        let third = log_of(&[b"one", b"two"], 0).len();
        for at in 0..third {
            let mut bytes = good.clone();
            bytes[at] ^= 0x40;
            let error = read(&bytes);
            // Only the padding is not covered by a checksum.
            if let Err(error) = error {
                let offset = if at < 32 { 64 } else { 96 };
                assert!(error.to_string().contains(&format!("at byte {offset} ")), "{at}: {error}");
            } else {
                assert_eq!(read(&bytes).unwrap(), read(&good).unwrap(), "{at}");
            }
        }
    }

    #[test]
    fn a_page_that_never_reached_the_disk_ends_the_log() {
        let big = vec![7; 2000];
        let mut bytes = log_of(&[b"one", &big, b"three"], 0);
        let hole = 1024 - 64..1536 - 64; // a sector of the file
        bytes[hole].fill(0);
        assert_eq!(read(&bytes).unwrap(), [b"one"]);
        // But if a later frame knew it synced, it is damage.
        let mut bytes = log_of(&[b"one", &big], 0);
        bytes[1024 - 64..1536 - 64].fill(0);
        bytes.extend(encode(b"three", 64 + bytes.len() as u64).unwrap());
        assert!(read(&bytes).is_err());
    }

    #[test]
    fn the_header_is_checked_in_order() {
        let header = encode_header([7; 16], 64);
        assert_eq!(header.len(), 64);
        assert_eq!(parse_header(&header).unwrap(), [7; 16]);
        for at in 0..HEADER_CRC_OFFSET + 4 {
            let mut bad = header;
            bad[at] ^= 1;
            assert!(parse_header(&bad).is_err(), "{at}");
        }
        let mut newer = header;
        newer[VERSION_OFFSET] = 9;
        assert!(parse_header(&newer).unwrap_err().to_string().contains("version 9"));
        assert!(parse_header(b"NPKB").unwrap_err().to_string().contains("NPKB"));
        assert!(parse_header(&header[..40]).is_err());
        assert!(parse_header(b"").unwrap_err().to_string().contains("nothing"));
    }

    #[test]
    fn hostile_lengths_do_not_allocate() {
        let mut bytes = log_of(&[b"one"], 0);
        put_u32(&mut bytes, LEN_OFFSET, u32::MAX);
        assert!(read(&bytes).unwrap().is_empty());
        assert!(encode(&vec![0; MAX_PAYLOAD_LEN + 1], 0).is_err());
    }
}
