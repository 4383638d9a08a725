//! Views in real mounts: the paragraphs of spec/npkfs-semantics.md on them, as programs see them through the kernel.
#![cfg(feature = "fuse")]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use common::mounted::*;
use common::zip;
use numpack::store::{Compression, Store};

const ALL: [&str; 2] = [".views/all.npz", ".views/all.safetensors"];

fn small_blocks() -> Compression {
    Compression { block_len: 4096, ..Compression::default() }
}

fn save_compressed(store: &Store, name: &str, len: u32, first: u32) {
    let data = numbers(first..first + len);
    store.save_as(&[(name, array(&[len.into()], &data))], Some(&small_blocks())).unwrap();
}

/// The arrays of a zip file of numbers, each with the checksum that it promises.
fn unzip(bytes: &[u8]) -> BTreeMap<String, Vec<u32>> {
    let read = |offset: u64, len: usize| bytes[offset as usize..][..len].to_vec();
    let members = zip::members(bytes.len() as u64, read).into_iter();
    members
        .map(|member| {
            let content = &bytes[member.start as usize..][..member.len as usize];
            assert_eq!(crc32fast::hash(content), member.crc, "{}", member.name);
            (member.name, values_of(content))
        })
        .collect()
}

fn raw(mount: &Mount, name: &str) -> io::Result<Vec<u32>> {
    let path = mount.path(&format!(".views/{name}.raw"));
    let bytes = fs::read(&path)?;
    assert_eq!(fs::metadata(&path)?.len(), bytes.len() as u64);
    Ok(bytes.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect())
}

fn has_program(name: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output().unwrap();
    if !found.status.success() {
        let _ = writeln!(io::stderr(), "SKIPPED: {name} is not installed");
    }
    found.status.success()
}

