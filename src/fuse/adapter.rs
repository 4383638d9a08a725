//! The kernel's requests: unpacked, handed to [`Fs`], answered. No rules live here.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use log::debug;

use super::convert::{empty, errno, fh, file_attr, file_type, ino, pending_flags, perm, xattr};
use super::decoded::{Opener, Opening};
use super::notify::Job;
use super::passthrough::Passthrough;
use super::views;
use super::worker::{Tasks, WaitingWrite, WriteAt, must_wait, waiting};
use crate::fs::{
    Attr, BLKSIZE, Caller, Fh, Fs, FsError, Ino, NAME_MAX, NewFile, OpenFlags, Rename, SetAttr, SetMode,
    Written,
};

/// How long the kernel may use names and attributes without asking. Commits are told to it as they are seen, so this
/// bounds only what is not told: times after writes to a mapping, and commits that inotify does not see.
const TTL: Duration = Duration::from_secs(1);

/// Largest write in one request: what the kernel allows at most by default. Reads are shorter, see `device`.
const MAX_REQUEST_LEN: u32 = 1 << 20;

/// Background requests, mostly readahead, that the kernel sends before it waits for answers.
const MAX_BACKGROUND: u16 = 64;

/// Inode numbers are never reused for something else, so their generation stays 0.
const GENERATION: Generation = Generation(0);

/// The file system that fuser drives.
pub(super) struct Adapter {
    pub(super) fs: Arc<Fs>,
    pub(super) passthrough: Arc<Passthrough>,
    pub(super) opener: Arc<Opener>,
    pub(super) jobs: Sender<Job>,
    pub(super) tasks: Tasks,
}

impl Adapter {
    /// How long attributes may be used. Those of a file that the kernel reads by itself not at all: its header may
    /// have grown already, and its length must not be behind.
    fn attr_ttl(&self, ino: Ino) -> Duration {
        // Those of a view never change.
        if ino.viewed().is_some() || self.passthrough.is_backed(ino) { Duration::ZERO } else { TTL }
    }

    /// How long a name may be used. Those of pending files not at all: they lead elsewhere once that is an array. Nor
    /// those of views, which lead elsewhere after each change.
    fn entry_ttl(ino: Ino) -> Duration {
        if ino.is_pending() || ino.is_view() || ino.viewed().is_some() { Duration::ZERO } else { TTL }
    }

