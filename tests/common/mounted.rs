//! Real mounts, and programs that map their files.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use numpack::fuse::{MountError, MountOptions, Mounted, PassthroughMode, mount};
use numpack::store::{Access, Dtype, NewArray, Store};
use numpack::sys::mounts;
use tempfile::TempDir;

pub const BOTH: [PassthroughMode; 2] = [PassthroughMode::Auto, PassthroughMode::Off];
pub const HEADER_LEN: u64 = 4096;

/// A mounted store, and another handle of it as another process has it. Dropping it unmounts.
pub struct Mount {
    pub dir: TempDir,
    store_path: PathBuf,
    pub other: Store,
    pub mounted: Option<Mounted>,
}

/// Why tests that need a mount do nothing, said once.
pub fn skip(error: &MountError) -> bool {
    static SAID: AtomicBool = AtomicBool::new(false);
    let skip = matches!(error, MountError::Device { .. } | MountError::NoHelper);
    if skip && !SAID.swap(true, Ordering::Relaxed) {
        let _ = writeln!(io::stderr(), "SKIPPED all tests on real mounts: {error}");
    }
    skip
}

impl Mount {
    pub fn new(passthrough: PassthroughMode, fill: impl FnOnce(&Store)) -> Option<Self> {
        Self::with(&MountOptions { passthrough, ..MountOptions::default() }, fill)
    }

    pub fn with(options: &MountOptions, fill: impl FnOnce(&Store)) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let store_path = dir.path().join("data.npk");
        Self::at(dir, store_path, options, fill)
    }

    /// Of a store at `store_path`, on a folder in `dir`.
    pub fn at(
        dir: TempDir,
        store_path: PathBuf,
        options: &MountOptions,
        fill: impl FnOnce(&Store),
    ) -> Option<Self> {
        fs::create_dir(dir.path().join("mnt")).unwrap();
        let other = Store::create(&store_path).unwrap();
        fill(&other);
        let mut this = Self { dir, store_path, other, mounted: None };
        let access = if options.read_only { Access::Read } else { Access::Write };
        match mount(Store::open(&this.store_path, access).unwrap(), &this.path(""), options) {
            Ok(mounted) => this.mounted = Some(mounted),
            Err(error) if skip(&error) => return None,
            Err(error) => panic!("{error}"),
        }
        Some(this)
    }

    pub fn store_path(&self) -> PathBuf {
        self.store_path.clone()
    }

    /// The `.npy` file that the store has under a name.
    pub fn stored(&self, name: &str) -> Option<Vec<u8>> {
        let array = self.other.array(name).ok()?;
        let mut bytes = vec![0; array.npy_len() as usize];
        array.read_npy_at(0, &mut bytes).unwrap();
        Some(bytes)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("mnt").join(name)
    }

    pub fn data_file(&self, array: &str) -> PathBuf {
        self.store_path().join(self.other.array(array).unwrap().file_name())
    }

    pub fn values(&self, name: &str) -> io::Result<Vec<u32>> {
        Ok(values_of(&fs::read(self.path(name))?))
    }

    /// Whether a file is passed through.
    pub fn passes_through(&self, name: &str) -> bool {
        // A write to the data file that nobody tells of is seen at once, or else not before the next look.
        let file = File::open(self.path(name)).unwrap();
        let array = name.strip_suffix(".npy").unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, HEADER_LEN).unwrap();
        let data = OpenOptions::new().write(true).open(self.data_file(array)).unwrap();
        data.write_all_at(&[!byte[0]], HEADER_LEN).unwrap();
        let mut now = [0];
        file.read_exact_at(&mut now, HEADER_LEN).unwrap();
        data.write_all_at(&byte, HEADER_LEN).unwrap();
        now != byte
    }
}

impl Mount {
    /// Unmounts, and returns when the mount has ended.
    pub fn unmount(&mut self) {
        let Some(mounted) = self.mounted.take() else { return };
        let path = self.path("");
        if let Err(error) = mounts::unmount(&path, false)
            && mounts::find(&path).ok().flatten().is_some()
        {
            let _ = writeln!(io::stderr(), "unmounting lazily: {error}");
            let _ = mounts::unmount(&path, true);
        }
        let (done, wait) = mpsc::channel();
        std::thread::spawn(move || done.send(mounted.wait()));
        if wait.recv_timeout(Duration::from_secs(10)).is_err() && !std::thread::panicking() {
            panic!("the mount at {} does not end", path.display());
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.unmount();
    }
}

pub fn numbers(range: std::ops::Range<u32>) -> Vec<u8> {
    range.flat_map(u32::to_le_bytes).collect()
}

pub fn array<'a>(shape: &[u64], data: &'a [u8]) -> NewArray<'a> {
    let dtype = Dtype::parse_python("'<u4'").unwrap();
    NewArray { dtype, shape: shape.to_vec(), fortran_order: false, data }
}

