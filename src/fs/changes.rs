//! Taking over the store's commits: from [`Change`](crate::store::Change)s to the tree, the inodes, and what a kernel
//! has to be told.
//!
//! A change names an array; what is done about it follows from comparing what the store has under that name now with
//! what the tree shows. So it does not matter how many commits lie between, nor in which order they are told.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::SystemTime;

use log::{info, warn};

use super::dir::{Place, Tree};
use super::inode::{Effect, LastByte, ino_of};
use super::{Fs, FsError, Ino, lock, write};
use crate::store::{ChangeKind, StoreError};

/// What a kernel that caches names, attributes and pages has to be told after a change of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invalidation {
    /// A name leads nowhere any more.
    Removed {
        /// The folder.
        parent: Ino,
        /// The name.
        name: Arc<str>,
        /// The inode that it led to, which has no name now.
        child: Ino,
    },
    /// A name leads elsewhere, or its inode has another name now.
    Entry {
        /// The folder.
        parent: Ino,
        /// The name.
        name: Arc<str>,
    },
    /// Attributes.
    Attr {
        /// The inode.
        ino: Ino,
    },
    /// The header and everything from an offset on. In this order: the pages from `from` on are dropped,
    /// [`Fs::show_length`] is called and the byte that it returns is stored in the kernel's cache, the attributes
    /// are dropped, [`Fs::settle`] is called, the header's pages are dropped. So whoever reads a header finds all
    /// rows that it promises.
    Content {
        /// The inode.
        ino: Ino,
        /// Length of the header, in bytes.
        header_len: u64,
        /// Where the change begins, in bytes.
        from: u64,
    },
    /// No change: a block was decoded, of which the kernel did not ask for all pages. [`Fs::store_pages`] gives what
    /// it can keep.
    Pages {
        /// The inode.
        ino: Ino,
        /// The number of the block.
        block: u64,
    },
}

pub(super) fn warn_of_collision(array: &str) {
    warn!("array {array:?} is not shown: too many long names beside it have its hash; rename it");
}

/// What one round of changes did.
#[derive(Default)]
struct Round {
    /// Names that an inode was taken from.
    left: Vec<Place>,
    /// Folders whose entries changed.
    parents: HashSet<Ino>,
    out: Vec<Invalidation>,
}

impl Fs {
    /// Takes over all commits up to now, of this and of other processes.
    ///
    /// # Errors
    /// `Store` if the manifest cannot be read; the names stay as they were.
    pub fn sync(&self) -> Result<(), FsError> {
        self.sync_in_order(&lock(&self.syncing))
    }

