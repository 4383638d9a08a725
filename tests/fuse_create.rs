//! Making files through real mounts: each test runs with passthrough and without it, and with arrays that are
//! compressed as they are written and without.
#![cfg(feature = "fuse")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::mounted::{Mount, assert_errno, contents, save, wait_within};
use numpack::fuse::{MountOptions, PassthroughMode};
use numpack::store::{Compression, Store};
use numpack::sys::{DirStorage, Storage, mounts};

/// How to mount.
type Way = (PassthroughMode, Option<Compression>);

const SMALL_BLOCKS: Compression = Compression { level: 1, block_len: 4096, filter: None };

const WAYS: [Way; 4] = [
    (PassthroughMode::Auto, None),
    (PassthroughMode::Off, None),
    (PassthroughMode::Auto, Some(SMALL_BLOCKS)),
    (PassthroughMode::Off, Some(SMALL_BLOCKS)),
];

fn mounted(way: Way, fill: impl FnOnce(&Store)) -> Option<Mount> {
    Mount::with(&options(way), fill)
}

fn options((passthrough, compression): Way) -> MountOptions {
    MountOptions { passthrough, compression: Some(compression), ..MountOptions::default() }
}

/// A `.npy` file of `len` numbers as `numpy.save` writes it: with a header of 128 bytes.
fn npy(len: u32, first: u32) -> Vec<u8> {
    let text = format!("{{'descr': '<u4', 'fortran_order': False, 'shape': ({len},), }}");
    let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    bytes.extend_from_slice(format!("{text:<117}\n").as_bytes());
    bytes.extend((first..first + len).flat_map(u32::to_le_bytes));
    bytes
}

/// Closing may wait for more than a change of the store does to be seen.
#[track_caller]
fn wait_for(what: &str, done: impl FnMut() -> bool) {
    wait_within(Duration::from_secs(10), what, done);
}