fn run(program: &str, args: &[&Path]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn views_are_files_for_programs_that_know_nothing_of_them() {
    for passthrough in BOTH {
        let Some(mount) = Mount::new(passthrough, |store| {
            save(store, "a", 100_000, 0);
            save_compressed(store, "g/z", 150_000, 7);
            (0..200).for_each(|i| save(store, &format!("small/{i}"), i, i));
        }) else {
            return;
        };
        let all = mount.path(ALL[0]);
        let script =
            "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); print(z.testzip(), len(z.namelist()))";
        assert_eq!(run("python3", &[Path::new("-c"), Path::new(script), &all]), "None 202\n");
        if has_program("unzip") {
            run("unzip", &[Path::new("-tq"), &all]);
        }
        let zipped = unzip(&fs::read(&all).unwrap());
        assert_eq!(zipped["g/z.npy"], (7..150_007).collect::<Vec<_>>());
        assert_eq!(raw(&mount, "small/150").unwrap(), (150..300).collect::<Vec<_>>());
        // Mapped, and at any offset.
        let mut mapped = Mapper::new(&mount.path(".views/g/z.raw"), "rb");
        assert_eq!((mapped.get(0), mapped.get(4 * 149_999)), (7, 150_006));
        let tensors = File::open(mount.path(ALL[1])).unwrap();
        let len = tensors.metadata().unwrap().len();
        let mut last = [0; 8];
        tensors.read_exact_at(&mut last, len - 8).unwrap();
        assert_eq!(u32::from_le_bytes(last[4..].try_into().unwrap()), 2 * 199 - 1);
    }
}

#[test]
fn the_folder_is_found_by_its_name_and_not_listed_in_the_root() {
    for passthrough in BOTH {
        let Some(mount) = Mount::new(passthrough, |store| {
            save(store, "a", 1000, 0);
            save(store, "g/b", 1000, 0);
        }) else {
            return;
        };
        let root = mount.path("");
        let views = mount.path(".views");
        assert!(fs::metadata(&views).unwrap().is_dir());
        let found = run("find", &[&root]);
        assert_eq!(found.lines().count(), 4, "{found}");
        assert!(!run("ls", &[Path::new("-a"), &root]).contains(".views"));
        assert_eq!(run("du", &[Path::new("-a"), &root]).lines().count(), 4);
        let archive = mount.dir.path().join("archive.tar");
        run("tar", &[Path::new("-cf"), &archive, Path::new("-C"), &root, Path::new(".")]);
        assert_eq!(run("tar", &[Path::new("-tf"), &archive]).lines().count(), 4);
        let copy = mount.dir.path().join("copy");
        run("cp", &[Path::new("-a"), &root, &copy]);
        assert_eq!(contents(&copy), contents(&root));
        let mut listed: Vec<_> =
            contents(&views).into_keys().map(|path| path.display().to_string()).collect();
        listed.sort_unstable();
        assert_eq!(listed, ["a.raw", "all.npz", "all.safetensors", "g", "g/b.raw"]);
        // Among them they can be copied.
        run("cp", &[Path::new("-r"), &views, &mount.dir.path().join("views")]);
        assert_eq!(contents(&mount.dir.path().join("views")), contents(&views));
    }
}

#[test]
fn a_view_that_is_opened_has_all_that_is_committed() {
    for passthrough in BOTH {
        for compressed in [false, true] {
            let Some(mount) = Mount::new(passthrough, |store| {
                if compressed {
                    save_compressed(store, "a", 5000, 0)
                } else {
                    save(store, "a", 5000, 0)
                }
                save(store, "b", 3, 0);
            }) else {
                return;
            };
            let mut expected: Vec<u32> = (0..5000).collect();
            // Nothing of what the kernel kept from before may show.
            let assert_shown = |expected: &Vec<u32>| {
                assert!(raw(&mount, "a").unwrap() == *expected);
                assert!(unzip(&fs::read(mount.path(ALL[0])).unwrap())["a.npy"] == *expected);
                let tensors = fs::read(mount.path(ALL[1])).unwrap();
                let start = 8 + u64::from_le_bytes(tensors[..8].try_into().unwrap()) as usize;
                assert!(tensors[start..][..4 * expected.len()] == numbers_of(expected));
            };
            assert_shown(&expected);
            for i in 0..20 {
                append(&mount.other, "a", 100, i);
                expected.extend(i..i + 100);
                assert_shown(&expected);
                mount.other.replace("a", &[u64::from(i)], array(&[1], &numbers(77..78))).unwrap();
                expected[i as usize] = 77;
                assert_shown(&expected);
            }
            mount.other.drop_rows(&["a"], &[0, 3000]).unwrap();
            expected.remove(3000);
            expected.remove(0);
            assert_shown(&expected);
            save(&mount.other, "a", 10, 5);
            expected = (5..15).collect();
            assert_shown(&expected);
            mount.other.remove(&["a"]).unwrap();
            assert_errno(raw(&mount, "a"), libc::ENOENT);
            assert_eq!(unzip(&fs::read(mount.path(ALL[0])).unwrap()).len(), 1);
        }
    }
}

fn numbers_of(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn what_is_written_through_the_mount_is_in_a_view_that_is_opened_then() {
    for passthrough in BOTH {
        let Some(mount) = Mount::new(passthrough, |store| {
            save(store, "plain", 5000, 0);
            save_compressed(store, "packed", 5000, 0);
        }) else {
            return;
        };
        for name in ["plain", "packed"] {
            let file = OpenOptions::new().write(true).open(mount.path(&format!("{name}.npy"))).unwrap();
            let mut expected: Vec<u32> = (0..5000).collect();
            for i in 0..10 {
                assert!(raw(&mount, name).unwrap() == expected);
                // It stays open: nothing says that whoever writes is done.
                file.write_all_at(&numbers(900 + i..901 + i), HEADER_LEN + 4000).unwrap();
                expected[1000] = 900 + i;
            }
            assert!(raw(&mount, name).unwrap() == expected);
            let mut mapped = Mapper::new(&mount.path(&format!("{name}.npy")), "r+b");
            mapped.tell(&format!("set {} 5", HEADER_LEN + 8000));
            mapped.tell("flush");
            expected[2000] = 5;
            assert!(raw(&mount, name).unwrap() == expected);
            let assert_zipped = |expected: &Vec<u32>| {
                let zipped = unzip(&fs::read(mount.path(ALL[0])).unwrap());
                assert!(zipped[&format!("{name}.npy")] == *expected);
            };
            assert_zipped(&expected);
            // What a mapping changes that was changed before leaves no trace in the data file's time.
            for i in 0..if mount.passes_through("plain.npy") && name == "plain" { 10 } else { 0 } {
                mapped.tell(&format!("set {} {i}", HEADER_LEN + 8000));
                expected[2000] = i;
                assert!(raw(&mount, name).unwrap() == expected);
                assert_zipped(&expected);
            }
        }
        // An array that is made has views when its file is closed.
        fs::write(mount.path("new.npy"), mount.stored("plain").unwrap()).unwrap();
        assert_eq!(raw(&mount, "new").unwrap(), raw(&mount, "plain").unwrap());
    }
}

/// Two arrays that are always saved together, with so many numbers from the same one on.
fn save_pair(store: &Store, len: u32, first: u32) {
    let data = numbers(first..first + len);
    store.save(&[("x", array(&[len.into()], &data)), ("y", array(&[len.into()], &data))]).unwrap();
}

#[test]
fn who_has_a_view_open_reads_one_version_while_writers_go_on() {
    for passthrough in BOTH {
        let Some(mount) = Mount::new(passthrough, |store| {
            save_pair(store, 100_000, 0);
            save_compressed(store, "z", 100_000, 0);
        }) else {
            return;
        };
        let expected: Vec<u32> = (0..100_000).collect();
        let mut opened: Vec<File> =
            [ALL[0], ".views/x.raw", ".views/z.raw"].map(|path| File::open(mount.path(path)).unwrap()).into();
        let mapped = Mapper::new(&mount.path(".views/y.raw"), "rb");
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut n = 0;
                while !is_done.load(Ordering::Relaxed) {
                    n += 1;
                    save_pair(&mount.other, 1000 + n, n);
                    append(&mount.other, "z", 10, n);
                    mount.other.drop_rows(&["z"], &[0]).unwrap();
                    if n % 7 == 0 {
                        mount.other.compact("z").unwrap();
                        save(&mount.other, &format!("new/{n}"), 3, n);
                    }
                }
                n
            });
            // Who opens it now finds one version, too.
            for _ in 0..30 {
                let zipped = unzip(&fs::read(mount.path(ALL[0])).unwrap());
                assert!(zipped["x.npy"] == zipped["y.npy"]);
            }
            is_done.store(true, Ordering::Relaxed);
            assert!(writer.join().unwrap() > 0);
        });
        let mut bytes = Vec::new();
        opened[0].read_to_end(&mut bytes).unwrap();
        let zipped = unzip(&bytes);
        assert!(zipped.len() == 3 && zipped.values().all(|values| *values == expected));
        for file in &mut opened[1..] {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            assert!(bytes == numbers_of(&expected));
            assert_eq!(file.metadata().unwrap().len(), 400_000);
        }
        let mut mapped = mapped;
        assert_eq!(mapped.tell("sum 0"), (0..100_000_u64).sum::<u64>().to_string());
    }
}

