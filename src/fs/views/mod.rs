//! Views: files below `.views/` that are computed from arrays when they are read, and stored nowhere.
//!
//! `all.npz` and `all.safetensors` show all arrays, `NAME.raw` the elements of one. A view is of one [`Snapshot`], and
//! so is its inode: if anything of it changes, the name leads to another one. So nothing that the kernel keeps of a view
//! ever gets old. A view's bytes are an [`Image`](image::Image), a list of pieces; [`Held`](view::Held) keeps the data
//! files open that it needs, while the view is open.
//!
//! Lock order: the tree, `Views::table`, and, each by itself, that of a [`View`], held while its data files are opened,
//! and that of a member's checksum, held while the elements are read.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::dir::Child;
use super::file::with_reply;
use super::handle::{DirEntry, OpenDirectory};
use super::inode::{Inode, ino_of};
use super::{
    Attr, Caller, Fh, FileKind, Fs, FsError, Ino, MAX_ATTEMPTS, NAME_MAX, OpenFlags, lock, names, read,
};
use crate::store::{Array, StoreError};

mod checksum;
mod image;
mod safetensors;
mod snapshot;
mod view;
mod zip;

pub(super) use view::{OpenView, Views};

use image::Source;
use snapshot::{Member, Rights, Snapshot};
use view::{Subject, View};

const NPZ: &str = "all.npz";
const SAFETENSORS: &str = "all.safetensors";
const RAW: &str = ".raw";
/// How the names of views end. Folders whose names do have the dot escaped.
const ENDS: [&str; 3] = ["raw", "npz", "safetensors"];

/// The permissions that a view can have.
const VIEW_PERM: u16 = 0o444;

/// A request that takes a checksum of more bytes than this is not answered at once.
const QUICK_LEN: u64 = 4 << 20;

/// What a name among views leads to.
enum Viewed {
    View(Subject),
    /// The views of what is in this folder.
    Folder(Ino),
}

/// Whether a name in a folder is that of a view, or of a folder of views.
pub(super) fn is_of_views(parent: Ino, name: &OsStr) -> bool {
    parent.viewed().is_some() || parent == Ino::ROOT && name == names::VIEWS
}

/// The name of a folder among views.
fn folder_name(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((stem, end)) if ENDS.contains(&end) => format!("{stem}%2E{end}"),
        _ => name.to_owned(),
    }
}

/// The folder's own name; `None` if no folder is named so among views.
fn folder_of(name: &str) -> Option<String> {
    let own = match name.rsplit_once("%2E") {
        Some((stem, end)) if ENDS.contains(&end) => format!("{stem}.{end}"),
        _ => name.to_owned(),
    };
    (folder_name(&own) == name).then_some(own)
}

impl Fs {
    /// Refuses to change a view, or anything in a folder of views.
    pub(super) fn refuse_views(parent: Ino, name: &OsStr) -> Result<(), FsError> {
        if is_of_views(parent, name) { Err(FsError::ReadOnly) } else { Ok(()) }
    }

    /// What a name that [`is_of_views`] leads to. Counts a lookup. For a caller who comes again the view is kept open.
    pub(super) fn view_entry(
        &self,
        parent: Ino,
        name: &OsStr,
        caller: Option<Caller>,
    ) -> Result<Attr, FsError> {
        if name.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        let Some(folder) = parent.viewed() else { return self.directory_attr(Ino::VIEWS) };
        let name = name.to_str().ok_or(FsError::NoEntry)?;
        let subject = match self.viewed_child(folder, name)? {
            Viewed::Folder(ino) => return self.directory_attr(Ino::views_of(ino)),
            Viewed::View(subject) => subject,
        };
        let is_again = caller.is_some_and(|caller| self.again.is_expected(caller));
        let mut attempts = 0;
        loop {
            let view = self.view_of(subject.clone())?;
            attempts += 1;
            if is_again {
                // Held open from here, so that the second open finds it; unless something was overwritten since.
                match self.views.hold(&view) {
                    Err(_) if attempts < MAX_ATTEMPTS => {
                        self.views.forget(view.ino, 1);
                        self.sync()?;
                        continue;
                    }
                    Ok(held) | Err(held) => *lock(&view.reserved) = Some(held),
                }
            }
            return Ok(self.shown_attr(&view));
        }
    }

