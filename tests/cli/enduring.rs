//! What a mount endures: clients that are killed, a full disk, a store that is removed, signals in the middle of things.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use numpack::sys::mounts;
use rustix::mount::MountFlags;
use rustix::process::Signal;

use crate::common::{files_below, npy, numbers};
use crate::npkfs;
use crate::ways::{Way, each_store, each_way, is_running, shared_python, signal, soon};

const PROGRAM: &str = "
import mmap, os, sys
mnt = sys.argv[1]
print('ready', flush=True)
for line in sys.stdin:
    try:
        exec(line)
        print('ok', flush=True)
    except OSError as error:
        print('errno', error.errno, flush=True)
";

/// A Python program, of the user who mounts, that runs line by line.
struct Program {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Program {
    fn new(way: &Way, python: &str) -> Self {
        let mut command = way.other_command(python);
        command.args(["-c", PROGRAM]).arg(&way.mnt).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python runs");
        let to = child.stdin.take().expect("a pipe");
        let from = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut this = Self { child, to, from };
        assert_eq!(this.answer(), "ready");
        this
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    fn tell(&mut self, line: &str) -> String {
        writeln!(self.to, "{line}").expect("is told");
        self.answer()
    }

    #[track_caller]
    fn ok(&mut self, line: &str) {
        assert_eq!(self.tell(line), "ok", "{line}");
    }

    fn kill(mut self) {
        self.child.kill().expect("is killed");
        self.child.wait().expect("ends");
    }
}

/// As [`each_way`], where there is a Python that everybody can run.
#[track_caller]
fn each_way_with_python(test: impl Fn(&Way, &str)) {
    match shared_python() {
        Ok(python) => each_way(|way| test(way, python)),
        Err(reason) => eprintln!("SKIPPED: {reason}"),
    }
}

/// The elements of an array of the store as `int64`.
#[track_caller]
fn stored(way: &Way, name: &str) -> Vec<i64> {
    let out = way.place.path("out");
    let _ = fs::remove_dir_all(&out);
    npkfs!["export", &way.place.store, name, &out].ok();
    let bytes = fs::read(out.join(format!("{name}.npy"))).expect("is exported");
    let header_len = numpack::format::npy::parse(&bytes).expect("has a header").header_len as usize;
    bytes[header_len..].chunks(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn what_a_killed_client_wrote_is_in_the_store() {
    each_way_with_python(|way, python| {
        for compress in [false, true] {
            way.make_store(&[("a", numbers(100_000, 0))]);
            if compress {
                npkfs!["recompress", &way.place.store, "a"].ok();
                chown_all(way);
            }
            let _unmount = way.mount();
            let pid = way.server().expect("somebody serves");
            let mut writer = Program::new(way, python);
            writer.ok("f = open(mnt + '/a.npy', 'r+b'); m = mmap.mmap(f.fileno(), 0)");
            writer.ok("at = len(m) - 800_000");
            writer.ok("for i in range(0, 800_000, 8000): m[at + i:at + i + 8] = b'\\7\\0\\0\\0\\0\\0\\0\\0'");
            writer.ok("h = open(mnt + '/half.npy', 'wb'); h.write(b'\\x93NUMPY'); h.flush()");
            writer.kill();
            // The kernel writes the pages back when the last mapping is gone.
            soon("what was written", || stored(way, "a")[99_000] == 7);
            let expected: Vec<i64> = (0..100_000).map(|i| if i % 1000 == 0 { 7 } else { i }).collect();
            soon("all that was written", || stored(way, "a") == expected);
            assert!(is_running(pid));
            assert_eq!(way.files(), ["a.npy", "half.npy"]);
            way.umount().ok();
            npkfs!["verify", "--deep", &way.place.store].ok();
            fs::remove_dir_all(&way.place.store).unwrap();
        }
    });
}

/// Gives all files of the store to who has the mountpoint.
fn chown_all(way: &Way) {
    let own = fs::metadata(&way.mnt).unwrap();
    for name in files_below(&way.place.store) {
        chown(way.place.store.join(name), Some(own.uid()), Some(own.gid())).unwrap();
    }
}

/// A small file system of its own.
struct Small(PathBuf);

impl Small {
    fn new(path: &Path, len: &str) -> Result<Self, String> {
        fs::create_dir(path).expect("a folder");
        let options = std::ffi::CString::new(format!("size={len}")).expect("no NUL");
        rustix::mount::mount("small", path, "tmpfs", MountFlags::empty(), options.as_c_str())
            .map_err(|error| format!("cannot mount a small file system: {error}"))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = mounts::unmount(&self.0, true);
    }
}

/// Bytes that nothing compresses.
fn noise(n_bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).take(n_bytes / 8).flatten().collect()
}

#[test]
fn a_full_disk_is_told_and_works_again_when_it_is_not() {
    each_way_with_python(|way, python| {
        for compress in [false, true] {
            let small = match Small::new(&way.place.path("small"), "3m") {
                Ok(small) => small,
                Err(reason) => return eprintln!("SKIPPED: {reason}"),
            };
            let own = fs::metadata(&way.mnt).unwrap();
            chown(&small.0, Some(own.uid()), Some(own.gid())).unwrap();
            let store = small.0.join("data.npk");
            let data = noise(1 << 20);
            let file = way.place.write("in/a.npy", &npy("'<i8'", "(131072,)", &data));
            let level = if compress { vec!["--compress=1"] } else { vec![] };
            let import = ["import".as_ref(), file.as_os_str(), store.as_os_str()];
            way.run(import.into_iter().chain(level.iter().map(|arg| arg.as_ref()))).ok();
            let _unmount = way.mount_guard();
            way.run([
                "mount".as_ref(),
                "-o".as_ref(),
                way.options.as_ref(),
                store.as_os_str(),
                way.mnt.as_os_str(),
            ])
            .ok();
            let before = way.read("a.npy");

            let ballast = small.0.join("ballast");
            fs::write(&ballast, vec![1; 4 << 20]).expect_err("no more room");
            let mut program = Program::new(way, python);
            let no_space = format!("errno {}", libc::ENOSPC);
            // Another file, another version, rows at the end, and what is in place, if it takes room.
            program.ok("data = open(mnt + '/a.npy', 'rb').read()");
            for name in ["b.npy", "a.npy"] {
                let write = format!(
                    "with open(mnt + '/{name}', 'wb', 0) as f: [f.write(data[i:i + 4096]) for i in range(0, len(data), 4096)]"
                );
                assert_eq!(program.tell(&write), no_space, "{name}");
                program.ok(&format!("os.rename(mnt + '/{name}', mnt + '/{name}.bad')"));
                assert!(way.read("a.npy") == before);
            }
            assert_eq!(program.tell("f = open(mnt + '/a.npy', 'ab', 0); f.write(data[-80_000:])"), no_space);
            assert!(way.read("a.npy") == before);
            program.ok("g = os.open(mnt + '/a.npy', os.O_RDWR); at = len(data) - 8 * 131072");
            program.ok("os.pwrite(g, bytes(range(256)) * 64, at + 8 * 1000)");
            let synced = program.tell("os.fsync(g)");
            assert_eq!(synced == "ok", !compress, "{synced}");
            program.ok("new = data[:at + 8000] + bytes(range(256)) * 64 + data[at + 8000 + 16384:]");
            program.ok("assert open(mnt + '/a.npy', 'rb').read() == new, 'what was written stays'");

            fs::remove_file(&ballast).unwrap();
            program.ok("os.fsync(g); os.close(g)");
            program.ok("f.write(data[-80_000:]); f.close()");
            program.ok("with open(mnt + '/c.npy', 'wb') as f: f.write(data)");
            program.kill();
            way.umount().ok();
            npkfs!["verify", "--deep", &store].ok();
            assert_eq!(npkfs!["ls", &store].ok().lines(), ["a", "c"]);
            drop(small);
            fs::remove_dir(way.place.path("small")).unwrap();
        }
    });
}

#[test]
fn a_signal_in_the_middle_of_things_loses_nothing_that_was_written() {
    each_way_with_python(|way, python| {
        way.make_store(&[("a", numbers(100_000, 0)), ("z", numbers(100_000, 0))]);
        npkfs!["recompress", &way.place.store, "z"].ok();
        chown_all(way);
        let log = way.place.path("npkfs.log");
        let _unmount = way.mount_guard();
        let args =
            ["mount", "-v", "-o", way.options, "--log", log.to_str().unwrap()].map(std::ffi::OsString::from);
        way.run(
            args.iter().map(|arg| arg.as_os_str()).chain([way.place.store.as_os_str(), way.mnt.as_os_str()]),
        )
        .ok();
        let pid = way.server().expect("somebody serves");
        let mut program = Program::new(way, python);
        program.ok("fs = [os.open(mnt + '/' + n, os.O_RDWR) for n in ('a.npy', 'z.npy')]");
        program.ok("ms = [mmap.mmap(f, 0) for f in fs]; at = len(ms[0]) - 800_000");
        program.ok("new = os.open(mnt + '/new.npy', os.O_CREAT | os.O_RDWR); os.write(new, ms[0][:4000])");
        program.ok("half = os.open(mnt + '/half.npy', os.O_CREAT | os.O_RDWR); os.write(half, ms[0][:100])");
        program.ok("for f in fs: os.pwrite(f, (-1).to_bytes(8, 'little', signed=True), at + 80)");
        signal(pid, Signal::TERM);
        soon("the end of the mountpoint", || !way.is_mounted());
        assert!(fs::read_dir(&way.mnt).unwrap().next().is_none(), "the mountpoint is an empty folder again");
        assert!(is_running(pid), "what is open is served");
        // All that has it open goes on, and is told nothing wrong.
        program.ok("for m in ms: m[at + 160:at + 168] = (-2).to_bytes(8, 'little', signed=True)");
        program.ok("for f in fs: os.pwrite(f, (-3).to_bytes(8, 'little', signed=True), at + 240)");
        program.ok("os.write(new, ms[0][4000:])");
        program.ok("for f in [*fs, new, half]: os.close(f)");
        program.ok("for m in ms: m.close()");
        soon("the end of the serving process", || !is_running(pid));
        program.kill();
        let said = fs::read_to_string(&log).unwrap();
        for words in
            ["signal 15: unmounting", "is in use; it is out of sight now", "half.npy: was no whole .npy file"]
        {
            assert!(said.contains(words), "{words:?} is missing in {said}");
        }
        for name in ["a", "z"] {
            let found = stored(way, name);
            assert_eq!((found[10], found[20], found[30], found[40]), (-1, -2, -3, 40), "{name}");
        }
        // Written in part before the end of the mountpoint, and whole after it.
        assert_eq!(stored(way, "new").len(), 100_000);
        assert_eq!(files_below(&way.place.store.join("lost+found")), ["half.npy"]);
    });
}

#[test]
fn a_store_that_is_removed_leaves_clear_errors() {
    each_store(|way| {
        let python = match shared_python() {
            Ok(python) => python,
            Err(reason) => return eprintln!("SKIPPED: {reason}"),
        };
        let _unmount = way.mount();
        let pid = way.server().expect("somebody serves");
        let mut program = Program::new(way, python);
        program.ok("f = open(mnt + '/a.npy', 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); data = m[:]");
        program.ok("new = open(mnt + '/new.npy', 'wb', 0); new.write(data[:60])");
        fs::remove_dir_all(&way.place.store).unwrap();
        program.ok("assert os.pread(f.fileno(), len(data), 0) == data == m[:]");
        let io = format!("errno {}", libc::EIO);
        for call in [
            "open(mnt + '/b.npy', 'rb')",
            "os.listdir(mnt)",
            "os.remove(mnt + '/a.npy')",
            "os.mkdir(mnt + '/g')",
            "os.rename(mnt + '/a.npy', mnt + '/b.npy')",
            "open(mnt + '/x', 'wb')",
        ] {
            assert_eq!(program.tell(call), io, "{call}");
        }
        let answer = program.tell("new.write(data[60:]); new.close()");
        assert!(answer.starts_with("errno "), "{answer}");
        assert!(is_running(pid));
        program.kill();
        way.umount().ok();
        assert!(!way.is_mounted() && !is_running(pid));
    });
}

const CLIENT: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void check(int ok, const char *what) { if (!ok) { perror(what); exit(1); } }

/* Reads an array, sums it up in a mapping, doubles it in place, and writes a copy of it under another name. */
int main(int argc, char **argv) {
    struct stat st;
    int in = open(argv[1], O_RDWR);
    check(in >= 0 && fstat(in, &st) == 0, "open");
    char *map = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, in, 0);
    check(map != MAP_FAILED, "mmap");
    long header = 10 + (unsigned char)map[8] + 256 * (unsigned char)map[9], sum = 0;
    long n = (st.st_size - header) / 8;
    long *elements = (long *)(map + header);
    for (long i = 0; i < n; i++) { sum += elements[i]; elements[i] *= 2; }
    check(msync(map, st.st_size, MS_SYNC) == 0, "msync");
    int out = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0644);
    check(out >= 0, "creat");
    for (long done = 0; done < st.st_size;) {
        long len = st.st_size - done < 1000 ? st.st_size - done : 1000;
        len = write(out, map + done, len);
        check(len > 0, "write");
        done += len;
    }
    check(close(out) == 0, "close");
    char *bytes = malloc(st.st_size);
    in = open(argv[2], O_RDONLY);
    check(in >= 0 && read(in, bytes, st.st_size) == st.st_size && memcmp(bytes, map, st.st_size) == 0, "read");
    printf("%ld\n", sum);
    return argc != 3;
}
"#;

#[test]
fn programs_that_know_only_open_read_write_and_mmap_live_in_a_mount() {
    each_way(|way| {
        let source = way.place.write("client.c", CLIENT.as_bytes());
        let client = way.place.path("client");
        match std::process::Command::new("cc").args(["-O1", "-o"]).args([&client, &source]).status() {
            Ok(status) => assert!(status.success()),
            Err(error) => return eprintln!("SKIPPED: no C compiler: {error}"),
        }
        for options in ["compress=off", "compress=zstd"] {
            way.make_store(&[("a", numbers(50_000, 1))]);
            if options == "compress=zstd" {
                npkfs!["recompress", &way.place.store, "a"].ok();
                chown_all(way);
            }
            let (ran, _unmount) = way.mount_with(options);
            ran.ok();
            let mut command = way.other_command(client.to_str().unwrap());
            let ran = command.args([way.mnt.join("a.npy"), way.mnt.join("b.npy")]).output().unwrap();
            assert!(ran.status.success(), "{ran:?}");
            assert_eq!(ran.stdout, b"1250025000\n");
            way.umount().ok();
            let doubled: Vec<i64> = (1..=50_000).map(|i| 2 * i).collect();
            assert!(stored(way, "a") == doubled && stored(way, "b") == doubled);
            fs::remove_dir_all(&way.place.store).unwrap();
        }
    });
}
