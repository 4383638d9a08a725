//! Encoding and decoding of one block: the choice between raw and compressed, and the filter before zstd.

use super::CodecError;
use super::delta::{delta, undelta};
use super::shuffle::{shuffle, unshuffle};
use super::zstd::{Compressor, Decompressor, compress_bound};
use crate::format::{BlockKind, Codec, Filter};

/// A block is stored raw unless zstd saves this part of it: less is not worth the time to decode it.
const MIN_SAVED_PART: usize = 32;

/// Encodes blocks. Holds the memory that it takes to do so: one per thread, used again and again.
pub struct Encoder {
    filter: Filter,
    itemsize: usize,
    compressor: Compressor,
    differences: Vec<u8>,
    shuffled: Vec<u8>,
    stored: Vec<u8>,
}

impl Encoder {
    /// An encoder for blocks of items of `itemsize` bytes.
    ///
    /// Where the filter of `codec` is not made for such items, the next best is used: see [`Filter::for_itemsize`].
    pub fn new(codec: &Codec, itemsize: u64) -> Self {
        let filter = codec.filter.for_itemsize(itemsize);
        Self {
            filter,
            itemsize: checked_itemsize(filter, itemsize).expect("the filter was chosen for the size"),
            compressor: Compressor::new(codec.level, filter != Filter::None),
            differences: Vec::new(),
            shuffled: Vec::new(),
            stored: Vec::new(),
        }
    }

    /// Encodes one block. Returns its kind and what is to be stored: `raw` itself where zstd saves less than a
    /// thirty-second of it. The kind is never [`BlockKind::Absent`] or [`BlockKind::OpenTail`].
    ///
    /// # Errors
    /// `Zstd` if zstd has no memory.
    pub fn encode<'a>(&'a mut self, raw: &'a [u8]) -> Result<(BlockKind, &'a [u8]), CodecError> {
        let itemsize = self.itemsize;
        let mut filtered = raw;
        if let Some(step) = self.filter.step() {
            let out = scratch(&mut self.differences, raw.len());
            delta(step, itemsize, raw, out);
            filtered = out;
        }
        if itemsize > 1 {
            let out = scratch(&mut self.shuffled, raw.len());
            shuffle(itemsize, filtered, out);
            filtered = out;
        }
        let run_len = raw.len() / itemsize;
        let max_len = raw.len() - raw.len().div_ceil(MIN_SAVED_PART);
        // With less room zstd would go other ways before it gives up: what is stored would depend on how much room
        // there was, and not be what others make of the same bytes.
        let stored = scratch(&mut self.stored, compress_bound(raw.len()));
        match self.compressor.compress(filtered, run_len, stored)? {
            len if len <= max_len => Ok((self.filter.kind(), &stored[..len])),
            _ => Ok((BlockKind::Raw, raw)),
        }
    }
}

/// Decodes blocks. Holds the memory that it takes to do so: one per thread, used again and again.
pub struct Decoder {
    decompressor: Decompressor,
    shuffled: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder for blocks of any codec.
    pub fn new() -> Self {
        Self { decompressor: Decompressor::new(), shuffled: Vec::new() }
    }

    /// Decodes the block of `kind` that is stored as `stored` into all of `out`, whose length is the block's raw
    /// length. Items have `itemsize` bytes.
    ///
    /// Safe for hostile bytes: takes no memory but that of another block of this length, and never panics. After
    /// an error the contents of `out` are unspecified.
    ///
    /// # Errors
    /// Any `CodecError`: `stored` is not what a block of this kind and length can be encoded to.
    pub fn decode(
        &mut self,
        kind: BlockKind,
        itemsize: u64,
        stored: &[u8],
        out: &mut [u8],
    ) -> Result<(), CodecError> {
        match kind {
            BlockKind::Absent if stored.is_empty() => out.fill(0),
            BlockKind::Absent | BlockKind::Page => {
                return Err(CodecError::StoredLen { kind, found: stored.len(), expected: 0 });
            }
            BlockKind::Raw | BlockKind::OpenTail if stored.len() == out.len() => out.copy_from_slice(stored),
            BlockKind::Raw | BlockKind::OpenTail => {
                return Err(CodecError::StoredLen { kind, found: stored.len(), expected: out.len() });
            }
            BlockKind::Zstd
            | BlockKind::ZstdShuffle
            | BlockKind::ZstdDelta
            | BlockKind::ZstdDelta2
            | BlockKind::ZstdDelta3
            | BlockKind::ZstdDelta4 => {
                let filter = kind.filter().expect("each of these has a filter");
                self.decompress(filter, checked_itemsize(filter, itemsize)?, stored, out)?;
            }
        }
        Ok(())
    }