    fn answer_attr(&self, reply: ReplyAttr, result: Result<Attr, FsError>) {
        match result {
            Ok(attr) => reply.attr(&self.attr_ttl(attr.ino), &file_attr(&attr)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    /// Sets the length of an array. Whoever looks the name up next finds that length: the kernel is told before it is
    /// answered. What else it is told may have to wait for the answer, because it writes no pages back until then.
    fn set_len(&self, ino: Ino, handle: Option<Fh>, set: SetAttr, reply: ReplyAttr) {
        let opener = Arc::clone(&self.opener);
        self.tasks.hand_over(move || {
            let sized = waiting(&opener, || opener.fs.setattr_of(ino, set, handle));
            if sized.is_ok() && !opener.fs.is_led_to(ino) {
                opener.drop_name(ino);
            }
            match sized {
                Ok(attr) => reply.attr(&Duration::ZERO, &file_attr(&attr)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    /// What a refused attempt to make something is answered with.
    fn refuse_new(&self, parent: INodeNo) -> Errno {
        let is_read_only = self.fs.is_read_only() || ino(parent).viewed().is_some();
        if is_read_only { Errno::EROFS } else { Errno::EPERM }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            // Pages are dropped when we say so, not whenever a time or length differs.
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            // To empty a file is to make a new version, not to change the one that others have open.
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            // Files have no set-user-id bits to be taken away by writing, nor capabilities: the kernel then remembers that,
            // and does not ask for an attribute before each write, which made one of 4 KiB take 1.4 times as long.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
        ];
        for capability in wanted {
            if config.add_capabilities(capability).is_err() {
                debug!("the kernel does not offer {capability:?}");
            }
        }
        match config.add_capabilities(InitFlags::FUSE_PASSTHROUGH) {
            // 2, so that the store may be on an overlay.
            Ok(()) => drop(config.set_max_stack_depth(2)),
            Err(_) => self.passthrough.turn_off(&"the kernel does not offer it"),
        }
        for result in [config.set_max_write(MAX_REQUEST_LEN), config.set_max_readahead(MAX_REQUEST_LEN)] {
            if let Err(nearest) = result {
                debug!("the kernel allows requests of {nearest} bytes");
            }
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.fs.lookup(ino(parent), name, Caller(req.pid())) {
            Ok(attr) => {
                let entry_ttl = Self::entry_ttl(attr.ino);
                reply.entry_with_ttls(&self.attr_ttl(attr.ino), &entry_ttl, &file_attr(&attr), GENERATION);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn forget(&self, _req: &Request, node: INodeNo, nlookup: u64) {
        self.fs.forget(ino(node), nlookup);
    }

    fn getattr(&self, _req: &Request, node: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.answer_attr(reply, self.fs.getattr(ino(node)));
    }

    fn setattr(
        &self,
        _req: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let time = |time| match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => SystemTime::now(),
        };
        let set =
            SetAttr { perm: mode.map(perm), uid, gid, size, atime: atime.map(time), mtime: mtime.map(time) };
        if set.size.is_some() && !ino(node).is_pending() {
            return self.set_len(ino(node), handle.map(fh), set, reply);
        }
        match self.fs.setattr(ino(node), set) {
            Err(error) if must_wait(&error) => {
                let (opener, ino) = (Arc::clone(&self.opener), ino(node));
                self.tasks.hand_over(move || match waiting(&opener, || opener.fs.setattr(ino, set)) {
                    Ok(attr) => reply.attr(&Duration::ZERO, &file_attr(&attr)),
                    Err(error) => reply.error(errno(&error)),
                });
            }
            result => self.answer_attr(reply, result),
        }
    }

    fn mknod(
        &self,
        _req: &Request,
        parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(self.refuse_new(parent));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let (uid, gid) = (Some(req.uid()), Some(req.gid()));
        let set = SetAttr { perm: Some(perm(mode)), uid, gid, ..SetAttr::default() };
        match self.fs.mkdir(ino(parent), name, set) {
            Ok(attr) => reply.entry(&TTL, &file_attr(&attr), GENERATION),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn symlink(&self, _req: &Request, parent: INodeNo, _name: &OsStr, _target: &Path, reply: ReplyEntry) {
        reply.error(self.refuse_new(parent));
    }

    fn link(&self, _req: &Request, _node: INodeNo, parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        reply.error(self.refuse_new(parent));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let mode_of_access = fuser::OpenFlags(flags).acc_mode();
        let new = NewFile {
            write: mode_of_access != OpenAccMode::O_RDONLY,
            truncate: flags & libc::O_TRUNC != 0,
            exclusive: flags & libc::O_EXCL != 0,
            // The kernel has taken the caller's umask away.
            perm: Some(perm(mode)),
            owner: Some((req.uid(), req.gid())),
        };
        match self.fs.create(ino(parent), name, new, Caller(req.pid())) {
            Ok((attr, fh)) => {
                let fh = FileHandle(fh.0);
                let flags = pending_flags(mode_of_access);
                reply.created(&Duration::ZERO, &file_attr(&attr), GENERATION, fh, flags);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.fs.unlink_other(ino(parent), name) {
            Ok(false) => {}
            Ok(true) => return reply.ok(),
            Err(error) => return reply.error(errno(&error)),
        }
        let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
        self.tasks.hand_over_names(move || empty(reply, fs.unlink(ino(parent), &name)));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.fs.rmdir(ino(parent), name));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let how = if flags.is_empty() {
            Rename::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            Rename::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            Rename::Exchange
        } else {
            reply.error(Errno::EINVAL);
            return;
        };
        let (fs, name, newname) = (Arc::clone(&self.fs), name.to_owned(), newname.to_owned());
        self.tasks.hand_over_names(move || {
            empty(reply, fs.rename(ino(parent), &name, ino(newparent), &newname, how));
        });
    }

    fn open(&self, req: &Request, node: INodeNo, flags: fuser::OpenFlags, reply: ReplyOpen) {
        let mode_of_access = flags.acc_mode();
        let write = mode_of_access != OpenAccMode::O_RDONLY;
        let ino = ino(node);
        let flags = OpenFlags { write, truncate: flags.0 & libc::O_TRUNC != 0 };
        if ino.is_pending() {
            match self.fs.open_pending(ino, flags, Caller(req.pid())) {
                Ok(fh) => reply.opened(FileHandle(fh.0), pending_flags(mode_of_access)),
                Err(error) => reply.error(errno(&error)),
            }
            return;
        }
        if ino.is_view() {
            return views::open(self, ino, flags, Caller(req.pid()), reply);
        }
        let opened = match self.fs.open(ino, flags, Caller(req.pid())) {
            Ok(opened) => opened,
            Err(error) => return reply.error(errno(&error)),
        };
        if opened.wants_mending {
            let (fs, array) = (Arc::clone(&self.fs), opened.array.clone());
            self.tasks.hand_over(move || fs.mend(&array));
        }
        self.opener.open(Opening { node, caller: Caller(req.pid()), write, opened, reply });
    }

    fn read(
        &self,
        _req: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: fuser::OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if ino(node).is_view() {
            return views::read(self, fh(handle), offset, size, reply);
        }
        // Reads come for a program, with an owner, or for the page cache. Of a file that is passed through the kernel uses
        // that for sendfile and its like from a descriptor open for writing, and nobody would drop the pages when a mapping
        // changes the data file: refused, so that programs go on with read.
        if lock_owner.is_none() && self.passthrough.is_backed(ino(node)) {
            return reply.error(Errno::EINVAL);
        }
        let mut reply = Some(reply);
        let result = self.fs.read(fh(handle), offset, size, |bytes| {
            self.opener.decoded.note_read(ino(node), bytes.len() as u64);
            if let Some(reply) = reply.take() {
                reply.data(bytes);
            }
        });
        if let (Err(error), Some(reply)) = (result, reply) {
            reply.error(errno(&error));
        }
    }

    fn write(
        &self,
        _req: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: fuser::OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let from_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        // The kernel may know a length that is not the last one any more.
        let appends = flags.0 & libc::O_APPEND != 0 && !from_cache && !ino(node).is_pending();
        let at = if appends { WriteAt::End } else { WriteAt::Offset { offset, from_cache } };
        let mut reply = Some(reply);
        let result = if ino(node).is_pending() {
            let answer = || {
                if let Some(reply) = reply.take() {
                    reply.written(len);
                }
            };
            self.fs.write_answering(fh(handle), offset, data, from_cache, answer)
        } else {
            self.opener.write(ino(node), fh(handle), at, data)
        };
        let Some(reply) = reply else { return };
        match result {
            Ok(written) => {
                match written {
                    Written::Done => {}
                    Written::First => drop(self.jobs.send(Job::Written)),
                    Written::Much => {
                        let fs = Arc::clone(&self.fs);
                        self.tasks.hand_over(move || fs.commit_due());
                    }
                }
                reply.written(len);
            }
            Err(error) if must_wait(&error) => {
                let (opener, fh, data) = (Arc::clone(&self.opener), fh(handle), data.to_vec());
                let write = WaitingWrite { opener, ino: ino(node), fh, at, data, reply };
                self.tasks.hand_over(move || write.finish(len));
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn flush(&self, _req: &Request, node: INodeNo, handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        match self.fs.flush(fh(handle)) {
            Ok(false) if self.fs.is_uncommitted(fh(handle)) => {
                let fs = Arc::clone(&self.fs);
                self.tasks.hand_over(move || empty(reply, fs.commit(ino(node))));
            }
            Ok(false) => reply.ok(),
            Ok(true) => {
                let fs = Arc::clone(&self.fs);
                self.tasks.hand_over_names(move || empty(reply, fs.finish(fh(handle))));
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn release(
        &self,
        _req: &Request,
        node: INodeNo,
        handle: FileHandle,
        _flags: fuser::OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.opener.closed(ino(node));
        let is_uncommitted = self.fs.is_uncommitted(fh(handle));
        if let Some(closed) = self.fs.release(fh(handle)) {
            let fs = Arc::clone(&self.fs);
            self.tasks.hand_over_names(move || fs.finish_closed(closed));
        }
        if is_uncommitted {
            let fs = Arc::clone(&self.fs);
            self.tasks.hand_over(move || fs.commit_closed(ino(node)));
        }
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _node: INodeNo, handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let fs = Arc::clone(&self.fs);
        self.tasks.hand_over(move || empty(reply, fs.fsync(fh(handle))));
    }

    fn opendir(&self, _req: &Request, node: INodeNo, _flags: fuser::OpenFlags, reply: ReplyOpen) {
        match self.fs.opendir(ino(node)) {
            Ok(fh) => reply.opened(FileHandle(fh.0), FopenFlags::empty()),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let result = self.fs.readdir(fh(handle), offset, |next, entry| {
            !reply.add(INodeNo(entry.ino.0), next, file_type(entry.kind), &*entry.name)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let result = self.fs.readdirplus(ino(node), fh(handle), offset, |next, entry, attr| {
            let ttl = self.attr_ttl(attr.ino).min(Self::entry_ttl(attr.ino));
            !reply.add(INodeNo(attr.ino.0), next, &*entry.name, &ttl, &file_attr(attr), GENERATION)
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: fuser::OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.fs.releasedir(fh(handle));
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _node: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let fs = Arc::clone(&self.fs);
        self.tasks.hand_over_names(move || empty(reply, fs.fsyncdir()));
    }

    fn statfs(&self, _req: &Request, _node: INodeNo, reply: ReplyStatfs) {
        match self.fs.statfs() {
            Ok(stat) => {
                let block_len = u32::try_from(stat.block_len).unwrap_or(BLKSIZE);
                let name_max = u32::try_from(NAME_MAX).unwrap_or(u32::MAX);
                reply.statfs(
                    stat.blocks,
                    stat.blocks_free,
                    stat.blocks_available,
                    stat.files,
                    stat.files_free,
                    block_len,
                    name_max,
                    block_len,
                );
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let extend = match mode {
            0 => true,
            libc::FALLOC_FL_KEEP_SIZE => false,
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        match self.fs.fallocate(fh(handle), offset, length, extend) {
            Err(error) if must_wait(&error) => {
                let opener = Arc::clone(&self.opener);
                self.tasks.hand_over(move || {
                    let reserve = || opener.fs.fallocate(fh(handle), offset, length, extend);
                    empty(reply, waiting(&opener, reserve));
                });
            }
            result => empty(reply, result),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            libc::XATTR_CREATE => SetMode::Create,
            libc::XATTR_REPLACE => SetMode::Replace,
            _ => SetMode::Any,
        };
        let (fs, name, value) = (Arc::clone(&self.fs), name.to_owned(), value.to_owned());
        self.tasks.hand_over_names(move || empty(reply, fs.setxattr(ino(node), &name, &value, mode)));
    }

    fn getxattr(&self, _req: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        xattr(reply, size, self.fs.getxattr(ino(node), name));
    }

    fn listxattr(&self, _req: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        xattr(reply, size, self.fs.listxattr(ino(node)));
    }

    fn removexattr(&self, _req: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name) = (Arc::clone(&self.fs), name.to_owned());
        self.tasks.hand_over_names(move || empty(reply, fs.removexattr(ino(node), &name)));
    }

    // ENOSYS below is meant: the kernel then does these by itself, or refuses them, without asking again.

    fn lseek(
        &self,
        _req: &Request,
        _node: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _node_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _node_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _node: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
