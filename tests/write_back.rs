//! Compressed arrays through a mount, without a kernel: the paragraphs of spec/npkfs-semantics.md on them.

mod common;

use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::fixture::*;
use common::{FaultyStorage, MemStorage};
use numpack::fs::{Fh, FsError, Ino, Invalidation, Rename, SetAttr, Written};
use numpack::store::{Access, Compression, Store};

const PAGE: u64 = 4096;

/// Blocks of four pages.
fn small_blocks() -> Compression {
    Compression { block_len: 4 * 4096, ..Compression::default() }
}

/// Numbers from `first` on, in rows of 1024: one page each.
fn save_pages(store: &Store, name: &str, n_pages: u32, first: u32) {
    let data = numbers(first..first + 1024 * n_pages);
    store.save_as(&[(name, array(&[n_pages.into(), 1024], &data))], Some(&small_blocks())).unwrap();
}

fn read_at(f: &Fixture, fh: Fh, offset: u64, len: u32) -> Vec<u8> {
    f.fs.read(fh, offset, len, <[u8]>::to_vec).unwrap()
}

/// What the notifier stores into the kernel's page cache.
fn stored(f: &Fixture) -> Vec<(Ino, u64, Vec<u8>)> {
    let mut stored = Vec::new();
    for told in f.told() {
        if let Invalidation::Pages { ino, block } = told {
            let store = |offset, bytes: &[u8]| {
                stored.push((ino, offset, bytes.to_vec()));
                Ok::<_, ()>(())
            };
            f.fs.store_pages(ino, block, store).unwrap();
        }
    }
    stored
}

/// An array of so many blocks that those that are read in part cannot all be kept.
const MANY_BLOCKS: u32 = 400;

// Reading

#[test]
fn a_compressed_array_is_a_file_like_any_other() {
    let data = numbers(0..40_000);
    let shape = [100, 400];
    let f = Fixture::with(
        |store| {
            store.save(&[("plain", array(&shape, &data))]).unwrap();
            store.save_as(&[("a", array(&shape, &data))], Some(&small_blocks())).unwrap();
        },
        false,
    );
    let plain = f.read_path("plain.npy");
    assert_eq!(f.read_path("a.npy"), plain);
    let opened = f.open("a.npy", READ).unwrap();
    for (offset, len) in
        [(0, 10), (4090, 20), (4096, 16_384), (20_000, 100_000), (150_000, 50_000), (170_000, 1)]
    {
        let from = (offset as usize).min(plain.len());
        let to = (from + len as usize).min(plain.len());
        assert_eq!(read_at(&f, opened.fh, offset, len), plain[from..to], "{offset} {len}");
    }
    f.other.drop_rows(&["plain", "a"], &[0, 3, 4, 50, 99]).unwrap();
    assert_eq!(f.read_path("a.npy"), f.read_path("plain.npy"));
    assert_eq!(f.read(opened.fh), plain);
    append(&f.other, "plain", 0, 0, 400);
    append(&f.other, "a", 30, 7, 400);
    append(&f.other, "plain", 30, 7, 400);
    assert_eq!(f.read_path("a.npy"), f.read_path("plain.npy"));
}

fn append(store: &Store, name: &str, n_rows: u32, first: u32, row_len: u32) {
    let data = numbers(first..first + n_rows * row_len);
    store.append(&[(name, array(&[n_rows.into(), row_len.into()], &data))]).unwrap();
}

#[test]
fn st_blocks_is_what_the_disk_holds() {
    let f = Fixture::with(|store| save_pages(store, "a", 1000, 0), false);
    let attr = f.lookup("a.npy").unwrap();
    let file = f.path.join(f.other.array("a").unwrap().file_name());
    let data = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&file).unwrap());
    assert_eq!((attr.size, attr.blocks), (PAGE + 1000 * PAGE, data));
    assert!(attr.blocks < attr.size / 512 / 2);
}