/// `len` numbers from `first` on.
pub fn save(store: &Store, name: &str, len: u32, first: u32) {
    store.save(&[(name, array(&[len.into()], &numbers(first..first + len)))]).unwrap();
}

pub fn append(store: &Store, name: &str, len: u32, first: u32) {
    store.append(&[(name, array(&[len.into()], &numbers(first..first + len)))]).unwrap();
}

pub fn values_of(npy: &[u8]) -> Vec<u32> {
    let header = numpack::format::npy::parse(npy).unwrap();
    let elements = &npy[header.header_len as usize..];
    assert_eq!(elements.len() as u64, 4 * header.shape.iter().product::<u64>(), "header and length disagree");
    elements.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[track_caller]
pub fn wait_until(what: &str, done: impl FnMut() -> bool) {
    wait_within(Duration::from_secs(5), what, done);
}

#[track_caller]
pub fn wait_within(limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[track_caller]
pub fn assert_errno<T: std::fmt::Debug>(result: io::Result<T>, errno: i32) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(errno));
}

/// Everything in a folder: contents of files, `None` for folders.
pub fn contents(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            let content = if entry.file_type().unwrap().is_dir() {
                folders.push(path.clone());
                None
            } else {
                let bytes = fs::read(&path).unwrap();
                assert_eq!(entry.metadata().unwrap().len(), bytes.len() as u64, "{}", path.display());
                Some(bytes)
            };
            found.insert(path.strip_prefix(root).unwrap().to_owned(), content);
        }
    }
    found
}

/// A program that maps a file and does what it is told, line by line.
pub struct Mapper {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

pub const MAPPER: &str = r"
import mmap, os, random, struct, sys
f = open(sys.argv[1], sys.argv[2])
m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_WRITE if '+' in sys.argv[2] else mmap.ACCESS_READ)
print('ready', len(m), flush=True)
for line in sys.stdin:
    try:
        do, *args = line.split()
        args = [int(arg) for arg in args]
        if do == 'get': out = struct.unpack_from('<I', m, args[0])[0]
        elif do == 'sum': out = sum(memoryview(m)[args[0]:].cast('I'))
        elif do == 'touch':
            offset, seed, n = args
            rng = random.Random(seed)
            numbers = memoryview(m)[offset:].cast('I')
            out = sum(numbers[i] - i for i in (rng.randrange(len(numbers)) for _ in range(n)))
        elif do == 'set': out = struct.pack_into('<I', m, args[0], args[1])
        elif do == 'fill':
            m[args[0]:args[0] + args[1]] = bytes([args[2]]) * args[1]
            out = 'filled'
        elif do == 'pwrite': out = os.pwrite(f.fileno(), bytes([args[2]]) * args[1], args[0])
        elif do == 'flush': out = m.flush()
        elif do == 'size': out = os.fstat(f.fileno()).st_size
        elif do == 'fsync': out = os.fsync(f.fileno())
        elif do == 'close':
            # The file, and the descriptor that the map has of its own: only the mapping is left.
            path, out = f.name, f.close()
            for fd in os.listdir('/proc/self/fd'):
                try:
                    if os.readlink('/proc/self/fd/' + fd) == path: os.close(int(fd))
                except OSError: pass
        print(out, flush=True)
    except OSError as error:
        print('errno', error.errno, flush=True)
";

impl Mapper {
    pub fn new(path: &Path, mode: &str) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", MAPPER])
            .arg(path)
            .arg(mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut this = Self { child, to, from };
        assert!(this.answer().starts_with("ready"));
        this
    }

    /// The next line that it says; empty if it is gone.
    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub fn tell(&mut self, line: &str) -> String {
        writeln!(self.to, "{line}").unwrap();
        self.answer()
    }

    /// Writes lines without waiting for answers.
    pub fn send(&mut self, lines: &str) {
        self.to.write_all(lines.as_bytes()).unwrap();
    }

    /// Ends the program, and returns when its mapping is gone.
    pub fn end(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn get(&mut self, offset: u64) -> u32 {
        self.tell(&format!("get {offset}")).parse().unwrap()
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
