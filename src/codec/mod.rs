//! Blocks of bytes, encoded and decoded: a filter, then zstd.
//!
//! Knows neither files nor arrays. What the words and numbers on disk mean is in [`mod@crate::format`]; checksums are
//! over the stored bytes and belong to those who store them. Hostile bytes give an `Err`, and memory is bounded by
//! the raw length that the caller knows, never by what the bytes claim.

mod block;
mod choose;
mod delta;
mod error;
mod shuffle;
mod zstd;

pub use block::{Decoder, Encoder};
pub use choose::choose_filter;
pub use error::CodecError;
