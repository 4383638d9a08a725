//! Arrays that get longer and shorter through real mounts, by programs that know files and no arrays: with passthrough
//! and without it, compressed and not.
#![cfg(feature = "fuse")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::mounted::*;
use numpack::fuse::{MountOptions, PassthroughMode, mount};
use numpack::store::{Access, Compression, Store};
use numpack::sys::mounts;

fn each_way(test: impl Fn(&Mount)) {
    for mode in BOTH {
        for compression in [None, Some(Compression { block_len: 4096, ..Compression::default() })] {
            let options = MountOptions { passthrough: mode, ..MountOptions::default() };
            let filled = Mount::with(&options, |store| {
                save(store, "a", 1000, 0);
                store.recompress("a", compression.as_ref(), &mut |_| {}).unwrap();
            });
            let Some(m) = filled else { return };
            test(&m);
        }
    }
}

fn to_append(path: &Path) -> File {
    OpenOptions::new().append(true).open(path).unwrap()
}

/// All that the file shows by different ways of looking at it.
#[track_caller]
fn assert_shows(path: &Path, len: u32) {
    let expected: Vec<u32> = (0..len).collect();
    assert_eq!(fs::metadata(path).unwrap().len(), HEADER_LEN + 4 * u64::from(len));
    assert_eq!(values_of(&fs::read(path).unwrap()), expected);
}

#[test]
fn whole_rows_written_at_the_end_are_appended() {
    each_way(|m| {
        let path = m.path("a.npy");
        let mut reader = File::open(&path).unwrap();
        let mut mapper = Mapper::new(&path, "rb");
        let mut file = to_append(&path);
        let mut len = 1000;
        for n in [1, 3, 1023, 5000] {
            file.write_all(&numbers(len..len + n)).unwrap();
            len += n;
            // When the write returns, for who wrote, for who opens the file, and in the store.
            assert_eq!(file.metadata().unwrap().len(), HEADER_LEN + 4 * u64::from(len));
            assert_shows(&path, len);
            m.other.refresh().unwrap();
            assert_eq!(m.other.array("a").unwrap().shape(), [u64::from(len)]);
        }
        drop(file);
        // Who had it open before sees it as well.
        let mut bytes = Vec::new();
        reader.seek(SeekFrom::Start(HEADER_LEN)).unwrap();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, numbers(0..len));
        assert_eq!(mapper.get(HEADER_LEN + 4 * 999), 999);
        // As a shell does it, in pieces that are no rows.
        let rest = m.dir.path().join("rest");
        fs::write(&rest, numbers(len..len + 50_001)).unwrap();
        let script = "dd if=$0 bs=1021 status=none >>$1";
        let ran =
            std::process::Command::new("sh").args(["-ec", script]).args([&rest, &path]).output().unwrap();
        assert!(ran.status.success() && ran.stderr.is_empty(), "{ran:?}");
        assert_shows(&path, len + 50_001);
    });
}

#[test]
fn what_is_appended_can_be_mapped_and_written_at_once() {
    each_way(|m| {
        let path = m.path("a.npy");
        to_append(&path).write_all(&numbers(1000..3000)).unwrap();
        let mut mapper = Mapper::new(&path, "r+b");
        let last = HEADER_LEN + 4 * 2999;
        assert_eq!(mapper.get(last), 2999);
        mapper.tell(&format!("set {last} 7"));
        assert_eq!(mapper.tell("flush"), "None");
        assert_eq!(m.values("a.npy").unwrap()[2999], 7);
        let mut appending = to_append(&path);
        mapper.tell(&format!("set {last} 8"));
        appending.write_all(&numbers(3000..3001)).unwrap();
        mapper.tell("flush");
        let values = m.values("a.npy").unwrap();
        assert_eq!(values[2999..], [8, 3000]);
    });
}

#[test]
fn a_row_that_is_not_whole_is_an_error_of_close() {
    each_way(|m| {
        let path = m.path("a.npy");
        let rest = m.dir.path().join("rest");
        fs::write(&rest, &numbers(1000..1003)[..10]).unwrap();
        let ran = std::process::Command::new("sh")
            .args(["-c", "cat $0 >>$1"])
            .args([&rest, &path])
            .output()
            .unwrap();
        assert!(!ran.status.success(), "{ran:?}");
        assert!(String::from_utf8_lossy(&ran.stderr).contains("Invalid argument"), "{ran:?}");
        wait_until("the rest is dropped", || fs::metadata(&path).unwrap().len() == HEADER_LEN + 4 * 1002);
        assert_shows(&path, 1002);
        // Beside the rest that others read already, nothing is lost.
        let mut file = to_append(&path);
        file.write_all(&numbers(1002..1003)[..3]).unwrap();
        assert_eq!(file.metadata().unwrap().len(), HEADER_LEN + 4 * 1002 + 3);
        file.write_all(&numbers(1002..1003)[3..]).unwrap();
        drop(file);
        assert_shows(&path, 1003);
    });
}