#[test]
fn nothing_of_a_view_can_be_changed() {
    for passthrough in BOTH {
        let Some(mount) = Mount::new(passthrough, |store| {
            save(store, "a", 10, 0);
            save(store, "g/b", 10, 0);
        }) else {
            return;
        };
        // Whom permissions do not stop hears that nothing can be written here.
        let is_refused = |result: io::Result<()>, what: &str| {
            let errno = result.expect_err(what).raw_os_error().unwrap();
            assert!([libc::EROFS, libc::EACCES].contains(&errno), "{what}: {errno}");
        };
        for path in [ALL[0], ALL[1], ".views/a.raw", ".views/g/b.raw", ".views/new", ".views/g/new.npy"] {
            let path = mount.path(path);
            let what = path.display().to_string();
            let exists = path.exists();
            for flags in [0, libc::O_TRUNC, libc::O_APPEND, libc::O_CREAT, libc::O_CREAT | libc::O_TRUNC] {
                let is_made = flags & libc::O_CREAT != 0;
                for write in [true, false] {
                    if !exists && !is_made || exists && !write && flags & libc::O_TRUNC == 0 {
                        continue;
                    }
                    is_refused(open_with(&path, write, flags).map(drop), &what);
                }
            }
            let other = mount.path("a.npy");
            is_refused(fs::rename(&other, &path), &what);
            if exists {
                is_refused(fs::remove_file(&path), &what);
                is_refused(fs::rename(&path, mount.path("b.npy")), &what);
                is_refused(fs::set_permissions(&path, PermissionsExt::from_mode(0o666)), &what);
                assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o444);
            } else {
                is_refused(fs::create_dir(&path), &what);
                is_refused(fs::hard_link(&other, &path), &what);
                is_refused(std::os::unix::fs::symlink("x", &path), &what);
            }
        }
        for folder in [".views", ".views/g"] {
            is_refused(fs::remove_dir(mount.path(folder)), folder);
        }
        assert_errno(fs::create_dir(mount.path(".views")), libc::EEXIST);
        assert_eq!(raw(&mount, "a").unwrap(), (0..10).collect::<Vec<_>>());
    }
}

/// Opens with any flags: the standard library has an opinion of its own on which belong together.
fn open_with(path: &Path, write: bool, flags: i32) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    let flags = access | OFlags::from_bits_retain(flags as u32);
    Ok(rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?.into())
}

#[test]
fn ten_thousand_arrays_are_in_a_view() {
    let Some(mount) = Mount::new(BOTH[1], |store| {
        let names: Vec<String> = (0..10_000).map(|i| format!("g{}/{i}", i % 10)).collect();
        let data = numbers(0..256);
        let arrays: Vec<_> = names.iter().map(|name| (&**name, array(&[256], &data))).collect();
        store.save(&arrays).unwrap();
    }) else {
        return;
    };
    let zipped = unzip(&fs::read(mount.path(ALL[0])).unwrap());
    assert_eq!(zipped.len(), 10_000);
    assert!(zipped.values().all(|values| values.len() == 256 && values[255] == 255));
    let tensors = fs::read(mount.path(ALL[1])).unwrap();
    let start = 8 + u64::from_le_bytes(tensors[..8].try_into().unwrap()) as usize;
    assert_eq!(tensors.len() - start, 10_000 * 1024);
    assert_eq!(fs::read_dir(mount.path(".views/g3")).unwrap().count(), 1000);
}