    /// What a name among the views of `folder` leads to.
    fn viewed_child(&self, folder: Ino, name: &str) -> Result<Viewed, FsError> {
        let tree = read(&self.tree);
        if tree.directory(folder).is_none() {
            return Err(FsError::Stale { ino: Ino::views_of(folder) });
        }
        match name {
            NPZ if folder == Ino::ROOT => return Ok(Viewed::View(Subject::Npz)),
            SAFETENSORS if folder == Ino::ROOT => return Ok(Viewed::View(Subject::Safetensors)),
            _ => {}
        }
        let file = name.strip_suffix(RAW).map(|stem| format!("{stem}{}", names::SUFFIX));
        if let Some((array, _)) = file.and_then(|file| tree.array_at(folder, &file)) {
            return Ok(Viewed::View(Subject::Raw(Arc::clone(array))));
        }
        match folder_of(name).and_then(|own| tree.child(folder, &own).cloned()) {
            Some(Child::Directory(ino)) => Ok(Viewed::Folder(ino)),
            _ => Err(FsError::NoEntry),
        }
    }

    /// The view of a subject as the store is now. Counts a lookup.
    fn view_of(&self, subject: Subject) -> Result<Arc<View>, FsError> {
        let snapshot = match &subject {
            Subject::Npz | Subject::Safetensors => self.snapshot_of_all()?,
            Subject::Raw(array) => match self.store.record(array) {
                Err(StoreError::NotFound { .. }) => return Err(FsError::NoEntry),
                array => Arc::new(self.snapshot([(array?, String::new())])?),
            },
        };
        Ok(self.views.look_up(subject, snapshot)?)
    }

    /// All arrays that are shown, as they are now.
    fn snapshot_of_all(&self) -> Result<Arc<Snapshot>, FsError> {
        let mut attempts = 0;
        let arrays = loop {
            let arrays = self.store.arrays()?;
            let tree = read(&self.tree);
            let shown: Vec<(Array, String)> = arrays
                .iter()
                .filter_map(|array| Some((array.clone(), tree.path_of(array.name())?)))
                .collect();
            drop(tree);
            attempts += 1;
            // Some may have come since the names were taken over. One that stays without a path is not shown.
            if shown.len() == arrays.len() || attempts > 1 {
                break shown;
            }
            self.sync()?;
        };
        let mut all = self.snapshot(arrays)?;
        let folder = self.store.stat()?;
        read(&self.tree).own_attrs().for_each(|own| {
            let mode = own.perm.map_or(folder.mode, u32::from);
            all.rights.narrow_folder(mode, own.uid.unwrap_or(folder.uid), own.gid.unwrap_or(folder.gid));
        });
        Ok(self.views.follow(all))
    }

    fn snapshot(&self, arrays: impl IntoIterator<Item = (Array, String)>) -> Result<Snapshot, FsError> {
        let folder = self.store.stat()?;
        let mut rights = Rights::new(&folder);
        let mut mtime = None;
        let mut members = Vec::new();
        for (array, path) in arrays {
            // Those in several files are opened for that, and this clone does not stay.
            let stat = array.clone().stat().ok();
            let changed = stat.as_ref().map_or(array.committed(), |stat| stat.mtime.max(array.committed()));
            mtime = mtime.max(Some(changed));
            if let Some(stat) = &stat {
                rights.narrow(stat);
            }
            let is_quiet = !self.inodes.with_other(ino_of(&array)).any(|inode| inode.is_written());
            members.push(Member::new(array, &path, stat.as_ref(), is_quiet));
        }
        Ok(Snapshot { members, mtime: mtime.unwrap_or(folder.mtime), rights })
    }

    /// The attributes of a view.
    pub(super) fn view_attr(&self, ino: Ino) -> Result<Attr, FsError> {
        Ok(self.shown_attr(&*self.views.get(ino).ok_or(FsError::Stale { ino })?))
    }

    fn shown_attr(&self, view: &View) -> Attr {
        let own = view.attr();
        let (uid, gid) = (self.shown.uid.unwrap_or(own.uid), self.shown.gid.unwrap_or(own.gid));
        Attr { perm: self.perm(own.perm.into(), VIEW_PERM), uid, gid, ..own }
    }

    /// The array whose elements a view shows, if it shows one only.
    pub(super) fn viewed_array(&self, ino: Ino) -> Result<Option<Array>, FsError> {
        let view = self.views.get(ino).ok_or(FsError::Stale { ino })?;
        Ok(view.array().cloned())
    }

