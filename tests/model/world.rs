//! A store, two handles of it, and the model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use numpack::store::{self, Access, Array, ArrayId, ChangeKind, Store};
use numpack::sys::{DirStorage, Storage as _};
use tempfile::TempDir;

use crate::common::check::{assert_array, assert_store};
use crate::common::model::{Content, Model};
use crate::common::ops::{self, Op};
use crate::common::rng::Rng;
use crate::common::{MemStorage, blocks, random};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Place {
    Disk,
    Memory,
}

pub struct World {
    dir: Option<(TempDir, PathBuf)>,
    memory: MemStorage,
    handles: [Store; 2],
    reader: Store,
    model: Model,
    /// Arrays that somebody holds on to, and what they must go on showing.
    pinned: Vec<(Array, Content)>,
    /// The arrays that each handle was told of.
    told: [BTreeMap<ArrayId, String>; 2],
    is_told: bool,
}

impl World {
    /// `is_told`: whether each operation is printed. `can_punch`: whether the memory gives space back.
    pub fn new(place: Place, is_told: bool, can_punch: bool) -> Self {
        let memory = if can_punch { MemStorage::new() } else { MemStorage::without_punch() };
        let dir = (place == Place::Disk).then(|| {
            let dir = tempfile::tempdir().expect("temporary directory");
            let path = dir.path().join("data.npk");
            (dir, path)
        });
        let first = match &dir {
            Some((_, path)) => Store::create(path),
            None => Store::create_in(Box::new(memory.clone())),
        };
        let first = first.expect("creates");
        let mut world = World {
            dir,
            memory,
            handles: [first.clone(), first.clone()],
            reader: first,
            model: Model::default(),
            pinned: Vec::new(),
            told: Default::default(),
            is_told,
        };
        world.reopen(0);
        world.reopen(1);
        world.reader = world.open(Access::Read);
        world
    }

    fn open(&self, access: Access) -> Store {
        let store = match &self.dir {
            Some((_, path)) => Store::open(path, access),
            None => Store::with_storage(Box::new(self.memory.clone()), access),
        };
        store.expect("opens")
    }

    fn reopen(&mut self, which: usize) {
        let store = self.open(Access::Write);
        store.track_changes();
        let arrays = store.arrays().expect("lists");
        self.told[which] = arrays.iter().map(|array| (array.id(), array.name().to_string())).collect();
        self.handles[which] = store;
    }

    /// Does one thing, and compares.
    pub fn step(&mut self, seed: u64) {
        let mut rng = Rng::new(seed);
        let which = rng.below(2) as usize;
        match rng.below(24) {
            0 => self.reopen(which),
            1..3 => self.pin(&mut rng),
            3..6 => self.write_pinned(&mut rng),
            _ => self.operate(which, &mut rng),
        }
        for which in 0..2 {
            // Either way of catching up must do.
            if rng.one_in(2) {
                self.assert_changes(which);
            }
            assert_store(&self.handles[which], &self.model, &mut rng);
            self.assert_changes(which);
        }
        self.assert_pinned(&mut rng);
        assert_eq!(self.data_files(), self.live_files());
        if rng.one_in(4) {
            self.assert_blocks();
        }
    }

    fn assert_blocks(&self) {
        match &self.dir {
            Some((_, path)) => blocks::assert_blocks(&DirStorage::open(path).expect("opens")),
            None => blocks::assert_blocks(&self.memory),
        }
    }

    fn operate(&mut self, which: usize, rng: &mut Rng) {
        let op = random::op(rng, &self.model);
        if self.is_told {
            eprintln!("handle {which}: {op:?}");
        }
        let store = &self.handles[which];
        let reader = if rng.one_in(8) { self.open(Access::Read) } else { self.reader.clone() };
        reader.refresh().expect("refreshes");
        let generation = reader.generation();
        let before = self.model.clone();
        let expected = op.apply(&mut self.model);
        let result = op.run(store);
        assert!(ops::is_expected(&result, expected), "{op:?}: expected {expected:?}, got {result:?}");
        reader.refresh_quietly().expect("refreshes");
        let after = reader.generation();
        self.reader = reader;
        let written = op.in_place().and_then(|name| self.model.get(name));
        let in_place = written.is_some_and(|content| content.compression.is_none());
        if expected.is_err() || in_place || matches!(op, Op::Sync) {
            assert_eq!(after, generation, "{op:?} committed something");
        } else {
            assert!(after.0 <= generation.0 + 1, "{op:?} is not one commit");
            assert!(after != generation || before == self.model, "{op:?} committed nothing");
        }
        self.follow_pinned();
        if in_place && self.dir.is_none() {
            // A map in memory is a copy, which does not show what is written later: these take a new one.
            self.reopen(0);
            self.reopen(1);
        }
    }

