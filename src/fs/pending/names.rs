//! Names of pending files: given, taken and changed. Where arrays are concerned as well, the arrays come first: if
//! the store cannot be changed, nothing is.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use super::{Body, PendingFile, Spot};
use crate::fs::attr::NAME_MAX;
use crate::fs::dir::{Child, Tree};
use crate::fs::{Attr, FileKind, Fs, FsError, Ino, Rename, SetAttr, names, read, write};

impl Fs {
    /// The text of a name for something new.
    pub(in crate::fs) fn new_name(name: &OsStr) -> Result<Arc<str>, FsError> {
        if name.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        Ok(name.to_str().ok_or(FsError::BadName)?.into())
    }

    /// The place of a new file, and the array that it becomes, if it is named like one.
    pub(in crate::fs) fn new_spot(
        &self,
        parent: Ino,
        name: &OsStr,
    ) -> Result<(Spot, Option<Arc<str>>), FsError> {
        let spot = Spot { parent, name: Self::new_name(name)? };
        let array = array_for(&read(&self.tree), &spot)?;
        Ok((spot, array))
    }

    /// Makes a folder, and sets its owner and permissions. It is there until it is removed, or the mount ends.
    ///
    /// # Errors
    /// `ReadOnly`; `Exists`; `NameTooLong`; `BadName` for names that no group is shown under; `Stale`; `Store`.
    pub fn mkdir(&self, parent: Ino, name: &OsStr, set: SetAttr) -> Result<Attr, FsError> {
        Self::refuse_views(parent, name)?;
        self.sync()?;
        match self.child(parent, name) {
            Ok(_) => return Err(FsError::Exists),
            Err(FsError::NoEntry) => {}
            Err(error) => return Err(error),
        }
        if self.read_only {
            return Err(FsError::ReadOnly);
        }
        let name = Self::new_name(name)?;
        let component = names::decode(&name, FileKind::Directory).ok_or(FsError::BadName)?;
        let mut tree = write(&self.tree);
        if tree.child(parent, &name).is_some() {
            return Err(FsError::Exists);
        }
        let now = SystemTime::now();
        let made = tree.make_directory(parent, &component, now);
        if let Some(ino) = made {
            tree.set_attr(ino, set, now);
        }
        drop(tree);
        self.directory_attr(made.ok_or(FsError::Stale { ino: parent })?)
    }

    /// Removes a folder that is empty.
    ///
    /// # Errors
    /// `NoEntry`; `NotADirectory`; `ReadOnly`; `NotEmpty`.
    pub fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<(), FsError> {
        Self::refuse_views(parent, name)?;
        self.sync()?;
        let ino = match self.child(parent, name)? {
            Child::File { .. } | Child::Pending(_) => return Err(FsError::NotADirectory),
            Child::Directory(_) if self.read_only => return Err(FsError::ReadOnly),
            Child::Directory(ino) => ino,
        };
        let mut tree = write(&self.tree);
        let gone = tree.remove_directory(ino, SystemTime::now()).ok_or(FsError::NotEmpty)?;
        self.tell_names(&tree, &[], gone);
        Ok(())
    }

    /// Lets a new file take its name; with `exclusive`, only if nothing has it.
    pub(super) fn show(&self, file: &PendingFile, exclusive: bool) -> Result<(), FsError> {
        let mut tree = write(&self.tree);
        let spot = file.spot();
        match tree.child(spot.parent, &spot.name) {
            Some(_) if exclusive => return Err(FsError::Exists),
            Some(Child::Directory(_)) => return Err(FsError::IsADirectory),
            _ => {}
        }
        // It may have been removed since.
        let array = array_for(&tree, &spot)?;
        let before = tree
            .add_pending(spot.parent, &spot.name, file.ino, SystemTime::now())
            .map_err(|()| FsError::Stale { ino: spot.parent })?;
        {
            let mut state = file.state();
            (state.named, state.array) = (true, array);
        }
        if let Some(before) = before.and_then(|ino| self.pending.get(ino)) {
            // Whoever has it open goes on, and makes an array of it when he is done.
            let mut state = before.state();
            state.named = false;
            if state.n_open == 0 {
                state.remove();
            }
        }
        // A kernel that asks for a file under a new name knows that it is there.
        if before.is_some() || tree.array_at(spot.parent, &spot.name).is_some() {
            self.tell_names(&tree, &[(spot.parent, spot.name)], Vec::new());
        }
        drop(tree);
        before.into_iter().for_each(|ino| self.pending.prune(ino));
        Ok(())
    }

    /// Takes a name from the pending file that has it, if one has: the store was changed in its place already.
    pub(in crate::fs) fn give_up(&self, parent: Ino, name: &Arc<str>) {
        let mut tree = write(&self.tree);
        self.abandon(&Spot { parent, name: Arc::clone(name) });
        let Some(Child::Pending(ino)) = tree.child(parent, name).cloned() else { return };
        let gone = tree.remove_pending(parent, name, ino, SystemTime::now()).unwrap_or_default();
        self.tell_names(&tree, &[(parent, Arc::clone(name))], gone);
        drop(tree);
        self.pending.prune(ino);
    }

