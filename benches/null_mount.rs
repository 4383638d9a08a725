//! A mount that answers reads with zeros that it has ready: what any FUSE server could reach at best. The benchmark
//! of mounted arrays (`mounts.py`) compares with it.
//!
//!     null_mount MOUNTPOINT FILE.npy...
//!
//! Each file is there under its own name, with its length and its header, and with zeros for elements. The kernel is
//! asked for what `src/fuse` asks for, and as many threads answer. Serves until somebody unmounts.

use std::collections::HashMap;
use std::env;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    Request,
};

// As in src/fuse.
const THREADS: usize = 2;
const MAX_REQUEST_LEN: u32 = 1 << 20;
const MAX_READ_LEN: u32 = 256 << 10;
const MAX_BACKGROUND: u16 = 64;
const TTL: Duration = Duration::from_secs(1);

/// No .npy header of the benchmark is longer.
const MAX_HEADER_LEN: usize = 4096;

struct Zeros {
    files: Vec<ZeroFile>,
    names: HashMap<OsString, usize>,
    zeros: Vec<u8>,
}

/// A file, whose inode number is its place in the list after [`INodeNo::ROOT`].
struct ZeroFile {
    len: u64,
    /// The header, and zeros for the rest of the longest answer that starts in it.
    head: Vec<u8>,
}

impl ZeroFile {
    fn like(path: &PathBuf) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut prefix = [0; 10];
        file.read_exact(&mut prefix)?;
        // Version 1.0 of the format: magic, version, and the length of what follows.
        let header_len = prefix.len() + usize::from(u16::from_le_bytes([prefix[8], prefix[9]]));
        if &prefix[..8] != b"\x93NUMPY\x01\x00" || header_len > MAX_HEADER_LEN {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not an .npy file of version 1.0"));
        }
        let mut head = vec![0; MAX_HEADER_LEN + MAX_REQUEST_LEN as usize];
        head[..prefix.len()].copy_from_slice(&prefix);
        file.read_exact(&mut head[prefix.len()..header_len])?;
        Ok(Self { len: file.metadata()?.len(), head })
    }
}

impl Zeros {
    fn file(&self, ino: INodeNo) -> Option<&ZeroFile> {
        let place = ino.0.checked_sub(INodeNo::ROOT.0 + 1)?;
        self.files.get(usize::try_from(place).ok()?)
    }

    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match self.file(ino) {
            Some(file) => (FileType::RegularFile, 0o444, file.len),
            None if ino == INodeNo::ROOT => (FileType::Directory, 0o555, 0),
            None => return None,
        };
        let time = SystemTime::UNIX_EPOCH;
        Some(FileAttr {
            ino,
            size,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Zeros {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in [
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ] {
            let _ = config.add_capabilities(capability);
        }
        // Where the kernel allows less, it is as much as it allows.
        let _ = config.set_max_write(MAX_REQUEST_LEN);
        let _ = config.set_max_readahead(MAX_REQUEST_LEN);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ino = self.names.get(name).map(|place| INodeNo(INodeNo::ROOT.0 + 1 + *place as u64));
        match ino.and_then(|ino| self.attr(ino)) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(file) = self.file(ino) else { return reply.error(Errno::ENOENT) };
        let wanted = u64::from(size.min(MAX_REQUEST_LEN)).min(file.len.saturating_sub(offset));
        let wanted = usize::try_from(wanted).unwrap_or_default();
        match usize::try_from(offset) {
            Ok(start) if start < MAX_HEADER_LEN => reply.data(&file.head[start..start + wanted]),
            _ => reply.data(&self.zeros[..wanted]),
        }
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1).map(PathBuf::from);
    let mountpoint = arguments.next().ok_or("usage: null_mount MOUNTPOINT FILE.npy...")?;
    let mut zeros =
        Zeros { files: Vec::new(), names: HashMap::new(), zeros: vec![0; MAX_REQUEST_LEN as usize] };
    for path in arguments {
        let file = ZeroFile::like(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        zeros.names.insert(path.file_name().unwrap_or_default().to_owned(), zeros.files.len());
        zeros.files.push(file);
    }
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("null".into()),
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::DefaultPermissions,
        MountOption::CUSTOM(format!("max_read={MAX_READ_LEN}")),
    ];
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    fuser::mount(zeros, mountpoint, &config)?;
    Ok(())
}
