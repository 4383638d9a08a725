//! A directory in memory that knows which of its bytes and names are on the disk.
//!
//! Every change is kept in a journal until the file or the directory is synced. [`MemStorage::after_power_loss`]
//! then decides for each change whether it had reached the disk, as the page cache and a journaling file system may:
//! names change in the order of the calls, pages of files in any order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use numpack::sys::{FileAccess, FileStat, FsStat, LockGuard, Map, Storage, StorageFile};

const PAGE_LEN: u64 = 4096;

/// A [`Storage`] in memory. Clones share everything, like two processes on one directory.
#[derive(Clone)]
pub struct MemStorage(Arc<Shared>);

struct Shared {
    names: Mutex<Names>,
    next_ino: AtomicU64,
    can_punch: bool,
    locked: Mutex<HashSet<String>>,
    unlocked: Condvar,
}

#[derive(Default)]
struct Names {
    now: BTreeMap<String, Arc<Inode>>,
    durable: BTreeMap<String, Arc<Inode>>,
    /// Changes since the last sync; each is atomic.
    journal: Vec<NameEdit>,
}

type NameEdit = Vec<(String, Option<Arc<Inode>>)>;

struct Inode {
    ino: u64,
    bytes: Mutex<Bytes>,
}

struct Bytes {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Changes since the last sync.
    journal: Vec<ByteEdit>,
    atime: SystemTime,
    mtime: SystemTime,
    mode: u32,
}

enum ByteEdit {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
    Punch { offset: u64, len: u64 },
}

impl MemStorage {
    pub fn new() -> Self {
        Self::with(BTreeMap::new(), 1, true)
    }

    /// One that cannot give space back from the middle of a file.
    pub fn without_punch() -> Self {
        Self::with(BTreeMap::new(), 1, false)
    }

    fn with(files: BTreeMap<String, Arc<Inode>>, next_ino: u64, can_punch: bool) -> Self {
        MemStorage(Arc::new(Shared {
            names: Mutex::new(Names { durable: files.clone(), now: files, journal: Vec::new() }),
            next_ino: AtomicU64::new(next_ino),
            can_punch,
            locked: Mutex::default(),
            unlocked: Condvar::new(),
        }))
    }

    /// What a new process finds after all others were killed: everything that was written, and no locks.
    pub fn after_kill(&self) -> MemStorage {
        self.copy(&self.names().now, &mut |bytes| bytes.now.clone())
    }

    /// What a new process finds after a power loss. What was synced is there; `survives` is asked for each later
    /// change. A page keeps a first part of its changes, and so does the directory.
    ///
    /// `|| false` forgets all that was not synced.
    pub fn after_power_loss(&self, survives: &mut dyn FnMut() -> bool) -> MemStorage {
        let names = self.names();
        let mut files = names.durable.clone();
        for edit in names.journal.iter().take_while(|_| survives()) {
            apply_names(&mut files, edit);
        }
        self.copy(&files, &mut |bytes| surviving_bytes(bytes, survives))
    }

    fn copy(
        &self,
        files: &BTreeMap<String, Arc<Inode>>,
        contents: &mut dyn FnMut(&Bytes) -> Vec<u8>,
    ) -> MemStorage {
        let mut copies: HashMap<u64, Arc<Inode>> = HashMap::new(); // hard links stay hard links
        let mut copied = BTreeMap::new();
        for (name, inode) in files {
            let copy = copies.entry(inode.ino).or_insert_with(|| {
                let bytes = inode.bytes();
                Inode::new(inode.ino, contents(&bytes), bytes.mtime)
            });
            copied.insert(name.clone(), Arc::clone(copy));
        }
        MemStorage::with(copied, self.0.next_ino.load(Ordering::Relaxed), self.0.can_punch)
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.names.lock().expect("no panic while it is locked")
    }

    fn file(&self, inode: &Arc<Inode>, access: FileAccess) -> Arc<dyn StorageFile> {
        Arc::new(MemFile { storage: self.clone(), inode: Arc::clone(inode), access })
    }
}

