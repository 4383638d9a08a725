//! A place for a store: in memory, or a directory.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use numpack::store::{self, Access, Store, StoreError};
use numpack::sys::{DirStorage, Storage};
use tempfile::TempDir;

use crate::common::MemStorage;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Place {
    Memory,
    Disk,
}

pub enum Disk {
    Memory(MemStorage),
    Dir(TempDir),
}

impl Disk {
    pub fn new(place: Place) -> Self {
        match place {
            Place::Memory => Disk::Memory(MemStorage::new()),
            // A directory that takes no time to sync, where there is one.
            Place::Disk => Disk::Dir(
                tempfile::tempdir_in("/dev/shm")
                    .or_else(|_| tempfile::tempdir())
                    .expect("temporary directory"),
            ),
        }
    }

    pub fn boxed(&self) -> Box<dyn Storage> {
        match self {
            Disk::Memory(memory) => Box::new(memory.clone()),
            Disk::Dir(dir) => Box::new(DirStorage::open(dir.path()).expect("opens")),
        }
    }

    pub fn storage(&self) -> Arc<dyn Storage> {
        Arc::from(self.boxed())
    }

    pub fn open(&self, access: Access) -> Result<Store, StoreError> {
        Store::with_storage(self.boxed(), access)
    }

    pub fn path(&self) -> Option<&Path> {
        match self {
            Disk::Memory(_) => None,
            Disk::Dir(dir) => Some(dir.path()),
        }
    }

    /// # Panics
    /// If there is a file that the store does not need, or [`store::verify`] finds something.
    pub fn assert_tidy(&self, store: &Store) {
        let files: BTreeSet<String> = self.boxed().list().expect("lists").into_iter().collect();
        let mut needed: BTreeSet<String> = store
            .arrays()
            .expect("lists")
            .iter()
            .map(|array| array.file_name().to_owned())
            .chain(["metadata.npkm", "metadata.npkm.lock"].map(str::to_owned))
            .collect();
        if files.contains("metadata.npkm.bak") {
            // A process may die before it makes the backup; the next snapshot has one again.
            needed.insert("metadata.npkm.bak".to_owned());
        }
        assert_eq!(files, needed);
        let report = store::verify_storage(self.boxed()).expect("verifies");
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        assert!(report.leftovers.is_empty(), "{:?}", report.leftovers);
    }
}