/// A program that does what it is told with files, line by line, as Python does it.
struct Program {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

const PROGRAM: &str = r"
import ctypes, mmap, os, sys
files, maps = {}, {}
print('ready', flush=True)
for line in sys.stdin:
    do, name, *args = line.rstrip('\n').split('\t')
    try:
        out = None
        if do == 'open': files[name] = os.open(args[0], eval(args[1], vars(os)), 0o666)
        elif do == 'write': out = os.pwrite(files[name], bytes.fromhex(args[1]), int(args[0]))
        elif do == 'read': out = os.pread(files[name], int(args[1]), int(args[0])).hex()
        elif do == 'dup': files[args[0]] = os.dup(files[name])
        elif do == 'close': os.close(files.pop(name))
        elif do == 'sync': os.fsync(files[name])
        elif do == 'cut': os.ftruncate(files[name], int(args[0]))
        elif do == 'size': out = os.fstat(files[name]).st_size
        elif do == 'reserve':
            libc = ctypes.CDLL(None, use_errno=True)
            offset, length = (ctypes.c_int64(int(arg)) for arg in args[1:])
            if libc.fallocate(files[name], int(args[0]), offset, length): raise OSError(ctypes.get_errno(), '')
        elif do == 'map': maps[name] = mmap.mmap(files[name], 0)
        elif do == 'store': maps[name][int(args[0]):int(args[0]) + len(args[1]) // 2] = bytes.fromhex(args[1])
        elif do == 'load': out = maps[name][int(args[0]):int(args[0]) + int(args[1])].hex()
        elif do == 'flush': maps[name].flush()
        elif do == 'unmap': maps.pop(name).close()
        print('ok' if out is None else out, flush=True)
    except OSError as error:
        print('errno', error.errno, flush=True)
";

const CREATE: &str = "O_WRONLY|O_CREAT|O_TRUNC";

impl Program {
    fn new() -> Self {
        let mut child = Command::new("python3")
            .args(["-c", PROGRAM])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut this = Self { child, to, from };
        assert_eq!(this.answer(), "ready");
        this
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn tell(&mut self, words: &[&str]) -> String {
        writeln!(self.to, "{}", words.join("\t")).unwrap();
        self.answer()
    }

    #[track_caller]
    fn ok(&mut self, words: &[&str]) {
        assert_eq!(self.tell(words), "ok", "{words:?}");
    }

    #[track_caller]
    fn open(&mut self, name: &str, path: &Path, flags: &str) {
        self.ok(&["open", name, path.to_str().unwrap(), flags]);
    }

    #[track_caller]
    fn write(&mut self, name: &str, offset: usize, bytes: &[u8]) {
        for (i, piece) in bytes.chunks(4000).enumerate() {
            let at = (offset + 4000 * i).to_string();
            assert_eq!(self.tell(&["write", name, &at, &hex(piece)]), piece.len().to_string());
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn files_are_made_as_in_a_temporary_folder() {
    for way in WAYS {
        let Some(m) = mounted(way, |_| {}) else { return };
        let plain = tempfile::tempdir().unwrap();
        let both = [m.path(""), plain.path().to_owned()];
        let each = |what: &str, run: &dyn Fn(&Path) -> io::Result<Vec<u8>>| {
            let [on_mount, on_disk] =
                both.each_ref().map(|root| run(root).map_err(|error| error.raw_os_error()));
            assert_eq!(on_mount, on_disk, "{what}");
            assert_eq!(contents(&both[0]), contents(&both[1]), "{what}");
        };
        let ok = |result: io::Result<()>| result.map(|()| Vec::new());
        let new =
            |root: &Path, name: &str| OpenOptions::new().write(true).create_new(true).open(root.join(name));
        each("an array", &|root| ok(fs::write(root.join("a.npy"), npy(10_000, 0))));
        each("an array over it", &|root| ok(fs::write(root.join("a.npy"), npy(5000, 7))));
        each("a shorter one", &|root| ok(fs::write(root.join("a.npy"), npy(0, 0))));
        each("one that is there", &|root| new(root, "a.npy").map(|_| Vec::new()));
        each("text", &|root| ok(fs::write(root.join("notes.txt"), "one\ntwo\n")));
        each("more text", &|root| {
            ok(OpenOptions::new().append(true).open(root.join("notes.txt"))?.write_all(b"three\n"))
        });
        each("an empty file", &|root| new(root, "empty.npy").map(|_| Vec::new()));
        each("a file that has a folder's name", &|root| {
            fs::create_dir(root.join("g"))?;
            File::create(root.join("g")).map(|_| Vec::new())
        });
        each("a folder that is there", &|root| ok(fs::create_dir(root.join("g"))));
        each("a folder that has a file's name", &|root| ok(fs::create_dir(root.join("notes.txt"))));
        each("a file in a folder that is none", &|root| ok(fs::write(root.join("notes.txt/x"), "")));
        each("a file in no folder", &|root| ok(fs::write(root.join("none/x"), "")));
        each("a name that is too long", &|root| ok(fs::write(root.join("x".repeat(256)), "")));
        each("holes", &|root| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true);
            let mut file = options.open(root.join("g/holes"))?;
            file.write_all_at(b"x", 100_000)?;
            file.set_len(200_000)?;
            file.write_all_at(b"y", 150_000)?;
            file.set_len(150_002)?;
            file.seek(SeekFrom::End(-3))?;
            let mut bytes = vec![0; 10];
            let n = file.read(&mut bytes)?;
            bytes.truncate(n);
            Ok(bytes)
        });
        each("a temporary name", &|root| {
            fs::write(root.join("g/.b.npy.Xy"), npy(3, 3))?;
            ok(fs::rename(root.join("g/.b.npy.Xy"), root.join("g/b.npy")))
        });
        each("over an array", &|root| {
            fs::write(root.join("tmp"), npy(4, 4))?;
            ok(fs::rename(root.join("tmp"), root.join("g/b.npy")))
        });
        each("over a folder", &|root| ok(fs::rename(root.join("notes.txt"), root.join("g"))));
        each("without replacing", &|root| {
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            let (from, to) = (root.join("notes.txt"), root.join("g/b.npy"));
            ok(Ok(rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)?))
        });
        each("to another folder", &|root| ok(fs::rename(root.join("notes.txt"), root.join("g/n"))));
        each("one that is written to", &|root| {
            let mut file = File::create(root.join("old"))?;
            file.write_all(&npy(10, 0)[..100])?;
            fs::rename(root.join("old"), root.join("new.npy"))?;
            file.write_all(&npy(10, 0)[100..])?;
            drop(file);
            fs::read(root.join("new.npy"))
        });
        each("removed while open", &|root| {
            let path = root.join("gone.npy");
            let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
            file.write_all(&npy(10, 0))?;
            fs::remove_file(&path)?;
            assert_eq!(file.metadata()?.nlink(), 0);
            file.write_all_at(b"abc", 200)?;
            let mut bytes = vec![0; 203];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        });
        each("a folder that is not empty", &|root| ok(fs::remove_dir(root.join("g"))));
        each("all of a folder", &|root| ok(fs::remove_dir_all(root.join("g"))));
        each("none left", &|root| ok(fs::remove_dir(root.join("g"))));
        each("what has no name but a link to an open file", &|root| {
            let script = "echo one; echo two >/dev/stdout; echo three";
            let out = File::create(root.join("out.txt"))?;
            assert!(Command::new("sh").args(["-c", script]).stdout(out).status()?.success());
            Ok(Vec::new())
        });
        each("emptying what nobody has open", &|root| {
            fs::write(root.join("empty.npy"), npy(3, 0))?;
            let file = OpenOptions::new().write(true).truncate(true).open(root.join("empty.npy"))?;
            Ok(vec![file.metadata()?.len() as u8])
        });
    }
}

#[test]
fn an_array_is_in_the_store_when_close_returns() {
    for way in WAYS {
        let Some(m) = mounted(way, |_| {}) else { return };
        // Nothing waits here.
        for i in 0..100 {
            let bytes = npy(1000 + i, i);
            fs::write(m.path("a.npy"), &bytes).unwrap();
            assert_eq!(m.stored("a").unwrap(), bytes, "round {i}");
            assert_eq!(fs::read(m.path("a.npy")).unwrap(), bytes);
            fs::write(m.path(".tmp"), &bytes).unwrap();
            fs::rename(m.path(".tmp"), m.path("b.npy")).unwrap();
            assert_eq!(m.stored("b").unwrap(), bytes, "round {i}");
            assert_eq!(fs::read(m.path("b.npy")).unwrap(), bytes);
            let mut file = File::create(m.path(&format!("c{i}.npy"))).unwrap();
            file.write_all(&bytes).unwrap();
            file.sync_all().unwrap();
            assert_eq!(m.stored(&format!("c{i}")).unwrap(), bytes, "round {i}");
        }
        assert_eq!(fs::read_dir(m.path("")).unwrap().count(), 102);
    }
}

#[test]
fn numpy_saves_as_it_does() {
    for way in WAYS {
        let Some(m) = mounted(way, |store| save(store, "old", 5000, 0)) else { return };
        let mut program = Program::new();
        let bytes = npy(10_000, 3);
        for name in ["a", "old"] {
            // numpy.save: the header; space, if there are 16 MiB; the rest through a duplicate; two closes.
            let path = m.path(&format!("{name}.npy"));
            program.open("f", &path, CREATE);
            program.write("f", 0, &bytes[..128]);
            program.ok(&["reserve", "f", "1", "128", &(bytes.len() - 128).to_string()]);
            assert_eq!(program.tell(&["size", "f"]), "128");
            program.ok(&["dup", "f", "g"]);
            program.write("g", 128, &bytes[128..]);
            program.ok(&["close", "g"]);
            program.ok(&["close", "f"]);
            assert_eq!(m.stored(name).unwrap(), bytes);
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        // Modes of fallocate that a mount does not have.
        program.open("f", &m.path("b.txt"), CREATE);
        assert_eq!(program.tell(&["reserve", "f", "3", "0", "10"]), format!("errno {}", libc::EOPNOTSUPP));
        program.ok(&["reserve", "f", "0", "0", "100"]);
        assert_eq!(program.tell(&["size", "f"]), "100");
        program.ok(&["close", "f"]);
    }
}

#[test]
fn open_memmap_makes_an_array_when_it_is_unmapped() {
    for way in WAYS {
        let Some(m) = mounted(way, |store| save(store, "old", 3, 0)) else { return };
        let bytes = npy(100_000, 3);
        for (name, before) in [("a", None), ("old", m.stored("old"))] {
            let path = m.path(&format!("{name}.npy"));
            let mut program = Program::new();
            program.open("f", &path, CREATE);
            program.write("f", 0, &bytes[..128]);
            program.ok(&["close", "f"]);
            assert_eq!(fs::read(&path).unwrap(), bytes[..128]);
            program.open("f", &path, "O_RDWR");
            program.write("f", bytes.len() - 1, &[0]);
            program.ok(&["map", "f"]);
            program.ok(&["close", "f"]);
            for offset in (128..bytes.len()).step_by(3000) {
                let piece = &bytes[offset..bytes.len().min(offset + 3000)];
                program.ok(&["store", "f", &offset.to_string(), &hex(piece)]);
            }
            program.ok(&["flush", "f"]);
            assert_eq!(m.stored(name), before, "not before it is closed");
            assert_eq!(fs::read(&path).unwrap(), bytes);
            program.ok(&["store", "f", "128", "ffffffff"]);
            if name == "a" {
                program.ok(&["unmap", "f"]);
            } else {
                drop(program);
            }
            let expected = [&bytes[..128], &[0xff; 4], &bytes[132..]].concat();
            wait_for("the array", || m.stored(name).is_some_and(|stored| Some(stored) != before));
            assert_eq!(m.stored(name).unwrap(), expected);
            assert_eq!(fs::read(&path).unwrap(), expected);
        }
    }
}

#[test]
fn readers_of_the_old_version_keep_it() {
    for way in WAYS {
        let Some(m) = mounted(way, |store| save(store, "a", 5000, 0)) else { return };
        let path = m.path("a.npy");
        let mut readers = Vec::new();
        for round in 1..6_u32 {
            let expected = fs::read(&path).unwrap();
            let mut program = Program::new();
            program.open("f", &path, "O_RDONLY");
            program.open("m", &path, "O_RDWR");
            program.ok(&["map", "m"]);
            readers.push((program, File::open(&path).unwrap(), expected));
            let bytes = npy(4000 + round, round);
            let mut file = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
            // From here on the name shows the new version, and the store the old one.
            assert_eq!(fs::metadata(&path).unwrap().len(), 0);
            file.write_all(&bytes[..1000]).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes[..1000]);
            assert_eq!(m.stored("a").unwrap().len(), readers.last().unwrap().2.len());
            file.write_all(&bytes[1000..]).unwrap();
            drop(file);
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        for (program, file, expected) in &mut readers {
            let mut bytes = vec![0; expected.len()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(bytes, *expected);
            let len = expected.len().to_string();
            assert_eq!(program.tell(&["read", "f", "0", &len]), hex(expected));
            assert_eq!(program.tell(&["load", "m", "0", &len]), hex(expected));
        }
    }
}

#[test]
fn what_is_no_array_is_refused_by_close() {
    for way in WAYS {
        let Some(m) = mounted(way, |store| save(store, "old", 3, 0)) else { return };
        let mut program = Program::new();
        let old = m.stored("old");
        let refused = format!("errno {}", libc::EINVAL);
        for name in ["a", "old"] {
            let path = m.path(&format!("{name}.npy"));
            program.open("f", &path, CREATE);
            program.write("f", 0, b"some text");
            program.ok(&["dup", "f", "g"]);
            assert_eq!(program.tell(&["close", "g"]), refused);
            assert_eq!(program.tell(&["close", "f"]), refused);
            assert_eq!(fs::read(&path).unwrap(), b"some text");
        }
        assert_eq!((m.stored("a"), m.stored("old")), (None, old));
        assert_errno(fs::rename(m.path("a.npy"), m.path("b.npy")), libc::EINVAL);
        fs::rename(m.path("a.npy"), m.path("a.txt")).unwrap();
        assert_errno(fs::rename(m.path("a.txt"), m.path("a.npy")), libc::EINVAL);
        // Two arrays in one file are no array, but the first one was.
        let one = npy(10, 0);
        program.open("f", &m.path("two.npy"), CREATE);
        program.write("f", 0, &one);
        program.ok(&["dup", "f", "g"]);
        program.ok(&["close", "g"]);
        assert_eq!(m.stored("two").unwrap(), one);
        program.write("f", one.len(), &one);
        assert_eq!(fs::read(m.path("two.npy")).unwrap(), [&one[..], &one].concat());
        assert_eq!(program.tell(&["close", "f"]), refused);
        assert_eq!(m.stored("two").unwrap(), one);
        assert_eq!(fs::read(m.path("two.npy")).unwrap(), [&one[..], &one].concat());
    }
}

#[test]
fn a_file_that_became_an_array_can_be_changed_by_those_who_have_it_open() {
    for way in WAYS {
        let Some(m) = mounted(way, |_| {}) else { return };
        let mut program = Program::new();
        let bytes = npy(10_000, 0);
        program.open("f", &m.path("a.npy"), "O_RDWR|O_CREAT|O_TRUNC");
        program.write("f", 0, &bytes);
        program.ok(&["dup", "f", "g"]);
        program.ok(&["close", "g"]);
        assert_eq!(m.stored("a").unwrap(), bytes);
        let other = File::open(m.path("a.npy")).unwrap();
        // By a mapping, by its length, and by a write.
        program.ok(&["map", "f"]);
        program.ok(&["store", "f", "128", "ffffffff"]);
        program.ok(&["flush", "f"]);
        program.ok(&["unmap", "f"]);
        program.ok(&["cut", "f", "50000"]);
        program.ok(&["cut", "f", &bytes.len().to_string()]);
        program.write("f", 35_000, &bytes[35_000..]);
        let mut expected = [&bytes[..128], &[0xff; 4], &bytes[132..]].concat();
        assert_eq!(fs::read(m.path("a.npy")).unwrap(), expected);
        assert_eq!(m.stored("a").unwrap(), bytes);
        program.ok(&["close", "f"]);
        wait_for("the array", || m.stored("a").unwrap() == expected);
        wait_for("the name", || fs::read(m.path("a.npy")).unwrap() == expected);
        let mut before = vec![0; bytes.len()];
        other.read_exact_at(&mut before, 0).unwrap();
        assert_eq!(before, bytes);
        // In place from then on.
        let file = OpenOptions::new().write(true).open(m.path("a.npy")).unwrap();
        file.write_all_at(&[7; 4], 132).unwrap();
        drop(file);
        expected[132..136].fill(7);
        assert_eq!(m.stored("a").unwrap(), expected);
    }
}

#[test]
fn many_who_make_one_name_leave_whole_arrays() {
    for way in WAYS {
        let Some(m) = mounted(way, |store| save(store, "a", 10, 0)) else { return };
        let done = AtomicBool::new(false);
        let is_whole = |bytes: &[u8]| {
            let header = numpack::format::npy::parse(bytes).unwrap();
            let elements = &bytes[header.header_len as usize..];
            let first = u32::from_le_bytes(elements[..4].try_into().unwrap());
            let len = elements.len() as u32 / 4;
            elements == (first..first + len).flat_map(u32::to_le_bytes).collect::<Vec<_>>()
        };
        std::thread::scope(|scope| {
            let writers: Vec<_> = (1..5_u32)
                .map(|writer| {
                    let m = &m;
                    scope.spawn(move || {
                        for round in 0..50 {
                            let bytes = npy(5000 + 100 * writer + round, 100_000 * writer);
                            let mut options = OpenOptions::new();
                            options.write(true).create(true).truncate(true);
                            let mut file = options.open(m.path("a.npy")).unwrap();
                            for piece in bytes.chunks(6000) {
                                file.write_all(piece).unwrap();
                            }
                            drop(file);
                            if round % 10 == writer {
                                match fs::remove_file(m.path("a.npy")) {
                                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                                        panic!("{error}")
                                    }
                                    _ => {}
                                }
                            }
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    if let Some(bytes) = m.stored("a") {
                        assert!(is_whole(&bytes));
                    }
                }
            });
            let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
            done.store(true, Ordering::Relaxed);
            ended.into_iter().for_each(|result| result.unwrap());
        });
        let last = npy(10, 1);
        fs::write(m.path("a.npy"), &last).unwrap();
        // Those that others had given up are not brought back.
        let mut m = m;
        m.unmount();
        assert_eq!(m.stored("a").unwrap(), last);
    }
}

/// Found by stress-ng: a folder that was removed and made anew had the number of the old one, and so the kernel, which had
/// that for gone, let nothing be made in it (`ENOENT`): as long as somebody had the old one open, or if the message that
/// it was removed came after it was made.
#[test]
fn a_folder_that_is_made_anew_is_another_one() {
    for way in WAYS {
        let Some(m) = mounted(way, |_| {}) else { return };
        for path in [m.path("g"), m.path("g/h")] {
            fs::create_dir(&path).unwrap();
            let old = File::open(&path).unwrap();
            let ino = old.metadata().unwrap().ino();
            fs::remove_dir(&path).unwrap();
            fs::create_dir(&path).unwrap();
            assert_ne!(fs::metadata(&path).unwrap().ino(), ino);
            fs::write(path.join("f"), b"text").unwrap();
            assert_eq!(fs::read(path.join("f")).unwrap(), b"text");
            // Nor has it the number of one that was made under its path and renamed since.
            fs::rename(&path, m.path("h")).unwrap();
            for _ in 0..3 {
                fs::create_dir(&path).unwrap();
                assert_ne!(fs::metadata(&path).unwrap().ino(), ino);
                fs::remove_dir(&path).unwrap();
            }
            let renamed = File::open(m.path("h")).unwrap();
            fs::remove_dir_all(m.path("h")).unwrap();
            fs::create_dir(&path).unwrap();
            fs::write(path.join("f"), b"text").unwrap();
            drop((old, renamed));
        }
        fs::remove_dir_all(m.path("g")).unwrap();
        for _ in 0..300 {
            fs::create_dir(m.path("g")).unwrap();
            fs::write(m.path("g/f"), b"text").unwrap();
            fs::remove_file(m.path("g/f")).unwrap();
            fs::remove_dir(m.path("g")).unwrap();
        }
    }
}

#[test]
fn files_of_many_names_are_made_at_a_time() {
    for way in WAYS {
        let Some(m) = mounted(way, |_| {}) else { return };
        std::thread::scope(|scope| {
            for writer in 0..8_u32 {
                let m = &m;
                scope.spawn(move || {
                    let folder = m.path(&format!("g{}", writer % 3));
                    match fs::create_dir(&folder) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => panic!("{error}"),
                        _ => {}
                    }
                    for i in 0..30 {
                        let tmp = folder.join(format!(".{writer}"));
                        fs::write(&tmp, npy(1000, i)).unwrap();
                        fs::rename(&tmp, folder.join(format!("{writer}-{i}.npy"))).unwrap();
                    }
                });
            }
        });
        m.other.refresh().unwrap();
        assert_eq!(m.other.len(), 240);
        for i in 0..30 {
            assert_eq!(fs::read(m.path(&format!("g1/4-{i}.npy"))).unwrap(), npy(1000, i));
        }
        fs::remove_dir_all(m.path("g1")).unwrap();
        m.other.refresh().unwrap();
        assert_eq!(m.other.len(), 150);
    }
}

#[test]
fn a_writer_at_work_delays_close_and_nothing_else() {
    for way in WAYS {
        let Some(m) = mounted(way, |store| save(store, "d", 100, 0)) else { return };
        let bytes = npy(1000, 0);
        let storage = DirStorage::open(&m.dir.path().join("data.npk")).unwrap();
        let mut file = File::create(m.path("a.npy")).unwrap();
        file.write_all(&bytes).unwrap();
        let lock = storage.lock(numpack::format::names::LOCK, Duration::from_secs(5)).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let close = scope.spawn(|| {
                drop(file);
                assert!(done.load(Ordering::Relaxed), "closed while another writer was at work");
            });
            for i in 0..20 {
                assert_eq!(fs::read(m.path("a.npy")).unwrap(), bytes);
                assert_eq!(fs::read(m.path("d.npy")).unwrap().len(), 4096 + 400);
                let mut other = File::create(m.path(&format!("{i}.txt"))).unwrap();
                other.write_all(b"text").unwrap();
                fs::create_dir(m.path(&format!("g{i}"))).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
            done.store(true, Ordering::Relaxed);
            drop(lock);
            close.join().unwrap();
        });
        assert_eq!(m.stored("a").unwrap(), bytes);
    }
}

#[test]
fn what_is_not_whole_at_the_end_is_in_lost_and_found() {
    for way in WAYS {
        let Some(mut m) = mounted(way, |store| save(store, "a", 3, 0)) else { return };
        fs::create_dir(m.path("g")).unwrap();
        fs::write(m.path("g/half.npy"), &npy(100, 0)[..300]).unwrap();
        fs::write(m.path("notes.txt"), "text").unwrap();
        let before = m.stored("a");
        assert!(
            !Command::new("cp").arg(m.path("notes.txt")).arg(m.path("a.npy")).status().unwrap().success()
        );
        m.unmount();
        let lost = m.dir.path().join("data.npk/lost+found");
        let read = |name: &str| fs::read(lost.join(name)).unwrap();
        assert_eq!(read("g%2Fhalf.npy"), npy(100, 0)[..300]);
        assert_eq!(read("a.npy"), b"text");
        assert_eq!(fs::read_dir(&lost).unwrap().count(), 2);
        assert_eq!(fs::read(m.dir.path().join("data.npk/files/notes.txt~1")).unwrap(), b"text");
        assert_eq!(m.stored("a"), before);
    }
}

#[test]
fn a_full_disk_is_told_and_changes_nothing() {
    /// A file system of its own, unmounted at the end.
    struct Small(PathBuf);
    impl Drop for Small {
        fn drop(&mut self) {
            let _ = mounts::unmount(&self.0, true);
        }
    }
    for way in WAYS {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("small");
        fs::create_dir(&path).unwrap();
        let size = c"size=1m,nr_inodes=40";
        let flags = rustix::mount::MountFlags::empty();
        if let Err(error) = rustix::mount::mount("npk", &path, "tmpfs", flags, size) {
            let _ = writeln!(io::stderr(), "SKIPPED a full disk: cannot mount a small file system: {error}");
            return;
        }
        let _small = Small(path.clone());
        let Some(m) = Mount::at(dir, path.join("data.npk"), &options(way), |store| save(store, "a", 1000, 0))
        else {
            return;
        };
        let before = m.stored("a");
        // Nothing that compressing could help.
        let mut too_much = npy(500_000, 0);
        let mut random = 1_u64;
        for byte in &mut too_much[128..] {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            *byte = random as u8;
        }
        for name in ["a.npy", "b.npy"] {
            assert_errno(fs::write(m.path(name), &too_much), libc::ENOSPC);
            assert_eq!(m.stored("a"), before);
            fs::remove_file(m.path(name)).unwrap();
            if name == "a.npy" {
                assert_eq!(m.stored("a"), None);
                save(&m.other, "a", 1000, 0);
            }
        }
        assert_eq!(fs::read_dir(m.path("")).unwrap().count(), 1);
        let mut program = Program::new();
        program.open("f", &m.path("c.npy"), CREATE);
        // What a compressed array takes is not known before.
        let reserved = if way.1.is_some() { "ok".to_owned() } else { format!("errno {}", libc::ENOSPC) };
        assert_eq!(program.tell(&["reserve", "f", "1", "0", "2000000"]), reserved);
        program.ok(&["close", "f"]);
        fs::remove_file(m.path("c.npy")).unwrap();
        fs::write(m.path("b.npy"), npy(1000, 5)).unwrap();
        assert_eq!(m.stored("b").unwrap(), npy(1000, 5));
    }
}

#[test]
fn times_and_modes_are_kept() {
    for way in WAYS {
        let Some(m) = mounted(way, |_| {}) else { return };
        let source = m.dir.path().join("source");
        fs::create_dir_all(source.join("g/h")).unwrap();
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        options.open(source.join("g/private.npy")).unwrap().write_all(&npy(10, 0)).unwrap();
        fs::write(source.join("g/h/a.npy"), npy(20, 0)).unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        for path in ["g/private.npy", "g/h/a.npy", "g/h", "g"] {
            File::open(source.join(path)).unwrap().set_modified(old).unwrap();
        }
        let copied = Command::new("cp").arg("-a").arg(source.join("g")).arg(m.path("g")).output().unwrap();
        assert!(copied.status.success(), "{copied:?}");
        for path in ["g/private.npy", "g/h/a.npy", "g/h", "g"] {
            let [from, to] = [source.join(path), m.path(path)].map(|path| fs::metadata(path).unwrap());
            assert_eq!(
                (from.mode(), from.modified().unwrap()),
                (to.mode(), to.modified().unwrap()),
                "{path}"
            );
        }
        let array = m.other.array("g/private").unwrap();
        assert_eq!(array.modified().unwrap(), old);
        let data = fs::metadata(m.dir.path().join("data.npk").join(array.file_name())).unwrap();
        assert_eq!(data.mode() & 0o777, 0o600);
        // Of an array that is there, too.
        let older = old - Duration::from_secs(5);
        File::open(m.path("g/h/a.npy")).unwrap().set_modified(older).unwrap();
        assert_eq!(m.other.array("g/h/a").unwrap().modified().unwrap(), older);
        wait_for("the time", || fs::metadata(m.path("g/h/a.npy")).unwrap().modified().unwrap() == older);
    }
}