    fn pin(&mut self, rng: &mut Rng) {
        if !self.model.arrays.is_empty() {
            let (name, content) = rng.pick(&self.model.arrays);
            let array = self.handles[rng.below(2) as usize].array(name).expect("is there");
            self.pinned.push((array, Content { header: None, ..content.clone() }));
        }
        if self.pinned.len() > 4 {
            self.pinned.remove(0);
        }
    }

    /// Writes through a handle that somebody holds on to, maybe of an earlier state, or of a version that is gone.
    fn write_pinned(&mut self, rng: &mut Rng) {
        let Some(at) = self.pinned.len().checked_sub(1).map(|last| rng.below(last as u64 + 1) as usize)
        else {
            return;
        };
        let (array, content) = &mut self.pinned[at];
        if self.dir.is_none() && array.codec().is_none() {
            return;
        }
        let array = array.clone();
        let len = array.nbytes();
        let offset = rng.below(len + 1);
        let data = rng.bytes(rng.clone().below(len + 1 - offset) as usize);
        if self.is_told {
            eprintln!("{array:?}: {} bytes from {offset} on", data.len());
        }
        let at = array.header_len() + offset;
        let written = match rng.below(2) {
            0 => array.write_npy_at(at, &data),
            _ => array.write_back(&[(at, &data)]),
        };
        written.expect("writes");
        ops::write(content, offset, &data).expect("fits");
        let written = content.clone();
        for (other, content) in &mut self.pinned {
            if other.id() == array.id() {
                overwrite(content, &written);
            }
        }
        let live = self.reader.arrays().expect("lists");
        if let Some(now) = live.iter().find(|now| now.id() == array.id()) {
            overwrite(self.model.get_mut(now.name()).expect("the model has it"), &written);
        }
    }

    /// What is written in place shows in each array of the same version.
    fn follow_pinned(&mut self) {
        let live = self.reader.arrays().expect("lists");
        for (array, content) in &mut self.pinned {
            let Some(now) = live.iter().find(|now| now.id() == array.id()) else { continue };
            overwrite(content, self.model.get(now.name()).expect("the model has it"));
        }
    }

    fn assert_pinned(&self, rng: &mut Rng) {
        for (array, content) in &self.pinned {
            // In memory, a map would have to show what was written after it was made.
            if self.dir.is_some() || array.codec().is_some() {
                assert_array(array, content, rng);
            }
        }
    }

    /// The changes that a handle is told lead to the arrays that there are.
    fn assert_changes(&mut self, which: usize) {
        let told = &mut self.told[which];
        for change in self.handles[which].refresh().expect("refreshes") {
            match change.kind {
                ChangeKind::Added => assert_eq!(told.insert(change.id, change.name.to_string()), None),
                ChangeKind::Removed => assert!(told.remove(&change.id).is_some()),
                ChangeKind::Renamed { from } => {
                    assert_eq!(told.insert(change.id, change.name.to_string()).as_deref(), Some(&*from));
                }
                ChangeKind::Resized | ChangeKind::Written | ChangeKind::Attrs => {
                    assert_eq!(told.get(&change.id).map(String::as_str), Some(&*change.name));
                }
            }
        }
        let arrays = self.handles[which].arrays().expect("lists");
        let there: BTreeMap<ArrayId, String> =
            arrays.iter().map(|array| (array.id(), array.name().to_string())).collect();
        assert_eq!(*told, there);
    }

    fn files(&self) -> Vec<String> {
        match &self.dir {
            None => self.memory.list().expect("lists"),
            Some((_, path)) => std::fs::read_dir(path)
                .expect("lists")
                .map(|entry| entry.expect("lists").file_name().into_string().expect("our names are ASCII"))
                .collect(),
        }
    }

    fn data_files(&self) -> BTreeSet<String> {
        self.files().into_iter().filter(|file| !file.starts_with("metadata.npkm")).collect()
    }

    fn live_files(&self) -> BTreeSet<String> {
        let arrays = self.handles[0].arrays().expect("lists");
        arrays.iter().map(|array| array.file_name().to_owned()).collect()
    }

    pub fn finish(&mut self) {
        let reader = self.open(Access::Read);
        assert_store(&reader, &self.model, &mut Rng::new(0));
        self.assert_blocks();
        if let Some((_, path)) = &self.dir {
            let report = store::verify(path).expect("verifies");
            assert!(report.problems.is_empty(), "{:?}", report.problems);
            assert_eq!(report.leftovers, Vec::<String>::new());
            assert_eq!(report.n_arrays, self.model.arrays.len() as u64);
        }
    }
}

/// Gives the rows of `content` that `of` has the elements that they have there.
fn overwrite(content: &mut Content, of: &Content) {
    for (tag, bytes) in of.tags.iter().zip(&of.rows) {
        if let Some(row) = content.tags.iter().position(|own| own == tag) {
            content.rows[row].clone_from(bytes);
        }
    }
}