impl Default for MemStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.names();
        f.debug_map().entries(names.now.iter().map(|(name, inode)| (name, inode.bytes().now.len()))).finish()
    }
}

impl Names {
    fn edit(&mut self, edit: NameEdit) {
        apply_names(&mut self.now, &edit);
        self.journal.push(edit);
    }

    fn get(&self, name: &str) -> io::Result<&Arc<Inode>> {
        check_name(name)?;
        self.now.get(name).ok_or_else(|| errno(libc::ENOENT))
    }
}

impl Inode {
    fn new(ino: u64, contents: Vec<u8>, mtime: SystemTime) -> Arc<Inode> {
        let bytes = Bytes {
            durable: contents.clone(),
            now: contents,
            journal: Vec::new(),
            atime: mtime,
            mtime,
            mode: 0o644,
        };
        Arc::new(Inode { ino, bytes: Mutex::new(bytes) })
    }

    fn bytes(&self) -> MutexGuard<'_, Bytes> {
        self.bytes.lock().expect("no panic while it is locked")
    }
}

fn apply_names(files: &mut BTreeMap<String, Arc<Inode>>, edit: &NameEdit) {
    for (name, inode) in edit {
        match inode {
            Some(inode) => files.insert(name.clone(), Arc::clone(inode)),
            None => files.remove(name),
        };
    }
}

fn write_bytes(contents: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let start = usize::try_from(offset).expect("tests write small files");
    let end = start + data.len();
    if contents.len() < end {
        contents.resize(end, 0);
    }
    contents[start..end].copy_from_slice(data);
}

fn punch_bytes(contents: &mut [u8], offset: u64, len: u64) {
    let file_len = contents.len() as u64;
    let (start, end) = (offset.min(file_len), offset.saturating_add(len).min(file_len));
    contents[start as usize..end as usize].fill(0);
}

/// Calls `f` with the offset and length of the part of each page within `len` bytes from `offset` on.
fn for_each_page(offset: u64, len: u64, mut f: impl FnMut(u64, u64)) {
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let in_page = (PAGE_LEN - at % PAGE_LEN).min(end - at);
        f(at, in_page);
        at += in_page;
    }
}

fn surviving_bytes(bytes: &Bytes, survives: &mut dyn FnMut() -> bool) -> Vec<u8> {
    let mut contents = bytes.durable.clone();
    let mut lost_pages = HashSet::new();
    let mut is_there = |at: Option<u64>| {
        let page = at.map(|at| at / PAGE_LEN);
        let is_lost = page.is_some_and(|page| lost_pages.contains(&page)) || !survives();
        lost_pages.extend(page.filter(|_| is_lost));
        !is_lost
    };
    for edit in &bytes.journal {
        match edit {
            ByteEdit::SetLen(len) => {
                if is_there(None) {
                    contents.resize(usize::try_from(*len).expect("tests write small files"), 0);
                }
            }
            ByteEdit::Write { offset, data } => for_each_page(*offset, data.len() as u64, |at, len| {
                if is_there(Some(at)) {
                    let start = (at - offset) as usize;
                    write_bytes(&mut contents, at, &data[start..start + len as usize]);
                }
            }),
            ByteEdit::Punch { offset, len } => for_each_page(*offset, *len, |at, len| {
                if is_there(Some(at)) {
                    punch_bytes(&mut contents, at, len);
                }
            }),
        }
    }
    contents
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

fn check_name(name: &str) -> io::Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(())
}

fn own_file(file: &Arc<dyn StorageFile>) -> &MemFile {
    let any: &dyn std::any::Any = &**file;
    any.downcast_ref().expect("a file of a MemStorage")
}

impl Storage for MemStorage {
    fn open(&self, name: &str, access: FileAccess) -> io::Result<Arc<dyn StorageFile>> {
        Ok(self.file(self.names().get(name)?, access))
    }

    fn create_unnamed(&self) -> io::Result<Arc<dyn StorageFile>> {
        let ino = self.0.next_ino.fetch_add(1, Ordering::Relaxed);
        Ok(self.file(&Inode::new(ino, Vec::new(), SystemTime::now()), FileAccess::Write))
    }