    /// What is in the folder of the views of `folder`.
    pub(super) fn list_views(&self, ino: Ino, folder: Ino) -> Result<OpenDirectory, FsError> {
        let tree = read(&self.tree);
        let directory = tree.directory(folder).ok_or(FsError::Stale { ino })?;
        let children = tree.stored(folder).ok_or(FsError::Stale { ino })?;
        let above = if folder == Ino::ROOT { Ino::ROOT } else { Ino::views_of(directory.parent) };
        let entry = |name: &str, ino, kind| DirEntry { name: name.into(), ino, kind };
        let mut entries = vec![entry(".", ino, FileKind::Directory), entry("..", above, FileKind::Directory)];
        if folder == Ino::ROOT {
            // Which inode a view has is found out when it is looked up.
            entries.extend([NPZ, SAFETENSORS].map(|name| entry(name, ino, FileKind::File)));
        }
        entries.extend(children.map(|(name, child)| match child {
            Child::Directory(ino) => entry(&folder_name(name), Ino::views_of(*ino), FileKind::Directory),
            Child::File { .. } | Child::Pending(_) => {
                let stem = name.strip_suffix(names::SUFFIX).unwrap_or(name);
                entry(&format!("{stem}{RAW}"), child.ino(), FileKind::File)
            }
        }));
        Ok(OpenDirectory { entries })
    }

    /// Opens a view.
    ///
    /// # Errors
    /// `ReadOnly` for writing; `Stale` if the name must be looked up again, because an array was overwritten since;
    /// `Uncommitted` if [`Fs::commit_view`] comes first, and [`Fs::look_again`] then.
    pub fn open_view(&self, ino: Ino, flags: OpenFlags, caller: Caller) -> Result<Fh, FsError> {
        if flags.write || flags.truncate {
            return Err(FsError::ReadOnly);
        }
        let is_second = self.again.came(caller);
        let view = self.views.get(ino).ok_or_else(|| self.look_again(ino, caller))?;
        if !is_second && self.has_uncommitted() && self.shows_uncommitted(&view) {
            return Err(FsError::Uncommitted { ino });
        }
        let reserved = lock(&view.reserved).take();
        let held = match self.views.hold(&view) {
            Ok(held) => held,
            // What is damaged cannot be opened the second time, either. Reading it tells so.
            Err(held) if is_second => held,
            Err(_) => return Err(self.look_again(ino, caller)),
        };
        drop(reserved);
        Ok(self.viewing.insert(OpenView::new(view, held, &self.views)))
    }

    /// Whether something was written to what a view shows that is not committed.
    fn shows_uncommitted(&self, view: &View) -> bool {
        let is_uncommitted = |inode: &Arc<Inode>| !inode.uncommitted.is_empty();
        view.array().is_none_or(|array| self.inodes.views_of(array.id()).iter().any(is_uncommitted))
    }

    /// Commits what was written to what a view shows. May wait for other writers.
    ///
    /// # Errors
    /// As [`Fs::commit`].
    pub fn commit_view(&self, ino: Ino) -> Result<(), FsError> {
        match self.views.get(ino).as_ref().and_then(|view| view.array()) {
            Some(array) => {
                let inodes = self.inodes.views_of(array.id());
                inodes.iter().map(|inode| self.commit_inode(inode)).fold(Ok(()), Result::and)
            }
            None => self.commit_all(),
        }
    }

    /// As [`Fs::read`], from a view.
    pub(super) fn read_view<T>(
        &self,
        fh: Fh,
        offset: u64,
        size: u32,
        reply: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, FsError> {
        let open = self.viewing.get(fh)?;
        let image = &open.view.image;
        let end = offset.saturating_add(u64::from(size)).min(image.len());
        if offset >= end {
            return Ok(reply(&[]));
        }
        let unread = image.checked(offset..end).map(|member| open.member(member));
        let unread = unread.filter(|member| member.is_unread());
        let len = unread.fold(0_u64, |len, member| len.saturating_add(member.array.nbytes()));
        if len > QUICK_LEN {
            return Err(FsError::Unread { fh, len });
        }
        with_reply((end - offset) as usize, |out| {
            image.read(&*open, offset, out).inspect_err(|error| open.log(error))?;
            Ok(reply(out))
        })
    }

    /// Computes the checksums that reading a part of a view takes: after [`FsError::Unread`].
    ///
    /// # Errors
    /// `BadHandle`. What cannot be read is an error when it is read.
    pub fn prepare_view(&self, fh: Fh, offset: u64, size: u32) -> Result<(), FsError> {
        let open = self.viewing.get(fh)?;
        for member in open.view.image.checked(offset..offset.saturating_add(u64::from(size))) {
            open.member(member).checksum(&open.array(member), &self.views.is_ended);
        }
        Ok(())
    }

    /// Lets no checksum keep the mount from ending.
    pub fn end_views(&self) {
        self.views.is_ended.store(true, Ordering::Relaxed);
    }
}
