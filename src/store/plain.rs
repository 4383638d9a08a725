//! Plain files: those of a mount that are no arrays, and are to be there again when the store is next mounted.
//!
//! Each is a file in the folder `files` of the store, named by its path in the mount and a number. What replaces
//! another file of the same path has a higher number, and gets its name before the other one loses it: so one of them
//! is there whenever the process dies. A file that an array was made of, or that is made of an array, has the version's
//! number in its name as well: it counts once the version is gone. That makes one step of two, and whoever
//! claims the folder next takes back what came of half of it.
//!
//! Only who has claimed the folder changes it.

use std::any::Any;
use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use log::warn;

use super::error::StoreError;
use super::writer::Commit;
use super::{Access, Array, Draft, Shared, Store};
use crate::format::{ArrayId, FormatError, Op, names};
use crate::sys::{FileAccess, StorageFile};

/// How often a copy of an array is made anew because the array changed meanwhile, before writers have to wait for it.
const MAX_COPIES: u32 = 3;

/// The plain files of a store, claimed. Clones are the same claim, which ends with the last of them.
#[derive(Clone)]
pub struct PlainFiles {
    folder: Arc<Folder>,
}

struct Folder {
    shared: Arc<Shared>,
    /// The number of the next file.
    next: AtomicU64,
    _claim: Box<dyn Any + Send + Sync>,
}

/// The name of a draft's file in the folder.
pub(super) struct Kept {
    folder: Arc<Folder>,
    path: String,
    name: String,
}

/// A file in the folder.
struct Found {
    path: String,
    n: u64,
    of: Option<ArrayId>,
    name: String,
}

impl Store {
    /// Whether plain files are kept in the store, or were.
    pub fn has_plain_files(&self) -> bool {
        self.shared.storage.stat(names::PLAIN_FILES).is_ok()
    }

    /// Claims the plain files of a store, in this process and among all. `None` if somebody else has them, or where they
    /// cannot be claimed.
    ///
    /// # Errors
    /// `ReadOnly`; `Io`; as [`Store::refresh`].
    pub fn claim_plain_files(&self) -> Result<Option<PlainFiles>, StoreError> {
        self.shared.check_writable()?;
        let claim = match self.shared.storage.claim_apart(names::PLAIN_FILES) {
            Ok(claim) => claim,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Unsupported => Ok(None),
                    _ => Err(failed(&self.shared, "claim", "", error)),
                };
            }
        };
        let (found, left) = self.find_plain_files()?;
        let next = found.iter().map(|found| found.n).max().map_or(1, |n| n.saturating_add(1));
        let folder = Arc::new(Folder { shared: Arc::clone(&self.shared), next: next.into(), _claim: claim });
        left.iter().for_each(|name| folder.remove(name));
        Ok(Some(PlainFiles { folder }))
    }

    /// The plain files as they are now, by their paths, to be read only.
    ///
    /// # Errors
    /// `Io`; as [`Store::refresh`].
    pub fn plain_files(&self) -> Result<Vec<(String, Draft)>, StoreError> {
        let (found, _) = self.find_plain_files()?;
        Ok(found.into_iter().filter_map(|found| self.shared.open_plain(found, None)).collect())
    }

    /// The files of the folder that count, and the names of those that do not.
    fn find_plain_files(&self) -> Result<(Vec<Found>, Vec<String>), StoreError> {
        let storage = &*self.shared.storage;
        let names = match storage.list_apart(names::PLAIN_FILES) {
            Ok(names) => names,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::Unsupported) => {
                return Ok((Vec::new(), Vec::new()));
            }
            Err(error) => return Err(failed(&self.shared, "list", "", error)),
        };
        let mut all: Vec<Found> = names
            .into_iter()
            .filter_map(|name| {
                let (path, n, of) = names::parse_plain_file(&name)?;
                Some(Found { path, n, of, name })
            })
            .collect();
        if all.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        all.sort_by(|a, b| (&a.path, b.n).cmp(&(&b.path, a.n)));
        let arrays = self.arrays()?;
        // Of a file that became an array it may be that only its old name was not taken away.
        let is_array = |found: &Found| {
            let opened = storage.open_apart(names::PLAIN_FILES, &found.name, FileAccess::Read);
            opened.and_then(|file| file.stat()).is_ok_and(|stat| {
                let is_it = |array: &Array| array.stat().is_ok_and(|other| other.is_same_file(&stat));
                stat.nlink > 1 && arrays.iter().any(is_it)
            })
        };
        // Of an array that is to become a file, but was not removed. Where it is not the file itself, a copy was made. An
        // old manifest that was put back has arrays whose data files are gone: then the copy is all there is.
        let by_id: HashMap<ArrayId, &Array> = arrays.iter().map(|array| (array.id(), array)).collect();
        let is_undone = |found: &Found| {
            let array = found.of.and_then(|of| by_id.get(&of));
            array.is_some_and(|array| {
                is_array(found) || matches!(array.backing(), Ok(None)) && array.stat().is_ok()
            })
        };
        let (mut kept, mut left) = (Vec::new(), Vec::new());
        let mut newest: Option<String> = None;
        for found in all {
            if is_undone(&found) {
                left.push(found.name);
            } else if newest.as_ref() == Some(&found.path) {
                // Replaced.
                left.push(found.name);
            } else {
                newest = Some(found.path.clone());
                if is_array(&found) { left.push(found.name) } else { kept.push(found) }
            }
        }
        Ok((kept, left))
    }
}