#[test]
fn truncate_to_whole_rows_changes_the_rows() {
    each_way(|m| {
        let path = m.path("a.npy");
        let kept = File::open(&path).unwrap();
        let open = || OpenOptions::new().write(true).open(&path).unwrap();
        let truncate = |len: u64| open().set_len(HEADER_LEN + len);
        for (len, shown) in [(4 * 500, 500), (4 * 499, 499)] {
            truncate(len).unwrap();
            assert_shows(&path, shown);
        }
        for bad in [3, 4 * 499 + 1, 4 * 5000 + 2] {
            assert_errno(truncate(bad), libc::EINVAL);
        }
        assert_errno(open().set_len(0), libc::EINVAL);
        assert_shows(&path, 499);
        // Readers of before keep all rows.
        let mut bytes = vec![0; 4000];
        kept.read_exact_at(&mut bytes, HEADER_LEN).unwrap();
        assert_eq!(bytes, numbers(0..1000));
        drop(kept);
        truncate(4 * 600).unwrap();
        assert_eq!(m.values("a.npy").unwrap(), (0..499).chain([0; 101]).collect::<Vec<_>>());
        // As coreutils do it, by a descriptor.
        let ran = std::process::Command::new("truncate")
            .arg(format!("--size={}", HEADER_LEN + 40))
            .arg(&path)
            .output();
        assert!(ran.unwrap().status.success());
        assert_shows(&path, 10);
        m.other.refresh().unwrap();
        assert_eq!(m.other.array("a").unwrap().shape(), [10]);
    });
}

/// What a program does that appends to `.npy` files by itself: the rows, and then the header anew.
#[test]
fn programs_that_write_the_header_after_the_rows_may_do_so() {
    each_way(|m| {
        let path = m.path("a.npy");
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        file.write_all_at(&numbers(1000..1500), HEADER_LEN + 4000).unwrap();
        let text = "{'descr': '<u4', 'fortran_order': False, 'shape': (1500,)}";
        let mut header = b"\x93NUMPY\x01\x00\xf6\x0f".to_vec();
        header.extend_from_slice(format!("{text:<4085}\n").as_bytes());
        file.write_all_at(&header, 0).unwrap();
        drop(file);
        assert_shows(&path, 1500);
    });
}

/// Another mount of the store, until it is dropped.
struct Second(PathBuf);

impl Second {
    fn new(m: &Mount, name: &str, passthrough: PassthroughMode) -> Self {
        let path = m.dir.path().join(name);
        fs::create_dir(&path).unwrap();
        let store = Store::open(&m.store_path(), Access::Write).unwrap();
        drop(mount(store, &path, &MountOptions { passthrough, ..MountOptions::default() }).unwrap());
        Self(path)
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = mounts::unmount(&self.0, true);
    }
}

#[test]
fn those_who_append_through_two_mounts_and_the_api_lose_no_rows() {
    each_way(|m| {
        let second = Second::new(m, "second", PassthroughMode::Off);
        let paths = [m.path("a.npy"), second.0.join("a.npy")];
        const N: u32 = 60;
        std::thread::scope(|scope| {
            for (i, path) in paths.iter().enumerate() {
                scope.spawn(move || {
                    let mut file = to_append(path);
                    for n in 0..N {
                        // Three rows at once: nobody's come between them.
                        let value = 1_000_000 * (i as u32 + 1) + 3 * n;
                        file.write_all(&numbers(value..value + 3)).unwrap();
                    }
                });
            }
            for n in 0..N {
                append(&m.other, "a", 3, 3_000_000 + 3 * n);
            }
        });
        let values = m.values("a.npy").unwrap();
        assert_eq!(values, values_of(&fs::read(&paths[1]).unwrap()));
        assert_eq!(values[..1000], (0..1000).collect::<Vec<_>>());
        let rows: Vec<&[u32]> = values[1000..].chunks(3).collect();
        assert!(rows.iter().all(|row| row[1] == row[0] + 1 && row[2] == row[0] + 2), "{rows:?}");
        for i in 1..=3 {
            let own: Vec<u32> =
                rows.iter().map(|row| row[0]).filter(|value| value / 1_000_000 == i).collect();
            assert_eq!(own, (0..N).map(|n| 1_000_000 * i + 3 * n).collect::<Vec<_>>());
        }
    });
}
