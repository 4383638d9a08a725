//! Why a block could not be encoded or decoded. The layer above adds the array and the block.

use std::error::Error;
use std::fmt;

use crate::format::{BlockKind, Filter};

/// A block that zstd refuses, or whose stored bytes contradict what the store knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodecError {
    /// Stored bytes of a kind whose length follows from the raw length.
    StoredLen {
        /// The kind of the block.
        kind: BlockKind,
        /// Bytes stored.
        found: usize,
        /// Bytes that there should be.
        expected: usize,
    },
    /// Stored bytes that do not begin a zstd frame with the length of its content.
    NoFrame,
    /// A zstd frame whose content is longer or shorter than the block.
    ContentLen {
        /// Raw bytes that the frame claims.
        found: u64,
        /// Raw bytes of the block.
        expected: usize,
    },
    /// Bytes after the end of the zstd frame.
    Trailing {
        /// Bytes of the frame.
        frame_len: usize,
        /// Bytes stored.
        found: usize,
    },
    /// A filter that cannot have been applied to items of this size.
    Filter {
        /// The filter.
        filter: Filter,
        /// Bytes of one item.
        itemsize: u64,
    },
    /// What zstd itself says.
    Zstd {
        /// "encode" or "decode".
        action: &'static str,
        /// The message of zstd.
        what: &'static str,
    },
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StoredLen { kind, found, expected } => {
                write!(f, "block of kind {kind:?} has {found} stored bytes, expected {expected}")
            }
            Self::NoFrame => f.write_str("block does not begin with a zstd frame that tells its length"),
            Self::ContentLen { found, expected } => {
                write!(f, "zstd frame claims {found} bytes, expected {expected}")
            }
            Self::Trailing { frame_len, found } => {
                write!(f, "zstd frame ends at byte {frame_len} of {found}; nothing may follow it")
            }
            Self::Filter { filter, itemsize } => {
                write!(f, "filter {:?} is not made for items of {itemsize} bytes", filter.name())
            }
            Self::Zstd { action, what } => write!(f, "zstd does not {action} the block: {what}"),
        }
    }
}

impl Error for CodecError {}
