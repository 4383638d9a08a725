//! Helpers for the tests: a storage in memory that loses power on demand, and one that fails or dies on demand.

#![allow(dead_code, reason = "each test crate uses some of it")]

mod faulty;
mod mem;

pub use faulty::{FaultyStorage, LastWrite};
pub use mem::MemStorage;
