//! How the blocks of a compressed array are encoded, as records and block pointers say it.
//!
//! Only the words and their limits; encoding and decoding is the module `codec`. What a release does not know is
//! refused by its name, so that the reader learns what to install.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::FormatError;
use super::messagepack::{Malformed, Reader, needed, once, unknown};

/// Raw length of a block is a multiple of this: the memory page, so that a page never spans two blocks.
pub const BLOCK_ALIGN: u32 = 4096;

/// Largest raw length of a block, in bytes.
pub const MAX_BLOCK_LEN: u32 = 16 << 20;

/// Lowest level of zstd that is accepted: the fastest.
pub const MIN_LEVEL: i32 = -7;

/// Highest level of zstd: the smallest.
pub const MAX_LEVEL: i32 = 22;

/// The level where none is asked for.
pub const DEFAULT_LEVEL: i32 = 1;

/// The raw length of a block where none is asked for.
pub const DEFAULT_BLOCK_LEN: u32 = 64 << 10;

/// The name of the only codec, as it stands on disk.
const ZSTD: &str = "zstd";

/// Deepest nesting of a parameter of a codec that is not known.
const MAX_PARAMETER_DEPTH: usize = 64;

/// The reversible step before compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Filter {
    /// The bytes as they are.
    #[default]
    None,
    /// The first byte of every item, then the second of every item, and so on.
    Shuffle,
    /// Each item less the one before it, as integers that wrap around, folded: small differences of either sign become
    /// small numbers. Then [`Filter::Shuffle`].
    Delta,
    /// As [`Filter::Delta`], with the item two before it: pairs of numbers.
    Delta2,
    /// As [`Filter::Delta`], with the item three before it: colours, vectors in space.
    Delta3,
    /// As [`Filter::Delta`], with the item four before it: colours with transparency.
    Delta4,
}

impl Filter {
    /// All filters.
    pub const ALL: [Self; 6] =
        [Self::None, Self::Shuffle, Self::Delta, Self::Delta2, Self::Delta3, Self::Delta4];

