//! What the threads of one process share a store with: the locks of std.
//!
//! With the feature `shuttle` they are those of the model checker of that name, which decides at each of them who goes
//! on: tests/interleavings runs the store as it is under it. Nothing works then outside of such a test.

#[cfg(not(feature = "shuttle"))]
pub use std::{
    sync::atomic::AtomicBool,
    sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread_local,
};

#[cfg(feature = "shuttle")]
pub use shuttle::{
    sync::atomic::AtomicBool,
    sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread_local,
};