    /// Removes a name that is no array's, and never will be, at once: nothing in the store is concerned, and nobody is
    /// waited for. Returns whether it was one.
    ///
    /// # Errors
    /// `NoEntry`, `NotADirectory`, `NameTooLong`; `ReadOnly`; `Store` if the store cannot be read.
    pub fn unlink_other(&self, parent: Ino, name: &OsStr) -> Result<bool, FsError> {
        if names::is_array_file(name) {
            return Ok(false);
        }
        Self::refuse_views(parent, name)?;
        self.sync()?;
        let Child::Pending(ino) = self.child(parent, name)? else { return Ok(false) };
        if self.read_only {
            return Err(FsError::ReadOnly);
        }
        let spot = Spot { parent, name: Self::new_name(name)? };
        let mut tree = write(&self.tree);
        // It may have been renamed or removed since.
        if tree.child(parent, &spot.name).map(Child::ino) != Some(ino) {
            return Ok(false);
        }
        tree.keep(parent);
        self.abandon(&spot);
        // The kernel knows: it asked for it.
        tree.remove_pending(parent, &spot.name, ino, SystemTime::now());
        drop(tree);
        self.pending.prune(ino);
        Ok(true)
    }

    /// Lets a name lead to the array that the file became, should it lead to the file still.
    pub(in crate::fs) fn reveal(&self, parent: Ino, name: &OsStr) {
        if let Ok(Child::Pending(ino)) = self.child(parent, name)
            && let Some(file) = self.pending.get(ino)
            && file.is_array()
        {
            self.unveil(&file);
        }
    }

    /// Lets the files in these folders become arrays of the names that the folders have now.
    pub(in crate::fs) fn follow_folders(&self, tree: &Tree, folders: &[Ino]) {
        for file in self.pending.all() {
            let mut state = file.state();
            if !folders.contains(&state.spot.parent) {
                continue;
            }
            if state.array.is_some() {
                state.array = array_for(tree, &state.spot).ok().flatten();
            }
            if state.named {
                Self::follow_plain(tree, &mut state);
            }
        }
    }

    /// Lets all files that have or had a name give it up, because it is removed or given to something else.
    pub(super) fn abandon(&self, spot: &Spot) {
        for file in self.pending.at(spot) {
            file.state().remove();
        }
    }

    /// Renames a pending file, over whatever has the new name. If it is closed, whole and named like an array from
    /// now on, it becomes one.
    ///
    /// # Errors
    /// `NoEntry`, `Exists`, `IsADirectory`, `NameTooLong`, `BadName`; `Store` if it is closed and can become no array,
    /// or if the commit fails. No name changes then.
    pub(in crate::fs) fn rename_pending(
        &self,
        ino: Ino,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        how: Rename,
    ) -> Result<(), FsError> {
        let from = Spot { parent, name: Self::new_name(name)? };
        let file = self.pending.get(ino).ok_or(FsError::NoEntry)?;
        match self.child(new_parent, new_name) {
            Ok(child) if child.ino() == ino => return Ok(()),
            Ok(_) if how == Rename::NoReplace => return Err(FsError::Exists),
            Ok(Child::Directory(_)) => return Err(FsError::IsADirectory),
            Ok(Child::File { .. } | Child::Pending(_)) | Err(FsError::NoEntry) => {}
            Err(error) => return Err(error),
        }
        let (to, array) = self.new_spot(new_parent, new_name)?;
        if let Some(array) = &array
            && file.state().is_closed()
        {
            self.commit_as(&file, array, how == Rename::Replace)?;
            // Places the array. What fails is logged there.
            let _ = self.sync();
        }
        self.move_plain(&file, &to)?;
        let mut tree = write(&self.tree);
        if tree.directory(to.parent).is_none() {
            return Err(FsError::Stale { ino: to.parent });
        }
        let now = SystemTime::now();
        tree.keep(parent);
        let gone = tree.remove_pending(parent, &from.name, ino, now).unwrap_or_default();
        let replaced = match tree.child(to.parent, &to.name) {
            Some(Child::Pending(replaced)) => Some(*replaced),
            _ => None,
        };
        self.abandon(&to);
        {
            let mut state = file.state();
            if matches!(state.body, Body::Array(_)) {
                if let Some(replaced) = replaced {
                    tree.remove_pending(to.parent, &to.name, replaced, now);
                }
                state.named = false;
            } else {
                state.named = tree.add_pending(to.parent, &to.name, ino, now).is_ok();
            }
            state.array = array;
            let before = std::mem::replace(&mut state.spot, to.clone());
            drop(state);
            self.pending.moved(ino, &before, to.clone());
        }
        self.tell_names(&tree, &[(parent, from.name), (to.parent, to.name)], gone);
        drop(tree);
        [Some(ino), replaced].into_iter().flatten().for_each(|ino| self.pending.prune(ino));
        Ok(())
    }
}

/// The array that a file of a name becomes, be it there already or not; `None` for names without `.npy`.
pub(super) fn array_for(tree: &Tree, spot: &Spot) -> Result<Option<Arc<str>>, FsError> {
    if !spot.name.ends_with(names::SUFFIX) {
        return Ok(None);
    }
    if let Some((array, _)) = tree.array_at(spot.parent, &spot.name) {
        return Ok(Some(Arc::clone(array)));
    }
    let component = names::decode(&spot.name, FileKind::File).ok_or(FsError::BadName)?;
    let directory = tree.directory(spot.parent).ok_or(FsError::Stale { ino: spot.parent })?;
    Ok(Some(format!("{}{component}", directory.prefix).into()))
}
