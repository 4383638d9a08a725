//! `store::verify_with`: what it counts and tells, and that writers at work are no damage.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use numpack::store::{Access, Compression, Depth, Dtype, NewArray, Report, Store, verify_with};
use tempfile::TempDir;

const SMALL_BLOCKS: Compression = Compression { level: 1, block_len: 4096, filter: None };

fn temp() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("data.npk");
    (dir, path)
}

fn numbers(n: u64, seed: u64) -> Vec<u8> {
    // Middle bits of squares: they compress little, so that blocks have different lengths.
    (0..n).flat_map(|i| ((i * 2_654_435_761 + seed).wrapping_mul(i) >> 20).to_le_bytes()).collect()
}

fn array(data: &[u8]) -> NewArray<'_> {
    let dtype = Dtype::parse_python("'<u8'").unwrap();
    NewArray { dtype, shape: vec![data.len() as u64 / 8], fortran_order: false, data }
}

fn verify(path: &Path) -> Report {
    verify_with(path, Depth::Elements, &mut |_, _, _| ()).unwrap()
}

#[test]
fn progress_ends_where_the_elements_do() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    let (large, small) = (numbers(768 << 10, 0), numbers(600, 0));
    store.save_as(&[("compressed", array(&large))], Some(&SMALL_BLOCKS)).unwrap();
    store.save(&[("plain", array(&large)), ("small", array(&small))]).unwrap();
    store.drop_rows(&["compressed"], &[5, 6, 7]).unwrap();
    let mut seen = Vec::new();
    let report = verify_with(&path, Depth::Elements, &mut |name, done, total| {
        seen.push((name.to_owned(), done, total))
    });
    let report = report.unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert_eq!((report.n_arrays, report.n_blocks), (3, (large.len() / 4096) as u64));
    let total = 2 * large.len() as u64 + 4800;
    assert!(seen.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{seen:?}");
    assert!(seen.len() >= 3 && seen.iter().all(|(_, _, of)| *of == total), "{seen:?}");
    assert_eq!(seen.last(), Some(&("small".to_owned(), total, total)));
    verify_with(&path, Depth::Index, &mut |name, _, _| panic!("{name}: no elements are read")).unwrap();
}

#[test]
fn writers_at_work_are_no_damage() {
    let (_dir, path) = temp();
    let store = Store::create(&path).unwrap();
    store.save_as(&[("a", array(&numbers(20_000, 0)))], Some(&SMALL_BLOCKS)).unwrap();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let store = Store::open(&path, Access::Write).unwrap();
            for i in 0..60 {
                // All blocks, so that dead ones are written over soon; then rows, a new version, another array.
                store.replace_range("a", 0..20_000, array(&numbers(20_000, i))).unwrap();
                store.append(&[("a", array(&numbers(i % 700, i)))]).unwrap();
                if i % 10 == 3 {
                    store.save_as(&[("b", array(&numbers(2000, i)))], Some(&SMALL_BLOCKS)).unwrap();
                }
                if i % 25 == 24 {
                    store.save_as(&[("a", array(&numbers(20_000, i)))], Some(&SMALL_BLOCKS)).unwrap();
                }
            }
            is_done.store(true, Ordering::SeqCst);
        });
        let mut n_rounds = 0;
        while !is_done.load(Ordering::SeqCst) || n_rounds == 0 {
            let report = verify(&path);
            assert!(report.problems.is_empty(), "{:?}", report.problems);
            n_rounds += 1;
        }
    });
    let report = verify(&path);
    assert!(report.problems.is_empty() && report.leftovers.is_empty(), "{report:?}");
}
