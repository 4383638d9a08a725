//! Helpers for the tests: a storage in memory that loses power on demand, one that fails or dies on demand, random
//! operations, and the model that tells what they are to do.

#![allow(dead_code, unused_imports, reason = "each test crate uses some of it")]

pub mod acts;
pub mod blocks;
pub mod check;
mod faulty;
pub mod fixture;
pub mod history;
mod mem;
pub mod model;
#[cfg(feature = "fuse")]
pub mod mounted;
pub mod ops;
pub mod random;
pub mod rng;
pub mod zip;

pub use faulty::{FaultyStorage, LastWrite};
pub use mem::MemStorage;