    /// As [`Fs::sync`], for who keeps others from doing so.
    pub(super) fn sync_in_order(&self, _in_order: &MutexGuard<'_, ()>) -> Result<(), FsError> {
        let changes = match self.store.refresh() {
            Ok(changes) => changes,
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    warn!("cannot see what changed: {error}");
                }
                return Err(error.into());
            }
        };
        if self.failing.load(Ordering::Relaxed) && self.failing.swap(false, Ordering::Relaxed) {
            info!("{}: can be read again", self.store.path().display());
        }
        if changes.is_empty() {
            return Ok(());
        }
        let now = SystemTime::now();
        let mut round = Round::default();
        let mut tree = write(&self.tree);
        for change in changes {
            match change.kind {
                // What a program wrote through the mount, the kernel has in its pages.
                ChangeKind::Written if change.is_own => {
                    if self.store.record(&change.name).is_ok_and(|array| array.codec().is_some()) {
                        self.reconcile(&mut tree, &change.name, false, now, &mut round);
                    }
                }
                ChangeKind::Written => {
                    self.reconcile(&mut tree, &change.name, true, now, &mut round);
                    if let Ok(array) = self.store.record(&change.name)
                        && array.codec().is_some()
                    {
                        self.tell_other_views(&array, ino_of(&array));
                    }
                }
                ChangeKind::Renamed { from } => {
                    self.reconcile(&mut tree, &from, false, now, &mut round);
                    self.reconcile(&mut tree, &change.name, false, now, &mut round);
                }
                ChangeKind::Added | ChangeKind::Removed | ChangeKind::Resized | ChangeKind::Attrs => {
                    self.reconcile(&mut tree, &change.name, false, now, &mut round);
                }
            }
        }
        self.finish_round(&tree, round);
        Ok(())
    }

    /// Of an [`Invalidation::Content`]: the new length is shown from now on. The kernel learns it at once by storing
    /// the last byte. To drop attributes would not do: an answer about them that is on its way is ignored then, and
    /// readers meet the old end.
    pub fn show_length(&self, ino: Ino) -> Option<LastByte> {
        self.inodes.get(ino)?.show_length()
    }

    /// Of an [`Invalidation::Content`]: the new header is shown from now on.
    pub fn settle(&self, ino: Ino) {
        if let Some(inode) = self.inodes.get(ino) {
            inode.settle();
        }
    }

    /// Lets the tree and the inodes follow what the store has under a name.
    fn reconcile(&self, tree: &mut Tree, name: &Arc<str>, written: bool, now: SystemTime, round: &mut Round) {
        let array = match self.store.record(name) {
            Ok(array) => array,
            Err(StoreError::NotFound { .. }) => {
                for place in tree.take(name, now) {
                    round.parents.insert(place.parent);
                    round.left.push(place);
                }
                return;
            }
            Err(error) => {
                warn!("array {name:?} is shown as it was: {error}");
                return;
            }
        };
        let ino = ino_of(&array);
        let Some(place) = tree.place(name, ino, now) else {
            warn_of_collision(name);
            return;
        };
        if place.before != Some(ino) {
            round.parents.insert(place.parent);
        }
        // The kernel's lookups are counted, so there is nothing to tell it of an inode that is not in the table.
        for inode in self.inodes.with_other(ino) {
            let ino = inode.ino;
            match inode.follow(array.clone(), written) {
                Effect::Attributes => round.out.push(Invalidation::Attr { ino }),
                Effect::Content { header_len, from } => {
                    round.out.push(Invalidation::Content { ino, header_len, from });
                }
            }
        }
        if place.before.is_some_and(|before| before != ino) {
            round.left.push(place);
        }
    }

    /// Tells that names in folders were given to files or taken from them, and which folders are gone.
    pub(super) fn tell_names(&self, tree: &Tree, names: &[(Ino, Arc<str>)], gone: Vec<Place>) {
        let mut round = Round { left: gone, ..Round::default() };
        for (parent, name) in names {
            round.parents.insert(*parent);
            round.out.push(Invalidation::Entry { parent: *parent, name: Arc::clone(name) });
        }
        round.parents.extend(round.left.iter().map(|place| place.parent));
        self.finish_round(tree, round);
    }

    /// Tells what the round did. An inode may have left one name and come to another within it.
    fn finish_round(&self, tree: &Tree, round: Round) {
        let Round { left, parents, mut out } = round;
        for Place { parent, name, before } in left {
            let Some(child) = before else { continue };
            if child.is_directory() {
                out.push(match tree.directory(child) {
                    Some(_) => Invalidation::Entry { parent, name },
                    None => Invalidation::Removed { parent, name, child },
                });
                continue;
            }
            for inode in self.inodes.with_other(child) {
                let (array, _) = inode.array();
                let named = tree.ino_of_array(array.name()) == Some(child);
                inode.set_named(named);
                if !named {
                    out.push(Invalidation::Attr { ino: inode.ino });
                }
                let name = Arc::clone(&name);
                out.push(if named || tree.child(parent, &name).is_some() {
                    Invalidation::Entry { parent, name }
                } else {
                    Invalidation::Removed { parent, name, child: inode.ino }
                });
            }
        }
        for ino in parents {
            if tree.directory(ino).is_some() {
                out.push(Invalidation::Attr { ino });
            }
        }
        for invalidation in out {
            (self.invalidate)(invalidation);
        }
    }
}