impl Shared {
    /// A plain file as a draft; what cannot be opened is left where it is.
    fn open_plain(self: &Arc<Self>, found: Found, folder: Option<&Arc<Folder>>) -> Option<(String, Draft)> {
        let opened = self.open_plain_file(&found.name).and_then(|file| Ok((file.stat()?.len, file)));
        let (len, file) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                warn!("{}: is not shown: {}", found.path, failed(self, "open", &found.name, error));
                return None;
            }
        };
        let mut draft = Draft::of_file(self, file, len);
        // Whoever had the version mapped that it was the file of, has so still.
        draft.is_shared = found.of.is_some();
        draft.kept = folder.map(|folder| Kept {
            folder: Arc::clone(folder),
            path: found.path.clone(),
            name: found.name,
        });
        Some((found.path, draft))
    }

    fn open_plain_file(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let open = |access| self.storage.open_apart(names::PLAIN_FILES, name, access);
        if self.access == Access::Read {
            return open(FileAccess::Read);
        }
        // One that nobody may write to can be read, and be copied.
        open(FileAccess::Write).or_else(|_| open(FileAccess::Read))
    }
}

impl PlainFiles {
    /// All of them, by their paths. Only to be called once, and before others are added.
    ///
    /// # Errors
    /// `Io`; as [`Store::refresh`].
    pub fn open_all(&self) -> Result<Vec<(String, Draft)>, StoreError> {
        let shared = &self.folder.shared;
        let (found, _) = self.folder.store().find_plain_files()?;
        Ok(found.into_iter().filter_map(|found| shared.open_plain(found, Some(&self.folder))).collect())
    }

    /// Whether a file of this path can be kept. Those of paths that are too long cannot.
    pub fn can_keep(path: &str) -> bool {
        names::plain_file(path, u64::MAX, Some(ArrayId(u64::MAX))).is_some()
    }

    /// Keeps a file under a path: it is on the disk when this returns, and there is nothing to do for it later. Returns
    /// whether the path could be kept.
    ///
    /// # Errors
    /// `Io`.
    pub fn keep(&self, path: &str, draft: &mut Draft) -> Result<bool, StoreError> {
        if draft.kept.is_some() {
            return draft.move_kept(path).map(|()| draft.kept.is_some());
        }
        let Some(name) = self.folder.new_name(path, None) else { return Ok(false) };
        let shared = &self.folder.shared;
        draft.stay_as_it_is()?;
        let linked = shared.storage.link_apart(draft.file(), names::PLAIN_FILES, &name);
        linked.map_err(|error| failed(shared, "create", &name, error))?;
        draft.kept = Some(Kept { folder: Arc::clone(&self.folder), path: path.to_owned(), name });
        Ok(true)
    }