    /// The name, as it stands on disk and as a user writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Shuffle => "shuffle",
            Self::Delta => "delta",
            Self::Delta2 => "delta2",
            Self::Delta3 => "delta3",
            Self::Delta4 => "delta4",
        }
    }

    /// The kind of the blocks that are compressed after this filter.
    pub fn kind(self) -> BlockKind {
        match self {
            Self::None => BlockKind::Zstd,
            Self::Shuffle => BlockKind::ZstdShuffle,
            Self::Delta => BlockKind::ZstdDelta,
            Self::Delta2 => BlockKind::ZstdDelta2,
            Self::Delta3 => BlockKind::ZstdDelta3,
            Self::Delta4 => BlockKind::ZstdDelta4,
        }
    }

    /// How many items before it the one is that is taken from an item, if the filter begins with differences.
    pub fn step(self) -> Option<usize> {
        match self {
            Self::None | Self::Shuffle => None,
            Self::Delta => Some(1),
            Self::Delta2 => Some(2),
            Self::Delta3 => Some(3),
            Self::Delta4 => Some(4),
        }
    }

    /// The filter that is applied to items of `itemsize` bytes where this one is asked for: differences are made of
    /// integers of 1, 2, 4 and 8 bytes, [`Filter::Shuffle`] is for items of 2 to 255 bytes.
    pub fn for_itemsize(self, itemsize: u64) -> Self {
        match (self.step(), itemsize) {
            (Some(_), 1 | 2 | 4 | 8) => self,
            (_, 2..=255) if self != Self::None => Self::Shuffle,
            _ => Self::None,
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Filter {
    type Err = FormatError;

    fn from_str(name: &str) -> Result<Self, FormatError> {
        Self::ALL
            .into_iter()
            .find(|filter| filter.name() == name)
            .ok_or_else(|| FormatError::UnknownCodec { part: "filter", name: name.into() })
    }
}

impl Serialize for Filter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// How the blocks of an array are encoded: always zstd. Checked when it was made.
///
/// On disk: a map with `name`, `level`, `block` and `filter`; spec/npk-format.md, "Codecs".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "StoredCompression")]
pub struct Codec {
    /// The level of zstd, [`MIN_LEVEL`] to [`MAX_LEVEL`].
    pub level: i32,
    /// Raw bytes of a block: a multiple of [`BLOCK_ALIGN`], up to [`MAX_BLOCK_LEN`].
    pub block_len: u32,
    /// The step before compression.
    pub filter: Filter,
}

impl Codec {
    /// Reads a codec as it stands on disk.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let stored = StoredCompression::read(reader)?;
        Ok(Self::new(stored.level, stored.block, needed(stored.filter, "filter")?)?)
    }

    /// A codec with these parameters.
    ///
    /// # Errors
    /// `Codec` if the level or the length of a block is outside its limits.
    pub fn new(level: i32, block_len: u32, filter: Filter) -> Result<Self, FormatError> {
        let codec = Self { level, block_len, filter };
        codec.check()?;
        Ok(codec)
    }

    /// Checks the limits, for a codec whose fields were set one by one.
    ///
    /// # Errors
    /// `Codec` if the level or the length of a block is outside its limits.
    pub fn check(&self) -> Result<(), FormatError> {
        if !(MIN_LEVEL..=MAX_LEVEL).contains(&self.level) {
            return Err(FormatError::Codec {
                part: "level",
                found: self.level.into(),
                expected: "-7 (fastest) to 22 (smallest)",
            });
        }
        let is_block_len = (BLOCK_ALIGN..=MAX_BLOCK_LEN).contains(&self.block_len)
            && self.block_len.is_multiple_of(BLOCK_ALIGN);
        if !is_block_len {
            return Err(FormatError::Codec {
                part: "block length",
                found: self.block_len.into(),
                expected: "a multiple of 4096 bytes, from 4096 to 16777216 (16 MiB)",
            });
        }
        Ok(())
    }
}

/// How a new array is to be compressed.
///
/// On disk, as a store's default: a map with `name`, `level`, `block`, and `filter` if it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// As [`Codec::level`].
    pub level: i32,
    /// As [`Codec::block_len`].
    pub block_len: u32,
    /// As [`Codec::filter`]; `None`: the one that makes a sample of the array smallest.
    pub filter: Option<Filter>,
}

impl Default for Compression {
    fn default() -> Self {
        Self { level: DEFAULT_LEVEL, block_len: DEFAULT_BLOCK_LEN, filter: None }
    }
}

impl Compression {
    /// The codec, with `filter` where none is asked for.
    ///
    /// # Errors
    /// As [`Codec::new`].
    pub fn codec(&self, filter: Filter) -> Result<Codec, FormatError> {
        Codec::new(self.level, self.block_len, self.filter.unwrap_or(filter))
    }
}

impl Compression {
    /// Reads a compression as it stands on disk.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let stored = StoredCompression::read(reader)?;
        let compression = Self { level: stored.level, block_len: stored.block, filter: stored.filter };
        compression.codec(Filter::None)?;
        Ok(compression)
    }
}

/// A codec or compression as it stands on disk.
#[derive(Serialize)]
struct StoredCompression {
    name: &'static str,
    level: i32,
    block: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<Filter>,
}

impl StoredCompression {
    fn new(level: i32, block: u32, filter: Option<Filter>) -> Self {
        Self { name: ZSTD, level, block, filter }
    }

