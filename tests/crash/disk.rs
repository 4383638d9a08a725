//! A place for a store: in memory, or a directory.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use numpack::format::block_index::FILE_HEADER_LEN;
use numpack::format::npy;
use numpack::store::{self, Access, Store, StoreError};
use numpack::sys::{DirStorage, FileAccess, Storage};
use tempfile::TempDir;

use crate::common::{MemStorage, blocks};

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
    /// If there is a file that the store does not need, a header in a file does not describe what is stored, or
    /// [`store::verify`] finds something.
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
        blocks::assert_blocks(&*self.boxed());
        for array in store.arrays().expect("lists") {
            let file = self.boxed().open(array.file_name(), FileAccess::Read).expect("opens");
            let mut header = vec![0; array.header_len() as usize];
            let offset = if array.codec().is_some() { FILE_HEADER_LEN } else { 0 };
            file.read_at(&mut header, offset).expect("reads");
            let header = npy::parse(&header).expect("is a header");
            let stored_rows = array.shape().first().map(|rows| rows + array.n_deleted());
            assert_eq!(header.shape.first().copied(), stored_rows, "{:?}", array.name());
            assert_eq!(header.shape.get(1..), array.shape().get(1..));
            assert_eq!(header.dtype, *array.dtype());
        }
    }
}
