//! File-system semantics over a store, without a kernel: what `lookup`, `open`, `read` and the rest mean.
//!
//! [`Fs`] has one method per operation and its own types for what they take and give; `fuse` puts them on the wire.
//! What a change of the store means for a kernel that caches goes out as [`Invalidation`]s. The rules are written
//! down in spec/npkfs-semantics.md, and tested paragraph by paragraph in tests/fs_ops.rs.
//!
//! Lock order: `Fs::plain`, `Fs::syncing`, `Fs::tree`, the inode table or that of pending files or of views, the state of one inode or
//! of one pending file or view, the store's own locks; and none is held while an invalidation is carried out, because the
//! kernel may need an answer from us before it can do that. The locks of open handles are leaves.

use std::ffi::OsStr;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use log::info;

use crate::store::{Access, Compression, PlainFiles, Store};
use crate::sys::{FsStat, LockGuard};

mod aside;
mod attr;
mod blocks;
mod changes;
mod counters;
mod decoded;
mod dir;
mod entry;
mod error;
mod file;
mod folders;
mod handle;
mod inode;
pub mod names;
mod pending;
mod resize;
mod views;
mod write_back;
mod xattr;

pub use attr::{Attr, BLKSIZE, FileKind, NAME_MAX, SetAttr, Shown};
pub use changes::Invalidation;
pub use counters::Counts;
pub use decoded::{DecodePolicy, DecodedFile, DecodedFiles, Found};
pub use entry::Rename;
pub use error::FsError;
pub use file::{OpenFlags, Opened};
pub use handle::{Caller, DirEntry, Fh};
pub use inode::{Ino, LastByte};
pub use pending::{Closed, NewFile};
pub use write_back::Written;
pub use xattr::SetMode;

use aside::Aside;
use blocks::DecodedBlocks;
use counters::Counters;
use dir::{Child, Tree};
use file::OpenFile;
use handle::{Again, Handles, OpenDirectory};
use inode::{Inode, Inodes, ino_of};
use pending::{OpenPending, Pendings};
use views::{OpenView, Views};
use write_back::WriteBack;

/// How often a name is looked up anew because its array was overwritten before its file could be opened.
const MAX_ATTEMPTS: u32 = 8;

/// A mounted store, as far as no kernel is involved. All methods take `&self` and may run in parallel.
pub struct Fs {
    store: Store,
    read_only: bool,
    /// How new arrays are compressed; `None`: as the store says.
    compression: Option<Option<Compression>>,
    shown: Shown,
    /// Held while the store's changes are taken over, so that they are in order.
    syncing: Mutex<()>,
    /// Whether the store could not be read when it was last asked for changes.
    failing: AtomicBool,
    tree: RwLock<Tree>,
    inodes: Inodes,
    pending: Pendings,
    /// The store's plain files, if they were claimed.
    plain: Mutex<Option<PlainFiles>>,
    files: Handles<OpenFile>,
    blocks: DecodedBlocks,
    write_back: WriteBack,
    counters: Counters,
    /// Pending files that are open.
    making: Handles<OpenPending>,
    views: Views,
    /// Views that are open.
    viewing: Handles<OpenView>,
    directories: Handles<OpenDirectory>,
    again: Again,
    aside: Aside,
    /// Inodes that were written to in place, and nobody told.
    untold: Mutex<Vec<Arc<Inode>>>,
    /// Lets writers tell what they write in place.
    watch: Mutex<Option<Box<dyn LockGuard>>>,
    invalidate: Box<dyn Fn(Invalidation) + Send + Sync>,
}

impl fmt::Debug for Fs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fs")
            .field("store", &self.store.path())
            .field("read_only", &self.read_only)
            .field("n_inodes", &self.inodes.len())
            .finish_non_exhaustive()
    }
}