    /// An unknown codec is refused by its name, and not for the parameters that it has.
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (mut name, mut level, mut block, mut filter, mut wrong) = (None, None, None, None, None);
        reader.fields(|reader, key| {
            match key {
                "name" => return once(&mut name, key, reader.str()?),
                "level" | "block" | "filter" => {}
                key => wrong = wrong.take().or(Some(unknown(key))),
            }
            let value = reader.value(MAX_PARAMETER_DEPTH)?;
            match key {
                "level" => once(&mut level, key, value),
                "block" => once(&mut block, key, value),
                "filter" => once(&mut filter, key, value),
                _ => Ok(()),
            }
        })?;
        let name = needed(name, "name")?;
        if name != ZSTD {
            return Err(FormatError::UnknownCodec { part: "codec", name: name.to_owned() }.into());
        }
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        let (level, block) = (needed(level, "level")?, needed(block, "block")?);
        let level_value = level.as_i64().and_then(|level| i32::try_from(level).ok());
        let block_value = block.as_u64().and_then(|block| u32::try_from(block).ok());
        let filter = match filter {
            None => None,
            Some(filter) => match filter.as_str() {
                Some(name) => Some(name.parse()?),
                None => return Err(Malformed(format!("codec: filter is {filter}, expected a string"))),
            },
        };
        match (level_value, block_value) {
            (Some(level), Some(block)) => Ok(Self::new(level, block, filter)),
            (None, _) => Err(Malformed(format!("codec: level is {level}, expected -7 to 22"))),
            (_, None) => Err(Malformed(format!("codec: block length is {block}, expected 4096 to 16777216"))),
        }
    }
}

impl From<Codec> for StoredCompression {
    fn from(codec: Codec) -> Self {
        Self::new(codec.level, codec.block_len, Some(codec.filter))
    }
}

impl Serialize for Compression {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        StoredCompression::new(self.level, self.block_len, self.filter).serialize(serializer)
    }
}

/// How one block is stored: the top byte of its pointer.
// On disk: never renumber
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BlockKind {
    /// Nowhere: the block is all zeros, as in a sparse file.
    Absent = 0,
    /// The raw bytes.
    Raw = 1,
    /// A zstd frame.
    Zstd = 2,
    /// A zstd frame of shuffled bytes: [`Filter::Shuffle`].
    ZstdShuffle = 3,
    /// A zstd frame of shuffled differences: [`Filter::Delta`].
    ZstdDelta = 4,
    /// The raw bytes of a last, partial block, behind which rows are appended in place.
    OpenTail = 5,
    /// No block, but a page of the block index.
    Page = 6,
    /// A zstd frame of shuffled differences: [`Filter::Delta2`].
    ZstdDelta2 = 7,
    /// The same after [`Filter::Delta3`].
    ZstdDelta3 = 8,
    /// The same after [`Filter::Delta4`].
    ZstdDelta4 = 9,
}

impl BlockKind {
    /// All kinds, each at the index that is its number.
    const ALL: [Self; 10] = [
        Self::Absent,
        Self::Raw,
        Self::Zstd,
        Self::ZstdShuffle,
        Self::ZstdDelta,
        Self::OpenTail,
        Self::Page,
        Self::ZstdDelta2,
        Self::ZstdDelta3,
        Self::ZstdDelta4,
    ];

    /// The kind with this number on disk, `None` where this release knows none.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The number on disk.
    pub fn to_u8(self) -> u8 {
        self as u8
    }

    /// The filter of a block that is a zstd frame, `None` for every other kind.
    pub fn filter(self) -> Option<Filter> {
        Filter::ALL.into_iter().find(|filter| filter.kind() == self)
    }

    /// Whether the stored bytes are the raw bytes.
    pub fn is_raw(self) -> bool {
        matches!(self, Self::Raw | Self::OpenTail)
    }
}

#[cfg(test)]
mod tests {
    use super::super::messagepack::read_all;
    use super::*;

    /// Maps that no `Codec` writes.
    fn map(entries: &[(&str, rmpv::Value)]) -> rmpv::Value {
        rmpv::Value::Map(entries.iter().map(|(key, value)| ((*key).into(), value.clone())).collect())
    }

