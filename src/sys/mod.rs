//! The operating system: files in one directory, maps of them, the writers' lock, and facts about file systems.
//!
//! `store` reaches its files only through [`Storage`], so a test can hand it a storage that fails on demand or
//! forgets what was not synced. Nothing here knows what the bytes mean. All `unsafe` code of the package outside
//! of `python` is here: the maps, the `fcntl` of locks and leases, the fork handler, and looking up users.

pub mod accounts;
mod claim;
mod dir;
mod file;
mod fork;
mod lease;
pub mod lock;
pub mod memory;
mod mmap;
pub mod mounts;
pub mod netfs;
pub mod process;
mod random;
mod remedy;
mod storage;
pub mod sync;
mod word;

pub use dir::DirStorage;
pub use mmap::{Map, MapMut};
pub use random::random_bytes;
pub use remedy::{WithRemedy, remedy};
pub use storage::{FileAccess, FileLock, FileStat, FsStat, LockGuard, Storage, StorageFile};
pub use word::SharedWord;
