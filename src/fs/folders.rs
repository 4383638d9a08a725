//! Renaming folders: all arrays that are in one get other names, in one commit.

use std::ffi::OsStr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::dir::Child;
use super::{FileKind, Fs, FsError, Ino, Invalidation, Rename, lock, names, read, write};
use crate::store::StoreError;

/// How long other writers are waited for, as by [`Fs::rename`] of an array.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The time between two attempts grows to this.
const MAX_PAUSE: Duration = Duration::from_millis(20);

impl Fs {
    /// Renames a folder. Its inode, and those of all that is in it, stay the same until the mount ends.
    pub(super) fn rename_directory(
        &self,
        ino: Ino,
        parent: Ino,
        new_parent: Ino,
        new_name: &OsStr,
        how: Rename,
    ) -> Result<(), FsError> {
        if self.read_only {
            return Err(FsError::ReadOnly);
        }
        let name = Self::new_name(new_name)?;
        if let Ok(Child::File { .. } | Child::Pending(_)) = self.child(new_parent, new_name)
            && how == Rename::Replace
        {
            return Err(FsError::NotADirectory);
        }
        let component = names::decode(&name, FileKind::Directory).ok_or(FsError::BadName)?;
        // What fails is logged.
        let _ = self.commit_all();
        let start = Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            match self.try_rename_directory(ino, new_parent, new_name, &component, how) {
                Err(FsError::Store(error)) if start.elapsed() < TIMEOUT && is_passing(&error) => {}
                Err(error) => return Err(error),
                Ok(()) => break,
            }
            thread::sleep(pause);
            pause = (2 * pause).min(MAX_PAUSE);
        }
        for ino in [parent, new_parent] {
            (self.invalidate)(Invalidation::Attr { ino });
        }
        Ok(())
    }

    /// As [`Fs::rename_directory`], without waiting for other writers.
    fn try_rename_directory(
        &self,
        ino: Ino,
        new_parent: Ino,
        new_name: &OsStr,
        component: &str,
        how: Rename,
    ) -> Result<(), FsError> {
        // Nobody takes over that the arrays are elsewhere before the folder is: they would leave it one by one.
        let in_order = lock(&self.syncing);
        self.sync_in_order(&in_order)?;
        let over = match self.child(new_parent, new_name) {
            Err(FsError::NoEntry) => None,
            Err(error) => return Err(error),
            Ok(child) if child.ino() == ino => return Ok(()),
            Ok(_) if how == Rename::NoReplace => return Err(FsError::Exists),
            Ok(Child::File { .. } | Child::Pending(_)) => return Err(FsError::NotADirectory),
            Ok(Child::Directory(over)) => Some(over),
        };
        let (prefix, new_prefix, arrays) = {
            let tree = read(&self.tree);
            let directory = tree.directory(ino).ok_or(FsError::Stale { ino })?;
            let above = tree.directory(new_parent).ok_or(FsError::Stale { ino: new_parent })?;
            let subtree = tree.subtree(ino);
            if subtree.contains(&new_parent) {
                return Err(FsError::Invalid { what: "moving a folder into itself" });
            }
            if over.is_some_and(|over| !tree.is_empty(over)) {
                return Err(FsError::NotEmpty);
            }
            let arrays = subtree.iter().flat_map(|ino| tree.arrays_in(*ino)).cloned().collect::<Vec<_>>();
            (Arc::clone(&directory.prefix), format!("{}{component}/", above.prefix), arrays)
        };
        let renamed: Vec<String> = arrays
            .iter()
            .map(|array| format!("{new_prefix}{}", array.strip_prefix(&*prefix).unwrap_or_default()))
            .collect();
        if !arrays.is_empty() {
            let pairs = arrays.iter().zip(&renamed).map(|(from, to)| (&**from, to.as_str()));
            self.store.rename_all(&pairs.collect::<Vec<_>>(), Duration::ZERO)?;
        }
        let mut tree = write(&self.tree);
        let now = SystemTime::now();
        if let Some(over) = over {
            tree.remove_directory(over, now);
        }
        tree.move_directory(ino, new_parent, component, now);
        self.follow_folders(&tree, &tree.subtree(ino));
        drop(tree);
        // Finds all arrays where they are shown by now. What fails is logged, and with it every lookup until it works.
        let _ = self.sync_in_order(&in_order);
        Ok(())
    }
}

/// Whether an attempt fails because of what others do, and the next one may not.
fn is_passing(error: &StoreError) -> bool {
    matches!(error, StoreError::Locked { .. } | StoreError::NotFound { .. } | StoreError::Exists { .. })
}