    fn refusal(value: &rmpv::Value) -> String {
        read_all(&rmp_serde::to_vec_named(value).unwrap(), Codec::read).unwrap_err().0
    }

    #[test]
    fn a_codec_is_a_map_with_names() {
        let codec = Codec::new(3, 65536, Filter::Shuffle).unwrap();
        let bytes = rmp_serde::to_vec_named(&codec).unwrap();
        let expected = map(&[
            ("name", "zstd".into()),
            ("level", 3.into()),
            ("block", 65536.into()),
            ("filter", "shuffle".into()),
        ]);
        assert_eq!(rmp_serde::from_slice::<rmpv::Value>(&bytes).unwrap(), expected);
        assert_eq!(bytes, rmp_serde::to_vec_named(&expected).unwrap());
        assert_eq!(read_all(&bytes, Codec::read).unwrap(), codec);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let error = refusal(&map(&[("name", "lz4".into()), ("acceleration", 5.into())]));
        assert!(error.contains("codec \"lz4\" is not known to this release; install a newer one"), "{error}");
        let error = refusal(&map(&[
            ("name", "zstd".into()),
            ("level", 3.into()),
            ("block", 65536.into()),
            ("filter", "bitshuffle".into()),
        ]));
        assert!(error.contains("filter \"bitshuffle\" is not known to this release"), "{error}");
        let error = refusal(&map(&[("name", "zstd".into()), ("window", 3.into())]));
        assert!(error.contains("window"), "{error}");
        assert!("Shuffle".parse::<Filter>().is_err());
        for filter in Filter::ALL {
            assert_eq!(filter.to_string().parse::<Filter>().unwrap(), filter);
        }
    }

    #[test]
    fn limits_are_checked_on_the_way_in_and_from_disk() {
        for (level, block_len) in [(-7, 4096), (22, 16 << 20), (1, 12288)] {
            assert!(Codec::new(level, block_len, Filter::None).is_ok());
        }
        for (level, block_len, part) in [
            (-8, 4096, "level is -8"),
            (23, 4096, "level is 23"),
            (1, 0, "block length is 0"),
            (1, 4095, "block length is 4095"),
            (1, 6144, "block length is 6144"),
            (1, (16 << 20) + 4096, "block length is 16781312"),
        ] {
            let error = Codec::new(level, block_len, Filter::None).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("expected"), "{error}");
            let stored = map(&[
                ("name", "zstd".into()),
                ("level", level.into()),
                ("block", block_len.into()),
                ("filter", "none".into()),
            ]);
            assert!(refusal(&stored).contains(part));
        }
    }

    #[test]
    fn kinds_keep_their_numbers() {
        for number in 0..=u8::MAX {
            match BlockKind::from_u8(number) {
                Some(kind) => assert_eq!(kind.to_u8(), number),
                None => assert!(number > 9),
            }
        }
        assert_eq!(BlockKind::from_u8(6), Some(BlockKind::Page));
        assert_eq!(BlockKind::from_u8(9), Some(BlockKind::ZstdDelta4));
        for filter in Filter::ALL {
            assert_eq!(filter.kind().filter(), Some(filter));
        }
    }

    #[test]
    fn filters_are_for_items_that_they_can_take_apart() {
        assert_eq!(Filter::Delta.for_itemsize(1), Filter::Delta);
        assert_eq!(Filter::Delta.for_itemsize(12), Filter::Shuffle);
        assert_eq!(Filter::Delta3.for_itemsize(1), Filter::Delta3);
        assert_eq!(Filter::Shuffle.for_itemsize(1), Filter::None);
        assert_eq!(Filter::Shuffle.for_itemsize(255), Filter::Shuffle);
        assert_eq!(Filter::Delta.for_itemsize(256), Filter::None);
        assert_eq!(Filter::Shuffle.for_itemsize(0), Filter::None);
    }
}