#[test]
fn each_block_is_decoded_once() {
    let f = Fixture::with(|store| save_pages(store, "a", 64, 0), false);
    let opened = f.open("a.npy", READ).unwrap();
    // Requests that begin and end within blocks.
    let mut bytes = Vec::new();
    for i in 0..22 {
        bytes.extend(read_at(&f, opened.fh, i * 3 * PAGE, 3 * PAGE as u32));
    }
    assert_eq!(values_of(&bytes), (0..64 * 1024).collect::<Vec<_>>());
    assert_eq!(f.fs.n_decoded_blocks(), 16);
    assert!(f.told().is_empty());
}

#[test]
fn what_was_not_asked_for_is_given_to_the_kernel() {
    let f = Fixture::with(|store| save_pages(store, "a", 4 * MANY_BLOCKS, 0), false);
    let opened = f.open("a.npy", READ).unwrap();
    let page = |n: u64| PAGE + n * PAGE;
    let mut missing: std::collections::BTreeSet<u64> = (0..4 * u64::from(MANY_BLOCKS)).collect();
    for block in 0..u64::from(MANY_BLOCKS) {
        let n = 4 * block + block % 4;
        let expected = numbers(n as u32 * 1024..(n as u32 + 1) * 1024);
        assert_eq!(read_at(&f, opened.fh, page(n), PAGE as u32), expected);
        assert!(missing.remove(&n));
        for (_, offset, bytes) in stored(&f) {
            for (n, bytes) in (offset / PAGE - 1..).zip(bytes.chunks(PAGE as usize)) {
                assert_eq!(bytes, numbers(n as u32 * 1024..(n as u32 + 1) * 1024));
                assert!(missing.remove(&n), "{n} was given already");
            }
        }
    }
    // The last ones are kept for the next request.
    assert!(missing.len() < 4 << 10, "{}", missing.len());
    for n in missing {
        read_at(&f, opened.fh, page(n), PAGE as u32);
    }
    assert_eq!(f.fs.n_decoded_blocks(), u64::from(MANY_BLOCKS));
}

#[test]
fn nothing_is_given_to_the_kernel_that_may_have_changed() {
    let f = Fixture::with(|store| save_pages(store, "a", 4 * MANY_BLOCKS, 0), false);
    let read_some = |fh| {
        for block in 0..u64::from(MANY_BLOCKS) {
            read_at(&f, fh, PAGE + 4 * block * PAGE, PAGE as u32);
        }
    };
    let reader = f.open("a.npy", READ).unwrap();
    read_some(reader.fh);
    // Blocks are on their way. Somebody who opens the file for writing must wait for them.
    let writer = f.open("a.npy", WRITE).unwrap();
    assert!(!writer.settled);
    assert_eq!(stored(&f), []);
    assert!(f.open("a.npy", WRITE).unwrap().settled);

    let f = Fixture::with(|store| save_pages(store, "a", 4 * MANY_BLOCKS, 0), false);
    let reader = f.open("a.npy", READ).unwrap();
    for block in 0..u64::from(MANY_BLOCKS) {
        read_at(&f, reader.fh, PAGE + 4 * block * PAGE, PAGE as u32);
    }
    f.other.replace_range("a", 0..1, array(&[1, 1024], &numbers(5000..6024))).unwrap();
    f.fs.sync().unwrap();
    let told = f.told();
    assert!(told.iter().any(|told| matches!(told, Invalidation::Pages { .. })));
    assert!(matches!(told.last(), Some(Invalidation::Content { .. })), "{told:?}");
    for told in told {
        match told {
            Invalidation::Pages { ino, block } => {
                f.fs.store_pages(ino, block, |_, _| Err("stored")).unwrap();
            }
            Invalidation::Content { ino, .. } => {
                f.fs.show_length(ino);
                f.fs.settle(ino);
            }
            _ => {}
        }
    }
    assert_eq!(read_at(&f, reader.fh, PAGE, PAGE as u32), numbers(5000..6024));
}