    fn link(&self, file: &Arc<dyn StorageFile>, name: &str) -> io::Result<()> {
        check_name(name)?;
        let mut names = self.names();
        if names.now.contains_key(name) {
            return Err(errno(libc::EEXIST));
        }
        names.edit(vec![(name.to_owned(), Some(Arc::clone(&own_file(file).inode)))]);
        Ok(())
    }

    /// Names in folders have the folder before them, and are on the disk at once.
    fn keep_apart(&self, from: &str, folder: &str, name: &str) -> io::Result<()> {
        check_name(folder)?;
        check_name(name)?;
        let mut names = self.names();
        let inode = Arc::clone(names.get(from)?);
        let path = format!("{folder}/{name}");
        if names.now.contains_key(&path) {
            return Err(errno(libc::EEXIST));
        }
        names.now.insert(path.clone(), Arc::clone(&inode));
        names.durable.insert(path, inode);
        Ok(())
    }

    fn open_apart(&self, folder: &str, name: &str, access: FileAccess) -> io::Result<Arc<dyn StorageFile>> {
        let path = format!("{folder}/{name}");
        let inode = self.names().now.get(&path).cloned().ok_or_else(|| errno(libc::ENOENT))?;
        Ok(self.file(&inode, access))
    }

    fn link_existing(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(to)?;
        let mut names = self.names();
        let inode = Arc::clone(names.get(from)?);
        names.edit(vec![(to.to_owned(), Some(inode))]);
        Ok(())
    }

    fn replace(&self, file: &Arc<dyn StorageFile>, name: &str) -> io::Result<()> {
        check_name(name)?;
        self.names().edit(vec![(name.to_owned(), Some(Arc::clone(&own_file(file).inode)))]);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(to)?;
        let mut names = self.names();
        let inode = Arc::clone(names.get(from)?);
        // rename(2) does nothing between two names of one file.
        if !names.now.get(to).is_some_and(|replaced| Arc::ptr_eq(replaced, &inode)) {
            names.edit(vec![(from.to_owned(), None), (to.to_owned(), Some(inode))]);
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut names = self.names();
        names.get(name)?;
        names.edit(vec![(name.to_owned(), None)]);
        Ok(())
    }

    fn stat(&self, name: &str) -> io::Result<FileStat> {
        let file = self.open(name, FileAccess::Read)?;
        file.stat()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names().now.keys().filter(|name| !name.contains('/')).cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut names = self.names();
        let Names { durable, journal, .. } = &mut *names;
        for edit in journal.drain(..) {
            apply_names(durable, &edit);
        }
        Ok(())
    }

    fn lock(&self, name: &str, timeout: Duration) -> io::Result<Box<dyn LockGuard>> {
        check_name(name)?;
        let locked = self.0.locked.lock().expect("no panic while it is locked");
        let (mut locked, _) = self
            .0
            .unlocked
            .wait_timeout_while(locked, timeout, |locked| locked.contains(name))
            .expect("no panic while it is locked");
        if !locked.insert(name.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        drop(locked);
        if self.names().get(name).is_err() {
            let file = self.create_unnamed()?;
            self.link(&file, name)?;
        }
        Ok(Box::new(MemGuard { storage: self.clone(), name: name.to_owned() }))
    }

    fn sweep_temporaries(&self) -> io::Result<usize> {
        Ok(0) // unnamed files have no name here
    }

    fn watch(&self, _name: &str) -> io::Result<Box<dyn LockGuard>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn stat_dir(&self) -> io::Result<FileStat> {
        // Nobody looks closely.
        self.create_unnamed()?.stat()
    }

    fn stat_fs(&self) -> io::Result<FsStat> {
        Ok(FsStat::default())
    }

    fn path(&self) -> &Path {
        Path::new("memory")
    }
}

struct MemGuard {
    storage: MemStorage,
    name: String,
}

impl LockGuard for MemGuard {
    fn is_current(&self) -> io::Result<bool> {
        Ok(true) // the lock belongs to the name
    }

    fn is_watched(&self) -> bool {
        false
    }
}

impl Drop for MemGuard {
    fn drop(&mut self) {
        self.storage.0.locked.lock().expect("no panic while it is locked").remove(&self.name);
        self.storage.0.unlocked.notify_all();
    }
}

struct MemFile {
    storage: MemStorage,
    inode: Arc<Inode>,
    access: FileAccess,
}

impl fmt::Debug for MemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemFile").field("ino", &self.inode.ino).field("access", &self.access).finish()
    }
}