impl Fs {
    /// Reads the names of a store's arrays. Read-only if asked for, or if the store is open for reading only.
    ///
    /// `invalidate` is given, in order, what a caching kernel has to be told. It may be called from within any
    /// method, so it must hand the invalidation to another thread and return.
    ///
    /// # Errors
    /// `Store` if the manifest cannot be read.
    pub fn new(
        store: Store,
        read_only: bool,
        invalidate: impl Fn(Invalidation) + Send + Sync + 'static,
    ) -> Result<Self, FsError> {
        let read_only = read_only || store.access() == Access::Read;
        // What changed up to here is in the names that are read now.
        store.track_changes();
        store.refresh()?;
        let now = SystemTime::now();
        let mut tree = Tree::new(store.stat().map_or(now, |stat| stat.mtime));
        let mtime = tree.directory(Ino::ROOT).map_or(now, |root| root.mtime);
        for array in store.arrays()? {
            if tree.place(array.name(), ino_of(&array), mtime).is_none() {
                changes::warn_of_collision(array.name());
            }
        }
        let fs = Self {
            store,
            read_only,
            compression: None,
            shown: Shown::default(),
            syncing: Mutex::new(()),
            failing: AtomicBool::new(false),
            tree: RwLock::new(tree),
            inodes: Inodes::default(),
            pending: Pendings::default(),
            plain: Mutex::new(None),
            files: Handles::new(),
            blocks: DecodedBlocks::default(),
            write_back: WriteBack::default(),
            counters: Counters::default(),
            making: Handles::of_pending(),
            views: Views::default(),
            viewing: Handles::of_views(),
            directories: Handles::new(),
            again: Again::default(),
            aside: Aside::default(),
            untold: Mutex::default(),
            watch: Mutex::new(None),
            invalidate: Box::new(invalidate),
        };
        fs.show_plain_files();
        Ok(fs)
    }

    /// Sets how new arrays are compressed, or that they are not, whatever the store's default is.
    pub fn set_compression(&mut self, compression: Option<Compression>) {
        self.compression = Some(compression);
    }