#[test]
fn pages_that_lie_in_two_blocks_are_decoded_once_too() {
    // A header of 128 bytes, so that each block begins and ends within a page.
    let n_pages = 4 * MANY_BLOCKS;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.npy");
    let npy = write_npy(&file, &[1024 * u64::from(n_pages)], &numbers(0..1024 * n_pages));
    let f = Fixture::with(
        |store| store.import_npy("a", &file, false, Some(&small_blocks()), &mut |_| ()).unwrap(),
        false,
    );
    let opened = f.open("a.npy", READ).unwrap();
    let mut bytes = Vec::new();
    while bytes.len() < npy.len() {
        bytes.extend(read_at(&f, opened.fh, bytes.len() as u64, 3 * PAGE as u32));
    }
    assert!(bytes == npy);
    assert_eq!(f.fs.n_decoded_blocks(), u64::from(MANY_BLOCKS));
    f.fs.release(opened.fh);

    // One page at a time, in an order of no use, of which some lie in two blocks.
    let f = Fixture::with(
        |store| store.import_npy("a", &file, false, Some(&small_blocks()), &mut |_| ()).unwrap(),
        false,
    );
    let opened = f.open("a.npy", READ).unwrap();
    let n_pages = u64::from(n_pages) + 1;
    let mut missing: std::collections::BTreeSet<u64> = (0..n_pages).collect();
    for i in 0..n_pages {
        let page = i * 997 % n_pages;
        let there = |page: u64| &npy[(page * PAGE) as usize..((page * PAGE + PAGE) as usize).min(npy.len())];
        if missing.remove(&page) {
            assert!(read_at(&f, opened.fh, page * PAGE, PAGE as u32) == there(page));
        }
        for (_, offset, bytes) in stored(&f) {
            for (page, bytes) in (offset / PAGE..).zip(bytes.chunks(PAGE as usize)) {
                assert!(bytes == there(page), "page {page}");
                missing.remove(&page);
            }
        }
    }
    assert!(missing.is_empty());
    assert_eq!(f.fs.n_decoded_blocks(), u64::from(MANY_BLOCKS));
}

// Writing

/// Writes numbers in place, from number `at` on.
fn write_at(f: &Fixture, fh: Fh, at: u64, range: Range<u32>) -> Result<Written, FsError> {
    f.fs.write(fh, PAGE + 4 * at, &numbers(range), false)
}

