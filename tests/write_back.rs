//! Compressed arrays through a mount, without a kernel: the paragraphs of spec/npkfs-semantics.md on them.

mod common;

use common::fixture::*;
use numpack::fs::{Fh, Ino, Invalidation};
use numpack::store::{Compression, Store};

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
const MANY_BLOCKS: u32 = 600;

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
fn arrays_whose_header_is_no_whole_page_are_decoded_once_too() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.npy");
    let npy = write_npy(&file, &[64 * 1024], &numbers(0..64 * 1024));
    let f = Fixture::with(
        |store| store.import_npy("a", &file, false, Some(&small_blocks()), &mut |_| ()).unwrap(),
        false,
    );
    let opened = f.open("a.npy", READ).unwrap();
    let mut bytes = Vec::new();
    for i in 0..22 {
        bytes.extend(read_at(&f, opened.fh, i * 3 * PAGE, 3 * PAGE as u32));
    }
    assert_eq!(bytes, npy);
    assert_eq!(f.fs.n_decoded_blocks(), 16);
}
