//! Plain files: pending files of names that are no arrays', as far as they are kept in the store, so that the next mount
//! shows them, too. The first mount of a store that has something to keep claims them, until it ends.
//!
//! An array that is renamed to such a name becomes one; named `*.npy` again it is made an array as any other file is.

use std::ffi::OsStr;
use std::time::SystemTime;

use log::warn;

use super::{Body, PendingFile, Spot, State};
use crate::fs::dir::Tree;
use crate::fs::names::SUFFIX;
use crate::fs::xattr::AttrChanges;
use crate::fs::{Fs, FsError, Ino, lock, read, write};
use crate::store::{Draft, PlainFiles};

impl Fs {
    /// Shows the plain files that are in the store when it is mounted.
    pub(in crate::fs) fn show_plain_files(&self) {
        if !self.store.has_plain_files() {
            return;
        }
        if !self.read_only {
            match self.plain_files() {
                Ok(Some(_)) => {}
                Ok(None) => warn!("another mount of the store has its plain files, which are not shown here"),
                Err(error) => warn!("plain files are not shown: {error}"),
            }
            return;
        }
        match self.store.plain_files() {
            Ok(files) => self.place_plain_files(files),
            Err(error) => warn!("plain files are not shown: {error}"),
        }
    }

    /// The plain files of the store; `None` if another mount has them.
    fn plain_files(&self) -> Result<Option<PlainFiles>, FsError> {
        let mut claimed = lock(&self.plain);
        if claimed.is_none()
            && let Some(files) = self.store.claim_plain_files()?
        {
            self.place_plain_files(files.open_all()?);
            *claimed = Some(files);
        }
        Ok(claimed.clone())
    }

    /// Gives plain files their names.
    fn place_plain_files(&self, files: Vec<(String, Draft)>) {
        let now = SystemTime::now();
        let mut tree = write(&self.tree);
        for (path, mut draft) in files {
            let placed = (|| {
                let (folders, name) = path.rsplit_once('/').unwrap_or(("", &path));
                let mut parent = Ino::ROOT;
                for component in folders.split('/').filter(|_| !folders.is_empty()) {
                    parent = tree.make_directory(parent, component, now)?;
                }
                if tree.child(parent, name).is_some() {
                    return None;
                }
                let spot = Spot { parent, name: name.into() };
                let array = super::names::array_for(&tree, &spot).ok()?;
                draft.set_compression(self.compression.unwrap_or_else(|| self.store.default_compression()));
                let mut state = State::new(draft, spot.clone(), array);
                state.named = true;
                let file = self.pending.insert(state, 0);
                tree.add_pending(parent, &spot.name, file.ino, now).ok()
            })();
            if placed.is_none() {
                warn!("{path}: a plain file is not shown, because an array or a folder has this name");
            }
        }
    }

    /// Makes a plain file of an array, with the same bytes, over whatever has the new name, in one step.
    ///
    /// # Errors
    /// `Busy` if another mount has the store's plain files; `NameTooLong` for paths that cannot be kept; `Stale`;
    /// `Store`. No name changes then.
    pub(in crate::fs) fn make_plain(
        &self,
        array: &str,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
    ) -> Result<(), FsError> {
        let from = Self::new_name(name)?;
        let (to, _) = self.new_spot(new_parent, new_name)?;
        if read(&self.tree).directory(new_parent).is_none() {
            return Err(FsError::Stale { ino: new_parent });
        }
        let path = self.path_of(&to);
        if !PlainFiles::can_keep(&path) {
            return Err(FsError::NameTooLong);
        }
        let busy = FsError::Busy { what: "this: another mount of the store has its plain files" };
        let plain = self.plain_files()?.ok_or(busy)?;
        let array = self.store.record(array)?;
        // It may be removed next.
        write(&self.tree).keep(parent);
        plain.take_out(&array, &path, |draft, commit| {
            // Nobody takes over that the array is gone before the file is there.
            let in_order = lock(&self.syncing);
            commit()?;
            // What fails is logged.
            let _ = self.sync_in_order(&in_order);
            let mut tree = write(&self.tree);
            self.abandon(&to);
            let mut state = State::new(draft, to.clone(), None);
            state.named = true;
            state.attrs = AttrChanges::of(array.attrs());
            let file = self.pending.insert(state, 0);
            let replaced = tree.add_pending(to.parent, &to.name, file.ino, SystemTime::now());
            if replaced.is_err() {
                warn!("{path}: its folder was removed; the next mount shows it");
            }
            self.tell_names(&tree, &[(parent, from), (to.parent, to.name)], Vec::new());
            drop(tree);
            if let Ok(Some(replaced)) = replaced {
                self.pending.prune(replaced);
            }
            Ok(())
        })
    }

    /// Keeps a plain file in the store, if this mount may. Returns whether it is kept.
    pub(super) fn keep_plain(&self, file: &PendingFile) -> Result<bool, FsError> {
        let path = self.path_of(&file.spot());
        if path.ends_with(SUFFIX) {
            return Ok(false);
        }
        let Some(plain) = self.plain_files()? else { return Ok(false) };
        let mut state = file.state();
        match &mut state.body {
            Body::Draft(draft) => Ok(plain.keep(&path, draft)?),
            Body::Array(_) => Ok(false),
        }
    }

    /// Lets plain files in these folders be found under the names that the folders have now.
    pub(super) fn follow_plain(tree: &Tree, state: &mut State) {
        let path = path_in(tree, &state.spot);
        if let Body::Draft(draft) = &mut state.body
            && let Err(error) = draft.move_kept(&path)
        {
            warn!("{path}: is found under its old name when the store is next mounted: {error}");
        }
    }

    /// Lets a plain file that is kept be found under the name that it is to have.
    pub(super) fn move_plain(&self, file: &PendingFile, to: &Spot) -> Result<(), FsError> {
        let path = self.path_of(to);
        match &mut file.state().body {
            Body::Draft(draft) => Ok(draft.move_kept(&path)?),
            Body::Array(_) => Ok(()),
        }
    }
}

/// The path of a file in a mount.
pub(super) fn path_in(tree: &Tree, spot: &Spot) -> String {
    let prefix = tree.directory(spot.parent).map_or("", |directory| &*directory.prefix);
    format!("{prefix}{}", spot.name)
}