impl MemFile {
    fn bytes_to_change(&self) -> io::Result<MutexGuard<'_, Bytes>> {
        if self.access == FileAccess::Read {
            return Err(errno(libc::EBADF));
        }
        let mut bytes = self.inode.bytes();
        bytes.mtime = SystemTime::now();
        Ok(bytes)
    }
}

impl StorageFile for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.inode.bytes();
        let start = usize::try_from(offset).map_or(bytes.now.len(), |start| start.min(bytes.now.len()));
        let n = buf.len().min(bytes.now.len() - start);
        buf[..n].copy_from_slice(&bytes.now[start..start + n]);
        Ok(n)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = self.bytes_to_change()?;
        if !data.is_empty() {
            write_bytes(&mut bytes.now, offset, data);
            bytes.journal.push(ByteEdit::Write { offset, data: data.to_vec() });
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut bytes = self.bytes_to_change()?;
        bytes.now.resize(usize::try_from(len).expect("tests write small files"), 0);
        bytes.journal.push(ByteEdit::SetLen(len));
        Ok(())
    }

    fn reserve(&self, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        if !self.storage.0.can_punch {
            return Ok(false);
        }
        let mut bytes = self.bytes_to_change()?;
        let len = len.min((bytes.now.len() as u64).saturating_sub(offset));
        punch_bytes(&mut bytes.now, offset, len);
        bytes.journal.push(ByteEdit::Punch { offset, len });
        Ok(true)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut bytes = self.inode.bytes();
        bytes.durable = surviving_bytes(&bytes, &mut || true);
        bytes.journal.clear();
        Ok(())
    }

    fn stat(&self) -> io::Result<FileStat> {
        let nlink = self.storage.names().now.values().filter(|inode| Arc::ptr_eq(inode, &self.inode)).count();
        let bytes = self.inode.bytes();
        let len = bytes.now.len() as u64;
        Ok(FileStat {
            ino: self.inode.ino,
            dev: 1,
            len,
            allocated: len.next_multiple_of(PAGE_LEN),
            atime: bytes.atime,
            mtime: bytes.mtime,
            ctime: bytes.mtime,
            mode: libc::S_IFREG | bytes.mode,
            uid: 0,
            gid: 0,
            nlink: nlink as u64,
        })
    }

    fn set_times(&self, atime: Option<SystemTime>, mtime: Option<SystemTime>) -> io::Result<()> {
        let mut bytes = self.inode.bytes();
        bytes.atime = atime.unwrap_or(bytes.atime);
        bytes.mtime = mtime.unwrap_or(bytes.mtime);
        Ok(())
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.inode.bytes().mode = mode;
        Ok(())
    }

    /// A copy: it does not show later writes.
    fn map(&self, offset: u64, len: usize) -> io::Result<Map> {
        let bytes = self.inode.bytes();
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| bytes.now.get(start..start.checked_add(len)?));
        Ok(Map::from(range.ok_or(io::ErrorKind::UnexpectedEof)?.to_vec()))
    }

    fn copy_from(&self, src: BorrowedFd<'_>, src_offset: u64, dst_offset: u64, len: u64) -> io::Result<u64> {
        let src = File::from(src.try_clone_to_owned()?);
        let mut data = vec![0; usize::try_from(len).expect("tests write small files")];
        let mut n = 0;
        while n < data.len() {
            match src.read_at(&mut data[n..], src_offset + n as u64)? {
                0 => break,
                read => n += read,
            }
        }
        self.write_at(&data[..n], dst_offset)?;
        Ok(n as u64)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