    /// Makes a plain file of an array, in one step: its data file, or a copy if that is not the `.npy` file by itself.
    ///
    /// `commit` is given the file, and what removes the array from the store, which it is to call. Other writers wait
    /// meanwhile.
    ///
    /// # Errors
    /// What `commit` returns; `NotFound`; `Refused` for a path that is too long; `ReadOnly`; `Locked`; `DataFile`; `Io`.
    /// The array is there then, and no file.
    pub fn take_out<T, E: From<StoreError>>(
        &self,
        array: &Array,
        path: &str,
        commit: impl FnOnce(Draft, &dyn Fn() -> Result<(), StoreError>) -> Result<T, E>,
    ) -> Result<T, E> {
        let shared = &self.folder.shared;
        let store = self.folder.store();
        let mut array = array.clone();
        let mut n_copies = 0;
        let copy_of = |array: &Array| {
            let mut draft = store.begin_draft_of(array)?;
            draft.stay_as_it_is().map(|()| draft)
        };
        let (guard, copy) = loop {
            let copy = match array.backing()? {
                Some(_) => {
                    // So that nobody has to wait for it.
                    array.sync()?;
                    None
                }
                None => Some(copy_of(&array)?),
            };
            let guard = shared.lock_writers()?;
            let present = store.present(&array)?;
            let is_same = match &copy {
                None => present.backing()?.is_some(),
                Some(_) => present.is_same_state(&array),
            };
            if is_same {
                break (guard, copy);
            }
            n_copies += 1;
            if n_copies > MAX_COPIES {
                let copy = if present.backing()?.is_some() { None } else { Some(copy_of(&present)?) };
                array = present;
                break (guard, copy);
            }
            array = present;
        };
        let too_long = || {
            StoreError::from(FormatError::Name {
                name: path.to_owned(),
                what: "is too long for the path of a plain file",
            })
        };
        let name = self.folder.new_name(path, Some(array.id())).ok_or_else(too_long)?;
        let io_failed = |action, error| failed(shared, action, &name, error);
        let mut draft = match copy {
            Some(draft) => {
                let linked = shared.storage.link_apart(draft.file(), names::PLAIN_FILES, &name);
                linked.map_err(|error| io_failed("create", error))?;
                draft
            }
            None => {
                array.sync()?;
                let linked = shared.storage.keep_apart(array.file_name(), names::PLAIN_FILES, &name);
                linked.map_err(|error| io_failed("create", error))?;
                let opened = shared.open_plain_file(&name).inspect_err(|_| self.folder.remove(&name));
                let file = opened.map_err(|error| io_failed("open", error))?;
                let mut draft = Draft::of_file(shared, file, array.npy_len());
                draft.is_shared = true;
                draft
            }
        };
        draft.kept =
            Some(Kept { folder: Arc::clone(&self.folder), path: path.to_owned(), name: name.clone() });
        draft.set_compression(array.compression());
        let is_committed = Cell::new(false);
        let remove = || {
            let ops = vec![Op::Delete(Arc::clone(array.name()))];
            let removed = shared.commit(Commit { ops, ..Commit::default() });
            is_committed.set(removed.is_ok());
            removed
        };
        let result = commit(draft, &remove);
        if !is_committed.get() {
            self.folder.remove(&name);
        }
        drop(guard);
        result
    }
}

impl Folder {
    fn store(&self) -> Store {
        Store { shared: Arc::clone(&self.shared) }
    }

    /// A new name for a file of this path, unless that is too long.
    fn new_name(&self, path: &str, of: Option<ArrayId>) -> Option<String> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        names::plain_file(path, n, of).filter(|_| PlainFiles::can_keep(path))
    }

    fn remove(&self, name: &str) {
        match self.shared.storage.remove_apart(names::PLAIN_FILES, Some(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!("{}", failed(&self.shared, "remove", name, error));
            }
            _ => {}
        }
    }
}