    fn decompress(
        &mut self,
        filter: Filter,
        itemsize: usize,
        stored: &[u8],
        out: &mut [u8],
    ) -> Result<(), CodecError> {
        if itemsize == 1 {
            self.decompressor.decompress(stored, out)?;
        } else {
            let shuffled = scratch(&mut self.shuffled, out.len());
            self.decompressor.decompress(stored, shuffled)?;
            unshuffle(itemsize, shuffled, out);
        }
        if let Some(step) = filter.step() {
            undelta(step, itemsize, out);
        }
        Ok(())
    }
}

/// The size of an item as `filter` asks for it: 1 where it does not.
///
/// # Errors
/// `Filter` if it is not made for such items.
fn checked_itemsize(filter: Filter, itemsize: u64) -> Result<usize, CodecError> {
    if filter.for_itemsize(itemsize) != filter {
        return Err(CodecError::Filter { filter, itemsize });
    }
    if filter == Filter::None {
        return Ok(1);
    }
    Ok(usize::try_from(itemsize).expect("filters are for items of up to 255 bytes"))
}

/// `len` bytes of a buffer that keeps its memory. What they hold is left from before.
fn scratch(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEN: u32 = 65536;

    fn encoder(filter: Filter, itemsize: u64) -> Encoder {
        Encoder::new(&Codec::new(1, LEN, filter).unwrap(), itemsize)
    }

    /// Items that count slowly upwards: every filter has something to gain.
    fn counting(itemsize: usize, len: usize) -> Vec<u8> {
        let byte = |at| {
            let (count, place) = (at / itemsize / 16, at % itemsize);
            if place < 4 { (count >> (8 * place)) as u8 } else { 7 }
        };
        (0..len).map(byte).collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn decoded(kind: BlockKind, itemsize: u64, stored: &[u8], len: usize) -> Result<Vec<u8>, CodecError> {
        let mut out = vec![0xaa; len];
        Decoder::new().decode(kind, itemsize, stored, &mut out).map(|()| out)
    }

    #[test]
    fn each_filter_makes_its_kind_and_comes_back() {
        for itemsize in (1..=20).chain([64, 255, 256]) {
            for filter in Filter::ALL {
                let mut encoder = encoder(filter, itemsize);
                let mut decoder = Decoder::new();
                for len in [65536, 4096, 1001, 65535, 300] {
                    let raw = counting(itemsize as usize, len);
                    let (found, stored) = encoder.encode(&raw).unwrap();
                    if filter.for_itemsize(itemsize) == filter {
                        assert_eq!(found, filter.kind(), "{filter}, items of {itemsize}, {len} bytes");
                    }
                    assert!(stored.len() <= len - len / 32);
                    let mut out = vec![0xaa; len];
                    decoder.decode(found, itemsize, stored, &mut out).unwrap();
                    assert!(out == raw, "{filter}, items of {itemsize}, {len} bytes");
                }
            }
        }
    }

    #[test]
    fn what_zstd_hardly_shrinks_is_stored_raw() {
        for filter in Filter::ALL {
            let mut encoder = encoder(filter, 4);
            for len in [0, 1, 7, 31, 4096, 65536, 100_000] {
                let raw = noise(len);
                let (kind, stored) = encoder.encode(&raw).unwrap();
                assert_eq!((kind, stored), (BlockKind::Raw, &raw[..]), "{filter}, {len} bytes");
            }
            // One part in forty are zeros: there is something to save, but not enough.
            let mut raw = noise(65536);
            raw[..65536 / 40].fill(0);
            assert_eq!(encoder.encode(&raw).unwrap().0, BlockKind::Raw, "{filter}");
            raw[..65536 / 20].fill(0);
            assert_ne!(encoder.encode(&raw).unwrap().0, BlockKind::Raw, "{filter}");
        }
    }

    #[test]
    fn planes_that_look_random_cost_nothing_in_those_that_do_not() {
        // Floating-point numbers in 1..2: two planes of noise, one of half noise, one that is constant.
        let raw: Vec<u8> = noise(LEN as usize)
            .as_chunks::<4>()
            .0
            .iter()
            .flat_map(|b| [b[0], b[1], b[2] >> 1, 0x3f])
            .collect();
        let len = encoder(Filter::Shuffle, 4).encode(&raw).unwrap().1.len();
        let least = LEN as usize / 4 * (8 + 8 + 7) / 8;
        assert!(len < least + 300, "{len} bytes, {least} of them noise");
    }

    #[test]
    fn kinds_that_are_not_compressed_are_copied() {
        assert_eq!(decoded(BlockKind::Absent, 4, b"", 5).unwrap(), [0; 5]);
        assert_eq!(decoded(BlockKind::Raw, 4, b"12345", 5).unwrap(), b"12345");
        assert_eq!(decoded(BlockKind::OpenTail, 4, b"12345", 5).unwrap(), b"12345");
        for (kind, stored) in
            [(BlockKind::Absent, &b"1"[..]), (BlockKind::Raw, b"1234"), (BlockKind::OpenTail, b"123456")]
        {
            let error = decoded(kind, 4, stored, 5).unwrap_err();
            assert!(matches!(error, CodecError::StoredLen { .. }), "{error}");
        }
    }

    #[test]
    fn a_frame_of_another_length_is_refused_before_it_is_decoded() {
        let raw = counting(4, 65536);
        let mut encoder = encoder(Filter::None, 4);
        let frame = encoder.encode(&raw).unwrap().1;
        for len in [0, 1, 65535, 65537] {
            let error = decoded(BlockKind::Zstd, 4, frame, len).unwrap_err();
            assert_eq!(error, CodecError::ContentLen { found: 65536, expected: len });
            assert!(error.to_string().contains(&format!("claims 65536 bytes, expected {len}")));
        }
        // The same frame, claiming 2**63 bytes in a header of 8 bytes of length.
        let mut claims = frame[..4].to_vec();
        claims.push(0b1110_0000);
        claims.extend((1_u64 << 63).to_le_bytes());
        claims.extend(&frame[8..]);
        let error = decoded(BlockKind::Zstd, 4, &claims, 65536).unwrap_err();
        assert_eq!(error, CodecError::ContentLen { found: 1 << 63, expected: 65536 });
    }

    #[test]
    fn what_is_not_one_frame_is_refused() {
        let raw = counting(4, 4096);
        let mut encoder = encoder(Filter::None, 4);
        let frame = encoder.encode(&raw).unwrap().1.to_vec();

        let twice = [&frame[..], &frame[..]].concat();
        let trailing = CodecError::Trailing { frame_len: frame.len(), found: 2 * frame.len() };
        assert_eq!(decoded(BlockKind::Zstd, 4, &twice, 4096), Err(trailing));

        // zstd itself would skip this.
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0], &frame[..]].concat();
        assert_eq!(decoded(BlockKind::Zstd, 4, &skippable, 4096), Err(CodecError::NoFrame));
        assert_eq!(decoded(BlockKind::Zstd, 4, &skippable[..8], 0), Err(CodecError::NoFrame));

        // The length is unknown: a window instead of it.
        let mut unknown = frame[..4].to_vec();
        unknown.extend([0, 0]);
        unknown.extend(&frame[7..]);
        assert_eq!(decoded(BlockKind::Zstd, 4, &unknown, 4096), Err(CodecError::NoFrame));

        for len in 0..frame.len() {
            assert!(decoded(BlockKind::Zstd, 4, &frame[..len], 4096).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn filters_are_refused_for_items_that_they_are_not_made_for() {
        let raw = counting(1, 4096);
        let mut encoder = encoder(Filter::None, 1);
        let frame = encoder.encode(&raw).unwrap().1;
        for (kind, itemsize) in [
            (BlockKind::ZstdShuffle, 0),
            (BlockKind::ZstdShuffle, 1),
            (BlockKind::ZstdShuffle, 256),
            (BlockKind::ZstdDelta, 0),
            (BlockKind::ZstdDelta, 3),
            (BlockKind::ZstdDelta, u64::MAX),
        ] {
            let error = decoded(kind, itemsize, frame, 4096).unwrap_err();
            assert!(matches!(error, CodecError::Filter { .. }), "{error}");
            assert!(error.to_string().contains(&format!("items of {itemsize} bytes")), "{error}");
        }
    }

    fn kinds() -> impl Strategy<Value = BlockKind> {
        filters().prop_map(Filter::kind)
    }

    fn filters() -> impl Strategy<Value = Filter> {
        prop::sample::select(Filter::ALL.to_vec())
    }

    /// Bytes with repetitions, so that zstd has something to do.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec((prop::collection::vec(any::<u8>(), 1..40), 1_usize..200), 0..20).prop_map(
            |runs| runs.into_iter().flat_map(|(run, times)| run.repeat(times)).take(1 << 17).collect(),
        )
    }

    proptest! {
        #[test]
        fn any_block_comes_back(
            filter in filters(),
            level in prop::sample::select(vec![-7, 0, 1, 3, 9]),
            itemsize in (1_u64..=20).prop_union(64..=64),
            blocks in prop::collection::vec(bytes(), 1..4),
        ) {
            let mut encoder = Encoder::new(&Codec::new(level, LEN, filter).unwrap(), itemsize);
            let mut decoder = Decoder::new();
            for raw in blocks {
                let (kind, stored) = encoder.encode(&raw).unwrap();
                let mut out = vec![0xaa; raw.len()];
                decoder.decode(kind, itemsize, stored, &mut out).unwrap();
                prop_assert!(out == raw);
            }
        }

        #[test]
        fn damaged_blocks_never_panic(
            kind in kinds(),
            filter in filters(),
            itemsize in 0_u64..300,
            raw in bytes(),
            at in any::<prop::sample::Index>(),
            flip in 1_u8..,
            len in 0_usize..5000,
            junk in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut encoder = encoder(filter, 4);
            let mut decoder = Decoder::new();
            let mut stored = encoder.encode(&raw).unwrap().1.to_vec();
            if !stored.is_empty() {
                let at = at.index(stored.len());
                stored[at] ^= flip;
            }
            // Right or wrong: a checksum is the business of the layer above.
            let _ = decoder.decode(kind, itemsize, &stored, &mut vec![0; raw.len()]);
            let _ = decoder.decode(kind, itemsize, &stored, &mut vec![0; len]);
            let _ = decoder.decode(kind, itemsize, &junk, &mut vec![0; len]);
            let framed = [&[0x28, 0xb5, 0x2f, 0xfd], &junk[..]].concat();
            let _ = decoder.decode(kind, itemsize, &framed, &mut vec![0; len]);
            // What was tried before leaves nothing behind.
            let (kind, stored) = encoder.encode(&raw).unwrap();
            let mut out = vec![0xaa; raw.len()];
            decoder.decode(kind, 4, stored, &mut out).unwrap();
            prop_assert!(out == raw);
        }
    }
}
