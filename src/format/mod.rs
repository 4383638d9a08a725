//! What the bytes of a store mean: pure functions from bytes to values and back.
//!
//! Nothing here touches a file, a clock or a lock. Hostile bytes give an `Err`, never a panic: the lints
//! below keep it so. The statement of the format in words is `spec/npk-format.md`.

#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::unwrap_used
)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::unwrap_used
    )
)]

pub mod block_index;
mod codec;
mod dtype;
mod error;
pub mod frame;
mod layout;
mod literal;
pub mod manifest;
mod messagepack;
pub mod names;
pub mod npy;
mod stored;
pub mod upstream;

pub use block_index::Index;
pub use codec::{BLOCK_ALIGN, BlockKind, Codec, Compression, Filter, MAX_BLOCK_LEN, MAX_LEVEL, MIN_LEVEL};
pub use dtype::{Descr, Dtype, Field, Subarray};
pub use error::FormatError;
pub use layout::{Layout, MAX_NDIM};
pub use manifest::{ArrayId, Attrs, Blocks, DeletedRows, Edit, Generation, Op, Record, Table};
