//! What can be wrong with bytes. The layer above adds the file's name.

use std::error::Error;
use std::fmt;

use super::upstream::TableLayout;

/// Bytes that do not follow `spec/npk-format.md`. Offsets are absolute, in bytes.
#[derive(Debug)]
#[non_exhaustive]
pub enum FormatError {
    /// The file does not begin with the magic of its kind.
    Magic {
        /// What kind of file was expected.
        expected: &'static str,
        /// The first bytes that were found.
        found: Vec<u8>,
    },
    /// The file was written by a newer version of the format.
    Version {
        /// The version found.
        found: u32,
        /// The newest version that this program reads.
        newest: u32,
    },
    /// The file needs features that this program does not have.
    Features {
        /// The unknown bits of the feature word.
        unknown: u32,
    },
    /// The file ends before a part that must be there.
    Truncated {
        /// The missing part.
        part: &'static str,
        /// Bytes that the part needs, from the start of the file.
        needed: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// A checksum does not match.
    Checksum {
        /// The part that is damaged.
        part: &'static str,
        /// Where the part starts.
        offset: u64,
        /// The checksum of the bytes.
        found: u32,
        /// The checksum that is recorded.
        expected: u32,
    },
    /// A length is over its ceiling.
    TooLong {
        /// What is too long.
        part: &'static str,
        /// Its length.
        len: u64,
        /// The ceiling.
        max: u64,
    },
    /// A frame whose payload is not what the specification describes.
    Payload {
        /// Where the frame starts.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
    /// An edit that does not fit the table that it changes.
    Edit {
        /// The generation of the edit.
        generation: u64,
        /// What does not fit.
        what: String,
    },
    /// A `.npy` header that NumPy would not read either.
    NpyHeader {
        /// What is wrong with it.
        what: String,
    },
    /// A dtype description that is not one of NumPy's fixed-size dtypes.
    Dtype {
        /// The description.
        descr: String,
        /// What is wrong with it, and the way out.
        what: &'static str,
    },
    /// A shape that NumPy could not have.
    Shape {
        /// The shape.
        shape: Vec<u64>,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A parameter of a codec that is outside its limits.
    Codec {
        /// The parameter.
        part: &'static str,
        /// Its value.
        found: i64,
        /// What it may be.
        expected: &'static str,
    },
    /// A codec or filter that this program does not have.
    UnknownCodec {
        /// "codec" or "filter".
        part: &'static str,
        /// Its name.
        name: String,
    },
    /// An index of blocks that does not fit its array.
    Index {
        /// The array.
        array: String,
        /// What is wrong with it.
        what: String,
    },
    /// An attribute that no array and no store can have.
    Attr {
        /// The attribute's name.
        name: String,
        /// What is wrong with its value.
        what: &'static str,
    },
    /// A table of NumPack 0.1 to 0.7 that does not follow `spec/upstream-layouts.md`.
    Upstream {
        /// Its layout.
        layout: TableLayout,
        /// What is wrong with it.
        what: String,
    },
    /// A name that no array can have.
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic { expected, found } => {
                write!(f, "begins with {}, not as {expected}", Bytes(found))
            }
            Self::Version { found, newest } => write!(
                f,
                "has format version {found}, this program reads versions up to {newest}; install a newer release"
            ),
            Self::Features { unknown } => write!(
                f,
                "needs features {unknown:#x} that this program does not know; install a newer release"
            ),
            Self::Truncated { part, needed, found } => {
                write!(f, "{part} needs {needed} bytes, the file has {found}")
            }
            Self::Checksum { part, offset, found, expected } => {
                write!(f, "{part} at byte {offset} has crc32 {found:#010x}, expected {expected:#010x}")
            }
            Self::TooLong { part, len, max } => {
                write!(f, "{part} claims {len} bytes, the limit is {max}")
            }
            Self::Payload { offset, what } => {
                write!(f, "frame at byte {offset} does not decode: {what}")
            }
            Self::Edit { generation, what } => write!(f, "edit of generation {generation}: {what}"),
            Self::NpyHeader { what } => write!(f, "npy header: {what}"),
            Self::Dtype { descr, what } => write!(f, "dtype {descr}: {what}"),
            Self::Shape { shape, what } => write!(f, "shape {shape:?}: {what}"),
            Self::Codec { part, found, expected } => {
                write!(f, "codec: {part} is {found}, expected {expected}")
            }
            Self::UnknownCodec { part, name } => {
                write!(f, "{part} {name:?} is not known to this release; install a newer one")
            }
            Self::Index { array, what } => write!(f, "array {array:?}: the block index {what}"),
            Self::Attr { name, what } => write!(f, "attribute {name:?}: {what}"),
            Self::Upstream { layout, what } => write!(f, "metadata of NumPack {layout}: {what}"),
            Self::Name { name, what } => write!(f, "array name {name:?}: {what}"),
        }
    }
}

impl Error for FormatError {}

/// Bytes of a file as a person can read them.
struct Bytes<'a>(&'a [u8]);

impl fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("nothing") } else { write!(f, "\"{}\"", self.0.escape_ascii()) }
    }
}