    /// Sets what is shown of all files and folders, whatever the store's have.
    pub fn set_shown(&mut self, shown: Shown) {
        self.shown = shown;
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Asks all writers of the store to tell what they write in place, from now on: for a kernel that caches pages.
    ///
    /// May wait for a writer that is at work.
    pub fn watch(&self) {
        // A release that writes to an old store does not tell, and its folder is not for us to write to.
        let mut watch = lock(&self.watch);
        if watch.is_none() && self.store.old_layout().is_none() {
            match self.store.watch() {
                Ok(guard) => *watch = Some(guard),
                Err(error) => info!("writes in place by others are seen a second late: {error}"),
            }
        }
    }

    /// Whether nothing can be changed.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The inode that a name leads to. Counts a lookup, which [`Fs::forget`] uncounts.
    ///
    /// # Errors
    /// `NoEntry`, `NotADirectory`, `NameTooLong`; `Store` if the store cannot be read.
    pub fn lookup(&self, parent: Ino, name: &OsStr, caller: Caller) -> Result<Attr, FsError> {
        let mut attempts = 0;
        loop {
            self.sync()?;
            let attr = self.entry(parent, name, Some(caller))?;
            if attr.ino.is_view() {
                return Ok(attr);
            }
            if attr.kind == FileKind::File
                && let Some(new) = self.look_up_emptied(caller, parent, name)?
            {
                self.forget(attr.ino, 1);
                return Ok(new);
            }
            attempts += 1;
            if attr.kind == FileKind::Directory || attr.ino.is_pending() || !self.again.is_expected(caller) {
                return Ok(attr);
            }
            // Held open from here, so that the second open finds it; unless it was overwritten since `sync`.
            match self.inodes.get(attr.ino).map(|inode| inode.pin()) {
                Some(Err(_)) if attempts < MAX_ATTEMPTS => self.forget(attr.ino, 1),
                _ => return Ok(attr),
            }
        }
    }

    /// Uncounts lookups of an inode.
    pub fn forget(&self, ino: Ino, nlookup: u64) {
        // A folder's number follows from its path: there is nothing to keep for it.
        if ino.is_pending() {
            self.pending.forget(ino, nlookup);
        } else if ino.is_view() {
            self.views.forget(ino, nlookup);
        } else if !ino.is_directory() {
            self.inodes.forget(ino, nlookup);
        }
    }

    /// An inode's attributes.
    ///
    /// # Errors
    /// `Stale` if the inode is a folder that is gone.
    pub fn getattr(&self, ino: Ino) -> Result<Attr, FsError> {
        // Open files can be looked at even when the store has become unreadable; `sync` says so in the log.
        let _ = self.sync();
        if ino.is_directory() {
            return self.directory_attr(ino);
        }
        if ino.is_pending() {
            return self.pending_attr(&*self.pending.get(ino).ok_or(FsError::Stale { ino })?);
        }
        if ino.is_view() {
            return self.view_attr(ino);
        }
        let inode = self.inodes.get(ino).ok_or(FsError::Stale { ino })?;
        Ok(self.attr_instead_of(&inode).unwrap_or_else(|| self.file_attr(&inode)))
    }

    /// Opens a folder: what it lists is what is in it now.
    ///
    /// # Errors
    /// `Stale` if the folder is gone, `NotADirectory`.
    pub fn opendir(&self, ino: Ino) -> Result<Fh, FsError> {
        self.sync()?;
        if !ino.is_directory() {
            return Err(FsError::NotADirectory);
        }
        if let Some(folder) = ino.viewed() {
            return Ok(self.directories.insert(self.list_views(ino, folder)?));
        }
        let tree = read(&self.tree);
        let directory = tree.directory(ino).ok_or(FsError::Stale { ino })?;
        let children = tree.children(ino).ok_or(FsError::Stale { ino })?;
        let mut entries = Vec::with_capacity(children.size_hint().0.saturating_add(2));
        entries.push(DirEntry { name: ".".into(), ino, kind: FileKind::Directory });
        entries.push(DirEntry { name: "..".into(), ino: directory.parent, kind: FileKind::Directory });
        entries.extend(children.map(|(name, child)| DirEntry {
            name: Arc::clone(name),
            ino: child.ino(),
            kind: child.kind(),
        }));
        drop(tree);
        Ok(self.directories.insert(OpenDirectory { entries }))
    }

    /// The entries of an open folder from number `offset` on, as long as `add` returns true.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn readdir(
        &self,
        fh: Fh,
        offset: u64,
        mut add: impl FnMut(u64, &DirEntry) -> bool,
    ) -> Result<(), FsError> {
        let directory = self.directories.get(fh)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, entry) in (offset.saturating_add(1)..).zip(directory.entries.iter().skip(start)) {
            if !add(next, entry) {
                break;
            }
        }
        Ok(())
    }

    /// As [`Fs::readdir`], with attributes and a counted lookup for each entry that was taken, except `.` and `..`.
    /// Entries that are gone since are left out.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn readdirplus(
        &self,
        ino: Ino,
        fh: Fh,
        offset: u64,
        mut add: impl FnMut(u64, &DirEntry, &Attr) -> bool,
    ) -> Result<(), FsError> {
        self.readdir(fh, offset, |next, entry| {
            if *entry.name == *"." || *entry.name == *".." {
                return match self.directory_attr(entry.ino) {
                    Ok(attr) => add(next, entry, &attr),
                    Err(_) => true,
                };
            }
            let Ok(attr) = self.entry(ino, OsStr::new(&*entry.name), None) else { return true };
            let taken = add(next, entry, &attr);
            if !taken {
                self.forget(attr.ino, 1);
            }
            taken
        })
    }

    /// Closes a folder.
    pub fn releasedir(&self, fh: Fh) {
        self.directories.remove(fh);
    }

    /// The file system that the store is on.
    ///
    /// # Errors
    /// `Store`.
    pub fn statfs(&self) -> Result<FsStat, FsError> {
        Ok(self.store.stat_fs()?)
    }

    /// Brings the names in a folder to the disk.
    ///
    /// # Errors
    /// `Store`.
    pub fn fsyncdir(&self) -> Result<(), FsError> {
        if self.read_only { Ok(()) } else { Ok(self.store.sync()?) }
    }

    /// As [`Fs::lookup`], of the names as they were last taken over.
    fn entry(&self, parent: Ino, name: &OsStr, caller: Option<Caller>) -> Result<Attr, FsError> {
        if views::is_of_views(parent, name) {
            return self.view_entry(parent, name, caller);
        }
        // The tree stays locked until the inode is in the table: a change that is taken over later finds it there.
        let tree = read(&self.tree);
        let array = match find(&tree, parent, name)? {
            Child::Directory(ino) => {
                let ino = *ino;
                drop(tree);
                return self.directory_attr(ino);
            }
            Child::Pending(ino) => {
                let ino = *ino;
                let file = self.pending.look_up(ino).ok_or(FsError::Stale { ino })?;
                drop(tree);
                return self.pending_attr(&file).inspect_err(|_| self.pending.forget(ino, 1));
            }
            Child::File { array, .. } => self.store.record(array)?,
        };
        let ino = self.shown_ino(ino_of(&array), caller);
        let inode = self.inodes.look_up(ino, array);
        drop(tree);
        Ok(self.file_attr(&inode))
    }

    /// What a name leads to.
    fn child(&self, parent: Ino, name: &OsStr) -> Result<Child, FsError> {
        find(&read(&self.tree), parent, name).cloned()
    }
}

/// What a name in a folder leads to.
fn find<'a>(tree: &'a Tree, parent: Ino, name: &OsStr) -> Result<&'a Child, FsError> {
    if name.len() > NAME_MAX {
        return Err(FsError::NameTooLong);
    }
    if tree.directory(parent).is_none() {
        return Err(if parent.is_directory() {
            FsError::Stale { ino: parent }
        } else {
            FsError::NotADirectory
        });
    }
    name.to_str().and_then(|name| tree.child(parent, name)).ok_or(FsError::NoEntry)
}

// A panic while a lock was held is a bug, but what the lock protects is still whole: each of these is held for
// updates that either happened or did not.

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
