//! NumPy arrays on disk: a store of named arrays that appends, replaces and drops rows in place, and that
//! `npkfs` mounts as a folder of ordinary `.npy` files.
//!
//! Layers, each using only those before it: [`bytes`], [`mod@format`] (what bytes mean), [`codec`] (blocks of bytes,
//! compressed), [`sys`] (the operating system), [`store`] (named arrays), [`fs`] (file-system rules), and the faces
//! `fuse`, `cli` and `python`. The bytes on disk are specified in `spec/npk-format.md`.

pub mod bytes;
#[cfg(feature = "fuse")]
pub mod cli;
pub mod codec;
pub mod format;
pub mod fs;
#[cfg(feature = "fuse")]
pub mod fuse;
#[cfg(feature = "python")]
mod python;
pub mod store;
pub mod sys;
