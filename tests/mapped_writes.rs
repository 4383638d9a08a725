//! Compressed arrays on real mounts: read and written in place by programs of their own.
#![cfg(feature = "fuse")]

mod common;

use std::fs;
use std::thread;

use common::mounted::*;
use numpack::fuse::{MountOptions, PassthroughMode};
use numpack::store::{Compression, Store};

const BLOCK_LEN: u64 = 64 << 10;
const N_BLOCKS: u64 = 128;
/// Numbers in as many blocks as [`N_BLOCKS`].
const N_NUMBERS: u32 = (N_BLOCKS * BLOCK_LEN / 4) as u32;

fn save_compressed(store: &Store, name: &str, len: u32, first: u32) {
    let compression = Compression { block_len: BLOCK_LEN as u32, ..Compression::default() };
    let data = numbers(first..first + len);
    store.save_as(&[(name, array(&[len.into()], &data))], Some(&compression)).unwrap();
}

fn sum_of(numbers: std::ops::Range<u32>) -> u64 {
    numbers.map(u64::from).sum()
}

// Reading

#[test]
fn each_block_is_decoded_once_however_many_read_it() {
    for threads in [2, 4] {
        let options = MountOptions { threads, ..MountOptions::default() };
        let mount = || Mount::with(&options, |store| save_compressed(store, "a", N_NUMBERS, 0));
        let decoded_once = |m: &Mount, what: &str| {
            let n = m.mounted.as_ref().unwrap().n_decoded_blocks();
            // The kernel drops a page now and then, for reasons of its own. tests/write_back.rs counts without it.
            assert!(n >= N_BLOCKS && n <= N_BLOCKS + N_BLOCKS / 8, "{what}: {n} of {N_BLOCKS}");
        };

        let Some(m) = mount() else { return };
        let all = fs::read(m.path("a.npy")).unwrap();
        assert_eq!(values_of(&all), (0..N_NUMBERS).collect::<Vec<_>>());
        decoded_once(&m, "one after the other");
        assert_eq!(fs::read(m.path("a.npy")).unwrap(), all);
        decoded_once(&m, "from the page cache");
        drop(m);

        let m = mount().unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut mapper = Mapper::new(&m.path("a.npy"), "rb");
                    let sum: u64 = mapper.tell(&format!("sum {HEADER_LEN}")).parse().unwrap();
                    assert_eq!(sum, sum_of(0..N_NUMBERS));
                });
            }
        });
        decoded_once(&m, "mapped, by several");
        drop(m);

        let m = mount().unwrap();
        thread::scope(|scope| {
            for client in 0..2 {
                let path = m.path("a.npy");
                scope.spawn(move || {
                    // Each number is its index.
                    let mut mapper = Mapper::new(&path, "rb");
                    assert_eq!(mapper.tell(&format!("touch {HEADER_LEN} {client} 10000")), "0");
                });
            }
        });
        decoded_once(&m, "at random");
    }
}

#[test]
fn arrays_that_are_compressed_read_as_they_do_uncompressed() {
    for mode in BOTH {
        let Some(m) = Mount::new(mode, |store| {
            save(store, "plain", 100_000, 5);
            save_compressed(store, "a", 100_000, 5);
        }) else {
            return;
        };
        assert_eq!(fs::read(m.path("a.npy")).unwrap(), fs::read(m.path("plain.npy")).unwrap());
        assert!(!m.passes_through("a.npy"));
        assert_eq!(
            m.passes_through("plain.npy"),
            m.passes_through("plain.npy") && mode == PassthroughMode::Auto
        );
    }
}