/// What the other handle of the store reads.
fn stored_values(f: &Fixture, name: &str) -> Vec<u32> {
    f.other.refresh().unwrap();
    let array = f.other.array(name).unwrap();
    let mut bytes = vec![0; array.nbytes() as usize];
    array.read_into(&mut bytes).unwrap();
    bytes.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// As [`save_pages`], and what the elements are.
fn pages(n_pages: u32) -> (Fixture, Vec<u32>) {
    let f = Fixture::with(|store| save_pages(store, "a", n_pages, 0), false);
    (f, (0..1024 * n_pages).collect())
}

fn put(all: &mut [u32], at: usize, range: Range<u32>) {
    let len = range.len();
    all[at..at + len].copy_from_slice(&range.collect::<Vec<_>>());
}

#[test]
fn what_is_written_is_seen_at_once_and_committed_together() {
    let (f, mut all) = pages(64);
    let before = all.clone();
    let writer = f.open("a.npy", WRITE).unwrap();
    let generation = f.other.generation();
    assert_eq!(write_at(&f, writer.fh, 10, 7000..7005).unwrap(), Written::First);
    put(&mut all, 10, 7000..7005);
    // Small ones, large ones, those that overlap, in and across blocks.
    for (at, range) in [(12, 1..2), (5000, 0..6000), (11_000, 3..4), (4090, 9..20), (65_535, 5..6), (0, 8..9)]
    {
        assert_eq!(write_at(&f, writer.fh, at, range.clone()).unwrap(), Written::Done);
        put(&mut all, at as usize, range);
        assert_eq!(values_of(&f.read(writer.fh)), all);
        assert_eq!(f.values("a.npy"), all);
    }
    assert!(f.fs.is_uncommitted(writer.fh) && f.fs.has_uncommitted());
    assert_eq!(stored_values(&f, "a"), before);
    let ino = f.lookup("a.npy").unwrap().ino;
    f.fs.commit(ino).unwrap();
    assert!(!f.fs.is_uncommitted(writer.fh) && !f.fs.has_uncommitted());
    assert_eq!(stored_values(&f, "a"), all);
    assert_eq!(f.other.generation().0, generation.0 + 1);
    assert_eq!(values_of(&f.read(writer.fh)), all);
    // What the kernel has in its pages is what was written.
    f.fs.sync().unwrap();
    let told = f.told();
    assert!(told.iter().all(|told| matches!(told, Invalidation::Attr { .. })), "{told:?}");
    // Nothing is left to commit.
    f.fs.commit_all().unwrap();
    f.fs.commit_due();
    f.other.refresh().unwrap();
    assert_eq!(f.other.generation().0, generation.0 + 1);
}

#[test]
fn reading_beside_a_writer_sees_both() {
    let (f, mut all) = pages(64);
    let writer = f.open("a.npy", WRITE).unwrap();
    let page = |n: u64| read_at(&f, writer.fh, PAGE + n * PAGE, PAGE as u32);
    // A block that is kept, because only a part of it was asked for.
    page(0);
    write_at(&f, writer.fh, 1024, 50..60).unwrap();
    put(&mut all, 1024, 50..60);
    assert_eq!(page(1)[..40], numbers(50..60));
    page(4);
    write_at(&f, writer.fh, 5 * 1024, 70..80).unwrap();
    f.fs.commit_all().unwrap();
    assert_eq!(page(5)[..40], numbers(70..80));
    f.other.replace_range("a", 6..7, array(&[1, 1024], &numbers(0..1024))).unwrap();
    f.fs.sync().unwrap();
    f.carry_out();
    assert_eq!(page(6), numbers(0..1024));
}

#[test]
fn fsync_of_a_compressed_array_means_on_the_disk() {
    let mem = MemStorage::new();
    let other = Store::create_in(Box::new(mem.clone())).unwrap();
    save_pages(&other, "a", 64, 0);
    let store = Store::with_storage(Box::new(mem.clone()), Access::Write).unwrap();
    let f = Fixture::over(other, store, false);
    let writer = f.open("a.npy", WRITE).unwrap();
    let mut all: Vec<u32> = (0..64 * 1024).collect();
    let after_power_loss = || {
        let store = Store::with_storage(Box::new(mem.after_power_loss(&mut || false)), Access::Read).unwrap();
        let array = store.array("a").unwrap();
        let mut bytes = vec![0; array.nbytes() as usize];
        array.read_into(&mut bytes).unwrap();
        bytes
    };
    for i in 0..10 {
        write_at(&f, writer.fh, 6000 * i, 40..400).unwrap();
        put(&mut all, 6000 * i as usize, 40..400);
        f.fs.fsync(writer.fh).unwrap();
        let expected: Vec<u8> = all.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(after_power_loss(), expected);
    }
}

#[test]
fn what_others_write_beside_it_survives() {
    let (f, mut all) = pages(64);
    let writer = f.open("a.npy", WRITE).unwrap();
    // In the same block, the same page even; rows are appended as well.
    write_at(&f, writer.fh, 100, 7000..7100).unwrap();
    put(&mut all, 100, 7000..7100);
    f.other.replace_range("a", 1..2, array(&[1, 1024], &numbers(5000..6024))).unwrap();
    put(&mut all, 1024, 5000..6024);
    let more = numbers(0..2048);
    f.other.append(&[("a", array(&[2, 1024], &more))]).unwrap();
    all.extend(0..2048);
    f.fs.sync().unwrap();
    f.carry_out();
    assert_eq!(values_of(&f.read(writer.fh)), all);
    write_at(&f, writer.fh, 64 * 1024 + 2040, 1..9).unwrap();
    put(&mut all, 64 * 1024 + 2040, 1..9);
    f.fs.commit_all().unwrap();
    assert_eq!(stored_values(&f, "a"), all);
    assert_eq!(values_of(&f.read(writer.fh)), all);
}

#[test]
fn a_second_mount_of_the_store_sees_what_the_first_commits() {
    let (f, mut all) = pages(64);
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let second = numpack::fs::Fs::new(Store::open(&f.path, Access::Write).unwrap(), false, move |what| {
        tell.lock().unwrap().push(what);
    })
    .unwrap();
    let ino = second.lookup(Ino::ROOT, "a.npy".as_ref(), CALLER).unwrap().ino;
    let there = second.open(ino, WRITE, CALLER).unwrap();
    second.revalidate(ino);
    let here = f.open("a.npy", WRITE).unwrap();
    for i in 0..20 {
        write_at(&f, here.fh, 3000 * i, 10..20).unwrap();
        put(&mut all, 3000 * i as usize, 10..20);
        second.write(there.fh, PAGE + 4 * (3000 * i + 50), &numbers(30..40), false).unwrap();
        put(&mut all, 3000 * i as usize + 50, 30..40);
        if i % 3 == 0 {
            f.fs.commit_all().unwrap();
        }
        if i % 4 == 0 {
            second.commit_all().unwrap();
        }
    }
    f.fs.commit_all().unwrap();
    second.commit_all().unwrap();
    f.fs.sync().unwrap();
    second.sync().unwrap();
    let content =
        |told: &[Invalidation]| told.iter().any(|told| matches!(told, Invalidation::Content { .. }));
    assert!(content(&f.told()) && content(&told.lock().unwrap()));
    assert_eq!(stored_values(&f, "a"), all);
    assert_eq!(f.values("a.npy"), all);
    let bytes = second.read(there.fh, PAGE, 4 * 65_536, <[u8]>::to_vec).unwrap();
    assert_eq!(bytes, all.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
}

#[test]
fn a_version_that_is_gone_is_written_for_those_who_have_it_open() {
    for overwrite in [true, false] {
        let (f, mut all) = pages(64);
        let writer = f.open("a.npy", WRITE).unwrap();
        let reader = f.open("a.npy", READ).unwrap();
        write_at(&f, writer.fh, 0, 500..600).unwrap();
        if overwrite {
            save_pages(&f.other, "a", 3, 9);
        } else {
            f.other.remove(&["a"]).unwrap();
        }
        f.fs.sync().unwrap();
        write_at(&f, writer.fh, 30_000, 500..600).unwrap();
        put(&mut all, 0, 500..600);
        put(&mut all, 30_000, 500..600);
        f.fs.commit_all().unwrap();
        assert!(!f.fs.has_uncommitted());
        assert_eq!(values_of(&f.read(reader.fh)), all);
        if overwrite {
            assert_eq!(f.values("a.npy"), (9..9 + 3 * 1024).collect::<Vec<_>>());
        }
    }
}

#[test]
fn names_change_after_what_was_written_is_committed() {
    let (f, mut all) = pages(64);
    let writer = f.open("a.npy", WRITE).unwrap();
    write_at(&f, writer.fh, 7, 0..9).unwrap();
    put(&mut all, 7, 0..9);
    f.rename("a.npy", "b.npy", Rename::Replace).unwrap();
    assert!(!f.fs.has_uncommitted());
    assert_eq!(stored_values(&f, "b"), all);
    // Somebody else renames it before the mount has seen that.
    write_at(&f, writer.fh, 2000, 0..9).unwrap();
    put(&mut all, 2000, 0..9);
    f.other.rename("b", "c", false).unwrap();
    f.fs.commit_all().unwrap();
    assert_eq!(stored_values(&f, "c"), all);
    assert_eq!(f.values("c.npy"), all);
    write_at(&f, writer.fh, 4000, 0..9).unwrap();
    put(&mut all, 4000, 0..9);
    f.unlink("c.npy").unwrap();
    assert!(!f.fs.has_uncommitted());
    assert_eq!(values_of(&f.read(writer.fh)), all);
}

#[test]
fn views_with_rows_dropped_are_written_too() {
    let (f, mut all) = pages(64);
    let whole = f.open("a.npy", WRITE).unwrap();
    f.other.drop_rows(&["a"], &[0, 5]).unwrap();
    let rest = f.open("a.npy", WRITE).unwrap();
    assert_ne!(whole.fh, rest.fh);
    f.carry_out();
    write_at(&f, rest.fh, 0, 60..70).unwrap();
    write_at(&f, rest.fh, 4 * 1024 - 5, 0..10).unwrap();
    put(&mut all, 1024, 60..70);
    put(&mut all, 5 * 1024 - 5, 0..5);
    put(&mut all, 6 * 1024, 5..10);
    f.fs.commit_all().unwrap();
    let told = f.carry_out();
    assert!(told.iter().any(|told| matches!(told, Invalidation::Content { .. })), "{told:?}");
    assert_eq!(values_of(&f.read(whole.fh)), all);
    write_at(&f, whole.fh, 7 * 1024, 80..90).unwrap();
    put(&mut all, 7 * 1024, 80..90);
    f.fs.commit_all().unwrap();
    f.carry_out();
    all.drain(5 * 1024..6 * 1024);
    all.drain(..1024);
    assert_eq!(f.values("a.npy"), all);
    assert_eq!(values_of(&f.read(rest.fh)), all);
}

#[test]
fn header_and_end_are_as_of_other_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.npy");
    write_npy(&file, &[1024], &numbers(0..1024));
    let f = Fixture::with(
        |store| store.import_npy("a", &file, false, Some(&small_blocks()), &mut |_| ()).unwrap(),
        false,
    );
    let writer = f.open("a.npy", WRITE).unwrap();
    let reader = f.open("a.npy", READ).unwrap();
    assert_errno(f.fs.write(reader.fh, 128, &[0; 4], false), libc::EBADF);
    assert_errno(f.fs.write(writer.fh, 0, &[0; 8], false), libc::EPERM);
    assert_errno(f.fs.write(writer.fh, 120, &[0; 16], false), libc::EPERM);
    for (offset, len) in [(4225, 1), (4228, 8), (u64::MAX, 1)] {
        assert_errno(f.fs.write(writer.fh, offset, &vec![1; len], false), libc::EFBIG);
    }
    assert!(!f.fs.has_uncommitted());
    // Pages bring the header back as it was, and zeros behind the end.
    let mut page = read_at(&f, writer.fh, 0, 4096);
    page[128..132].copy_from_slice(&[9; 4]);
    f.fs.write(writer.fh, 0, &page, true).unwrap();
    let mut last = read_at(&f, writer.fh, 4096, 4096);
    assert_eq!(last.len(), 128);
    last[4] = 8;
    last.resize(4096, 0);
    f.fs.write(writer.fh, 4096, &last, true).unwrap();
    // A header that was changed is refused; the elements beside it are not.
    page[0] = 0;
    page[132] = 77;
    assert_errno(f.fs.write(writer.fh, 0, &page, true), libc::EPERM);
    f.fs.commit_all().unwrap();
    let mut all: Vec<u32> = (0..1024).collect();
    (all[0], all[1], all[993]) = (0x0909_0909, 77, all[993] & !0xff | 8);
    assert_eq!(stored_values(&f, "a"), all);
}

#[test]
fn what_is_collected_is_bounded() {
    let n_pages = 12 << 10;
    let f = Fixture::with(
        |store| {
            let data = vec![0; n_pages as usize * 4096];
            store.save_as(&[("a", array(&[n_pages, 1024], &data))], Some(&Compression::default())).unwrap();
        },
        false,
    );
    let writer = f.open("a.npy", WRITE).unwrap();
    let part = vec![7; 1 << 20];
    let mut said_much = 0;
    let mut n_parts = 0;
    let refused = loop {
        match f.fs.write(writer.fh, PAGE + (n_parts << 20), &part, true) {
            Ok(written) => said_much += u32::from(written == Written::Much),
            Err(error) => break error,
        }
        n_parts += 1;
    };
    assert!(matches!(refused, FsError::Uncommitted { .. }), "{refused}");
    assert!((24..=32).contains(&n_parts) && said_much == 1, "{n_parts} {said_much}");
    f.fs.commit_all().unwrap();
    f.fs.write(writer.fh, PAGE + (n_parts << 20), &part, true).unwrap();
    f.fs.commit_all().unwrap();
    let values = stored_values(&f, "a");
    let n_written = (n_parts as usize + 1) << 18;
    assert!(values[..n_written].iter().all(|value| *value == 0x0707_0707));
    assert!(values[n_written..].iter().all(|value| *value == 0));
}

#[test]
fn what_cannot_be_stored_is_reported_and_kept() {
    let mem = MemStorage::new();
    let other = Store::create_in(Box::new(mem.clone())).unwrap();
    save_pages(&other, "a", 64, 0);
    let faulty = FaultyStorage::new(Arc::new(mem));
    let store = Store::with_storage(Box::new(faulty.clone()), Access::Write).unwrap();
    let f = Fixture::over(other, store, false);
    let writer = f.open("a.npy", WRITE).unwrap();
    write_at(&f, writer.fh, 0, 20..30).unwrap();
    f.fs.commit_all().unwrap();
    let mut all: Vec<u32> = (0..64 * 1024).collect();
    put(&mut all, 0, 20..30);
    let stored = all.clone();
    put(&mut all, 5000, 30..40);
    put(&mut all, 5005, 40..50);

    faulty.fail_next("write_at", io::Error::from_raw_os_error(libc::ENOSPC));
    write_at(&f, writer.fh, 5000, 30..40).unwrap();
    assert_errno(f.fs.fsync(writer.fh), libc::ENOSPC);
    assert!(faulty.is_done() && f.fs.is_uncommitted(writer.fh));
    assert_eq!(stored_values(&f, "a"), stored);
    write_at(&f, writer.fh, 5005, 40..50).unwrap();
    assert_eq!(values_of(&f.read(writer.fh)), all);
    // Not tried again at once, unless somebody asks.
    f.fs.commit_due();
    assert!(f.fs.is_uncommitted(writer.fh));
    f.fs.fsync(writer.fh).unwrap();
    assert!(!f.fs.has_uncommitted());
    assert_eq!(stored_values(&f, "a"), all);
}

/// Spoils the block of an array in whose stored bytes these are.
fn damage(f: &Fixture, raw: &[u8]) {
    let file = f.path.join(f.other.array("a").unwrap().file_name());
    let bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(raw.len()).position(|window| window == raw).unwrap();
    let file = OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(&[!raw[0]], at as u64).unwrap();
}

#[test]
fn a_damaged_block_harms_no_other() {
    let mut rng = common::rng::Rng::new(1);
    // Noise is stored as it is.
    let mut data = rng.bytes(64 * 4096);
    let f = Fixture::with(
        |store| store.save_as(&[("a", array(&[64, 1024], &data))], Some(&small_blocks())).unwrap(),
        false,
    );
    damage(&f, &data[5 * 4096..5 * 4096 + 64]);
    let writer = f.open("a.npy", WRITE).unwrap();
    assert_errno(f.fs.read(writer.fh, PAGE + 4 * PAGE, 4096, <[u8]>::to_vec), libc::EIO);
    // One part of another block, one of the damaged one, and all of the next.
    for (at, len) in [(10, 100), (4 * 4096 + 8, 8), (8 * 4096, 4 * 4096)] {
        f.fs.write(writer.fh, PAGE + at, &vec![1; len], false).unwrap();
        data[at as usize..at as usize + len].fill(1);
    }
    assert_errno(f.fs.fsync(writer.fh), libc::EIO);
    let there = f.other.array("a").unwrap();
    for range in [0..4 * 4096, 8 * 4096..64 * 4096] {
        let mut bytes = vec![0; range.len()];
        there.read_npy_at(PAGE + range.start as u64, &mut bytes).unwrap();
        assert_eq!(bytes, data[range]);
    }
    assert!(f.fs.is_uncommitted(writer.fh));
    // Written whole, the block is good again.
    f.fs.write(writer.fh, PAGE + 4 * PAGE, &[3; 4 * 4096], false).unwrap();
    data[4 * 4096..8 * 4096].fill(3);
    f.fs.fsync(writer.fh).unwrap();
    assert_eq!(f.read_path("a.npy")[4096..], data);

    // What cannot be stored when the last one closes the file is lost, and the kernel must forget it.
    let at = 40 * 4096;
    damage(&f, &data[at..at + 64]);
    f.fs.write(writer.fh, PAGE + at as u64 + 8, &[1; 8], false).unwrap();
    let ino = f.lookup("a.npy").unwrap().ino;
    f.fs.commit_closed(ino);
    assert!(f.fs.is_uncommitted(writer.fh));
    f.told();
    f.fs.release(writer.fh);
    f.fs.commit_closed(ino);
    assert!(!f.fs.has_uncommitted());
    assert!(f.carry_out().iter().any(|told| matches!(told, Invalidation::Content { .. })));
}

#[test]
fn a_file_that_is_closed_and_forgotten_is_committed_all_the_same() {
    let (f, mut all) = pages(64);
    let ino = f.lookup("a.npy").unwrap().ino;
    let writer = f.fs.open(ino, WRITE, CALLER).unwrap();
    write_at(&f, writer.fh, 7, 0..9).unwrap();
    put(&mut all, 7, 0..9);
    f.fs.release(writer.fh);
    f.fs.forget(ino, 1);
    assert_eq!(f.values("a.npy"), all);
    f.fs.commit_closed(ino);
    assert_eq!(stored_values(&f, "a"), all);
    // Nothing of it is left.
    f.fs.forget(ino, 1);
    assert_errno(f.fs.getattr(ino), libc::ESTALE);
    assert_eq!(f.values("a.npy"), all);
}

#[test]
fn times_follow_what_is_written() {
    let (f, _) = pages(64);
    let before = f.lookup("a.npy").unwrap();
    let writer = f.open("a.npy", WRITE).unwrap();
    let now = SystemTime::now();
    write_at(&f, writer.fh, 7, 0..9).unwrap();
    let written = f.fs.getattr(before.ino).unwrap();
    assert!(written.mtime >= now && written.mtime > before.mtime);
    // A time that is set must not be overtaken by the commit of what was written before.
    let set = SetAttr { mtime: Some(now + Duration::from_secs(100)), ..SetAttr::default() };
    let refused = f.fs.setattr(before.ino, set).unwrap_err();
    assert!(matches!(refused, FsError::Uncommitted { .. }), "{refused}");
    f.fs.commit(before.ino).unwrap();
    assert_eq!(f.fs.setattr(before.ino, set).unwrap().mtime, now + Duration::from_secs(100));
    let attr = f.fs.getattr(before.ino).unwrap();
    let file = f.path.join(f.other.array("a").unwrap().file_name());
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&file).unwrap());
    assert_eq!((attr.size, attr.blocks), (before.size, blocks));
}

#[test]
fn arrays_without_elements_or_rows_are_written_like_any_other() {
    let f = Fixture::with(
        |store| {
            store.save_as(&[("none", array(&[0, 4], &[]))], Some(&small_blocks())).unwrap();
            store.save_as(&[("one", array(&[], &[1, 0, 0, 0]))], Some(&small_blocks())).unwrap();
        },
        false,
    );
    let none = f.open("none.npy", WRITE).unwrap();
    assert_errno(f.fs.write(none.fh, PAGE + 1, &[1], false), libc::EFBIG);
    f.fs.fsync(none.fh).unwrap();
    let one = f.open("one.npy", WRITE).unwrap();
    f.fs.write(one.fh, PAGE, &[2], false).unwrap();
    f.fs.fsync(one.fh).unwrap();
    assert_eq!(stored_values(&f, "one"), [2]);
    f.fs.append(none.fh, &[7; 20]).unwrap();
    f.carry_out();
    assert_eq!((shape_of(&f.read(none.fh)), read_at(&f, none.fh, PAGE, 64)), (vec![1, 4], vec![7; 20]));
}
