//! Arrays that get longer and shorter through real mounts, by programs that know files and no arrays: with passthrough
//! and without it, compressed and not.
#![cfg(feature = "fuse")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
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

/// All that an open file shows by different ways of looking at it.
#[track_caller]
fn assert_open_shows(mut file: &File, expected: &[u32]) {
    let len = HEADER_LEN + 4 * expected.len() as u64;
    assert_eq!((file.metadata().unwrap().len(), file.seek(SeekFrom::End(0)).unwrap()), (len, len));
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, len);
    assert!(
        bytes[HEADER_LEN as usize..] == expected.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>()
    );
    // The header of a file that is open follows rows that are appended.
    let shape = format!("({},)", expected.len());
    wait_until("the header follows", || {
        let mut header = [0; 200];
        file.read_exact_at(&mut header, 0).unwrap();
        String::from_utf8_lossy(&header).contains(&shape)
    });
}

#[test]
fn who_alone_has_a_file_open_that_he_shortens_sees_it_short() {
    each_way(|m| {
        let path = m.path("a.npy");
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let number = file.metadata().unwrap().ino();
        assert_open_shows(&file, &(0..1000).collect::<Vec<_>>());
        file.write_all_at(&numbers(7..8), HEADER_LEN + 4 * 998).unwrap();
        for len in [999, 500] {
            file.set_len(HEADER_LEN + 4 * u64::from(len)).unwrap();
            let mut expected: Vec<u32> = (0..len).collect();
            if len == 999 {
                expected[998] = 7;
            }
            assert_open_shows(&file, &expected);
            let by_name = m.values("a.npy").unwrap();
            assert!(by_name == expected, "{} rows", by_name.len());
        }
        // He goes on with it as with any file: behind its end, within, and to another length.
        let expected: Vec<u32> = (0..500).chain(2000..2003).collect();
        file.write_all_at(&numbers(2000..2003), HEADER_LEN + 4 * 500).unwrap();
        assert_open_shows(&file, &expected);
        file.set_len(HEADER_LEN + 4 * 505).unwrap();
        file.write_all_at(&numbers(9..10), HEADER_LEN).unwrap();
        let expected: Vec<u32> = [9].into_iter().chain(1..500).chain(2000..2003).chain([0; 2]).collect();
        assert_open_shows(&file, &expected);
        // What others append and write, he sees, too.
        append(&m.other, "a", 2, 3000);
        let expected: Vec<u32> = expected.into_iter().chain(3000..3002).collect();
        wait_until("the rows are seen", || file.metadata().unwrap().len() == HEADER_LEN + 4 * 507);
        assert_open_shows(&file, &expected);
        let stat = file.metadata().unwrap();
        assert_eq!((stat.ino(), stat.nlink()), (number, 1));
        drop(file);
        assert_eq!(m.values("a.npy").unwrap(), expected);
        m.other.refresh().unwrap();
        assert_eq!(m.other.array("a").unwrap().shape(), [507]);
    });
}

#[test]
fn who_shortens_a_file_that_others_have_open_leaves_them_what_they_see() {
    each_way(|m| {
        let path = m.path("a.npy");
        let all: Vec<u32> = (0..1000).collect();
        let mut mapper = Mapper::new(&path, "r+b");
        let reader = File::open(&path).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        file.set_len(HEADER_LEN + 400).unwrap();
        assert_shows(&path, 100);
        assert_open_shows(&reader, &all);
        assert_eq!(mapper.get(HEADER_LEN + 4 * 999), 999);
        // His own descriptor shows what theirs do, and takes nothing behind an end that is not the file's any more.
        assert_open_shows(&file, &all);
        assert_errno(file.write_all_at(&[0; 4], HEADER_LEN + 4000), libc::ESTALE);
        assert_errno(file.set_len(0), libc::ESTALE);
        let other = File::open(&path).unwrap();
        let again = OpenOptions::new().write(true).open(&path).unwrap();
        assert_errno(again.set_len(0), libc::EBUSY);
        drop(other);
        assert_shows(&path, 100);
    });
}

/// A `.npy` file of so many numbers from `first` on.
fn npy(first: u32, n: u32) -> Vec<u8> {
    let text = format!("{{'descr': '<u4', 'fortran_order': False, 'shape': ({n},)}}");
    let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    bytes.extend_from_slice(format!("{text:<117}\n").as_bytes());
    bytes.extend(numbers(first..first + n));
    bytes
}

#[test]
fn who_empties_a_file_by_his_descriptor_makes_a_new_version_of_it() {
    each_way(|m| {
        let path = m.path("a.npy");
        let open = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut file = open();
        file.set_len(0).unwrap();
        assert_eq!((file.metadata().unwrap().len(), file.seek(SeekFrom::End(0)).unwrap()), (0, 0));
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        let new = npy(50, 2000);
        // In pieces, with a length that is set, and looked at in between.
        file.write_all(&new[..1000]).unwrap();
        file.set_len(new.len() as u64).unwrap();
        file.write_all_at(&new[1000..], 1000).unwrap();
        let mut bytes = vec![0; new.len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == new);
        assert_eq!(file.metadata().unwrap().len(), new.len() as u64);
        m.other.refresh().unwrap();
        assert_eq!(
            m.other.array("a").unwrap().shape(),
            [1000],
            "the store has the old version until the end"
        );
        drop(file);
        wait_until("it is an array", || {
            m.other.refresh().unwrap();
            m.other.array("a").unwrap().shape() == [2000]
        });
        assert!(fs::read(&path).unwrap() == new);

        // What is no array is refused, and the old version kept.
        let python =
            "import sys\nf = open(sys.argv[1], 'r+b')\nf.truncate(0)\nf.write(b'no array')\nf.close()";
        let ran = std::process::Command::new("python3").args(["-c", python]).arg(&path).output().unwrap();
        assert!(String::from_utf8_lossy(&ran.stderr).contains("Errno 22"), "{ran:?}");
        assert_eq!(fs::read(&path).unwrap(), b"no array");
        m.other.refresh().unwrap();
        assert_eq!(m.other.array("a").unwrap().shape(), [2000]);
        // It can be put right, through a descriptor that appends.
        let newest = npy(1, 10);
        let mut file = to_append(&path);
        file.set_len(0).unwrap();
        file.write_all(&newest[..300.min(newest.len())]).unwrap();
        drop(file);
        wait_until("it is an array", || {
            m.other.refresh().unwrap();
            m.other.array("a").unwrap().shape() == [10]
        });
        let mut file = to_append(&path);
        file.set_len(0).unwrap();
        file.write_all(&new).unwrap();
        drop(file);
        wait_until("it is an array", || fs::read(&path).unwrap() == new);
        // By a path, nobody's descriptor is concerned.
        let by_path = "import os, sys\nos.truncate(sys.argv[1], 0)";
        let ran = std::process::Command::new("python3").args(["-c", by_path]).arg(&path).output().unwrap();
        assert!(ran.status.success(), "{ran:?}");
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        fs::write(&path, &newest).unwrap();
        wait_until("it is an array", || {
            m.other.refresh().unwrap();
            m.other.array("a").unwrap().shape() == [10]
        });
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