impl Draft {
    /// Whether it is a plain file that is kept.
    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Lets a plain file that is kept be found under another path. One that is too long for that is not kept any more.
    ///
    /// # Errors
    /// `Io`; it is kept under the path that it had then.
    pub fn move_kept(&mut self, path: &str) -> Result<(), StoreError> {
        let Some(kept) = &mut self.kept else { return Ok(()) };
        if kept.path == path {
            return Ok(());
        }
        let of = names::parse_plain_file(&kept.name).and_then(|(_, _, of)| of);
        let Some(name) = kept.folder.new_name(path, of) else {
            warn!("{path}: is too long to be kept when the mount ends");
            return Ok(());
        };
        let renamed = kept.folder.shared.storage.rename_apart(names::PLAIN_FILES, &kept.name, &name);
        renamed.map_err(|error| failed(&kept.folder.shared, "rename", &kept.name, error))?;
        (kept.path, kept.name) = (path.to_owned(), name);
        Ok(())
    }

    /// Keeps a plain file no longer.
    pub fn forget(&mut self) {
        if let Some(kept) = self.kept.take() {
            kept.folder.remove(&kept.name);
        }
    }

    /// Comes before each change of the contents: a file that somebody may have mapped as an array stays as it is, and a
    /// copy takes its place.
    pub(super) fn own(&mut self) -> Result<(), StoreError> {
        if !self.is_shared {
            return Ok(());
        }
        let file = self.copied()?;
        if let Some(kept) = self.kept.take() {
            let linked = match kept.folder.new_name(&kept.path, None) {
                Some(name) => {
                    let linked = self.shared.storage.link_apart(&file, names::PLAIN_FILES, &name);
                    linked.map(|()| name).map_err(|error| failed(&self.shared, "create", &kept.name, error))
                }
                None => Ok(kept.name.clone()),
            };
            let name = match linked {
                Ok(name) => name,
                Err(error) => {
                    self.kept = Some(kept);
                    return Err(error);
                }
            };
            kept.folder.remove(&kept.name);
            self.kept = Some(Kept { name, ..kept });
        }
        self.replace_file(file);
        self.is_shared = false;
        Ok(())
    }
}

fn failed(shared: &Shared, action: &'static str, name: &str, source: io::Error) -> StoreError {
    StoreError::io(action, &shared.storage.path().join(names::PLAIN_FILES), name, source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_the_plain_files() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("data.npk");
        let store = Store::create(&path).expect("creates");
        assert!(!store.has_plain_files());
        let claim = store.claim_plain_files().expect("claims").expect("nobody has them");
        assert!(store.has_plain_files());
        let other = Store::open(&path, Access::Write).expect("opens");
        assert!(other.claim_plain_files().expect("looks").is_none());
        let again = claim.clone();
        drop(claim);
        assert!(other.claim_plain_files().expect("looks").is_none());
        drop(again);
        assert!(other.claim_plain_files().expect("claims").is_some());
    }

    #[test]
    fn of_two_files_of_a_path_the_later_counts() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::create(&dir.path().join("data.npk")).expect("creates");
        let plain = store.claim_plain_files().expect("claims").expect("nobody has them");
        for text in ["old", "new"] {
            let mut draft = store.begin_draft(None).expect("begins");
            draft.write_at(0, text.as_bytes()).expect("writes");
            assert!(plain.keep("g/a.txt", &mut draft).expect("keeps"));
        }
        drop(plain);
        let shown = store.plain_files().expect("lists");
        assert_eq!(shown.len(), 1);
        let mut bytes = [0; 3];
        assert_eq!(shown[0].1.read_at(0, &mut bytes).expect("reads"), 3);
        assert_eq!((&*shown[0].0, &bytes), ("g/a.txt", b"new"));
        let plain = store.claim_plain_files().expect("claims").expect("nobody has them");
        let names = store.shared.storage.list_apart(names::PLAIN_FILES).expect("lists");
        assert_eq!(names, ["g%2Fa.txt~2"]);
        let mut opened = plain.open_all().expect("opens");
        opened[0].1.forget();
        assert!(store.plain_files().expect("lists").is_empty());
    }
}
