//! `upgrade`: the new store is what the old one was, whatever happens on the way.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use numpack::store::{
    Access, Compression, Dtype, NewArray, NotAStore, Store, StoreError, TableLayout, Upgrade, Upgraded,
    verify, verify_storage,
};
use numpack::sys::{DirStorage, FileAccess, Storage};

use crate::common::rng::Rng;
use crate::common::{FaultyStorage, LastWrite, MemStorage};
use crate::fixtures::{Copy, Expected, Fixture, all, fixture, quirk};
use crate::{assert_elements, elements, snapshot};

/// A file that is not the store's.
const FOREIGN: &str = "data_notes.txt";

fn upgrade_in(storage: Box<dyn Storage>, compression: Option<Compression>) -> Result<Upgraded, StoreError> {
    Upgrade { compression, progress: &mut |_, _, _| () }.in_storage(storage)
}

fn upgrade(path: &Path) -> Result<Upgraded, StoreError> {
    Upgrade { compression: None, progress: &mut |_, _, _| () }.in_place(path)
}

fn is_upgraded(result: Result<Upgraded, StoreError>, fixture: &Fixture) -> bool {
    match result.unwrap_or_else(|error| panic!("{}/{}: {error}", fixture.release, fixture.name)) {
        Upgraded::From { layout, n_arrays } => {
            layout.to_string() == fixture.layout() && n_arrays == fixture.expected().len()
        }
        _ => false,
    }
}

/// A store holds what is expected, and, if it is a new one, has no other files than it needs.
fn assert_content(store: &Store, expected: &[Expected]) {
    assert_eq!(store.len(), expected.len());
    for array in expected {
        assert_elements(&store.array(&array.name).unwrap(), array);
    }
}

fn assert_tidy(storage: &dyn Storage, store: &Store) {
    let needed = ["metadata.npkm", "metadata.npkm.lock", FOREIGN];
    let mut needed: BTreeSet<String> = store
        .arrays()
        .unwrap()
        .iter()
        .map(|array| array.file_name().to_owned())
        .chain(needed.map(str::to_owned))
        .collect();
    let files: BTreeSet<String> = storage.list().unwrap().into_iter().collect();
    if files.contains("metadata.npkm.bak") {
        // A process may die before it makes the backup; the next snapshot has one again.
        needed.insert("metadata.npkm.bak".to_owned());
    }
    assert_eq!(files, needed);
}

fn copy_with_foreign(fixture: &Fixture) -> Copy {
    let copy = fixture.copy();
    fs::write(copy.path.join(FOREIGN), b"mine").unwrap();
    copy
}

#[test]
fn every_store_is_upgraded_in_place() {
    for fixture in all() {
        for compression in [None, Some(Compression::default())] {
            let copy = copy_with_foreign(&fixture);
            let storage = || Box::new(DirStorage::open(&copy.path).unwrap());
            assert!(is_upgraded(upgrade_in(storage(), compression), &fixture));
            let store = Store::open(&copy.path, Access::Write).unwrap();
            assert_eq!((store.old_layout(), store.access()), (None, Access::Write));
            assert_content(&store, &fixture.expected());
            assert_tidy(&*storage(), &store);
            // For the day on which an old release opens the store, and replaces the manifest.
            let [manifest, backup] =
                ["metadata.npkm", "metadata.npkm.bak"].map(|file| fs::read(copy.path.join(file)));
            assert_eq!(manifest.unwrap(), backup.unwrap());
            let report = verify(&copy.path).unwrap();
            assert!(report.problems.is_empty() && report.leftovers.is_empty(), "{report:?}");
            for array in store.arrays().unwrap() {
                assert_eq!(array.codec().is_some(), compression.is_some());
            }
            let dtype = Dtype::parse_python("'<u4'").unwrap();
            let new = NewArray { dtype, shape: vec![1], fortran_order: false, data: &[1, 2, 3, 4] };
            store.save(&[("new", new)]).unwrap();
            assert_eq!(elements(&store.array("new").unwrap()), [1, 2, 3, 4]);
            assert_eq!(upgrade(&copy.path).unwrap(), Upgraded::Nothing);
            assert_eq!(fs::read(copy.path.join(FOREIGN)).unwrap(), b"mine");
        }
    }
}

#[test]
fn every_store_is_upgraded_to_another_place_and_stays() {
    for fixture in all() {
        let copy = fixture.copy();
        let before = snapshot(&copy.path);
        let target = copy.path.with_file_name("new.npk");
        let to = || Upgrade { compression: None, progress: &mut |_, _, _| () }.to(&copy.path, &target, None);
        assert!(is_upgraded(to(), &fixture));
        assert_content(&Store::open(&target, Access::Write).unwrap(), &fixture.expected());
        assert!(verify(&target).unwrap().problems.is_empty());
        assert!(snapshot(&copy.path) == before);
        let is_taken = matches!(to(), Err(StoreError::StoreExists { .. }));
        assert!(is_taken || fixture.expected().is_empty());
    }
    let copy = fixture("0.3.0-rust", "appended").copy();
    let itself = Upgrade { compression: None, progress: &mut |_, _, _| () }.to(&copy.path, &copy.path, None);
    assert!(matches!(itself, Err(StoreError::StoreExists { .. })));
}

#[test]
fn times_and_permissions_are_kept_and_progress_is_told() {
    use std::os::unix::fs::PermissionsExt as _;
    let fixture = fixture("0.7.0-rust", "segmented_mutated");
    let copy = fixture.copy();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for (path, _) in snapshot(&copy.path) {
        fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    }
    let modified = |store: &Store| {
        let arrays = store.arrays().unwrap();
        arrays.iter().map(|array| (array.name().clone(), array.modified().unwrap())).collect::<Vec<_>>()
    };
    let before = modified(&Store::open(&copy.path, Access::Read).unwrap());
    let mut told = Vec::new();
    let mut progress = |name: &str, done, total| told.push((name.to_owned(), done, total));
    Upgrade { compression: None, progress: &mut progress }.in_place(&copy.path).unwrap();
    let store = Store::open(&copy.path, Access::Read).unwrap();
    assert_eq!(modified(&store), before);
    for array in store.arrays().unwrap() {
        let stat = array.stat().unwrap();
        assert_eq!((stat.mtime, stat.mode & 0o777), (long_ago, 0o640), "{array:?}");
    }
    let total: u64 = store.arrays().unwrap().iter().map(|array| array.nbytes()).sum();
    assert_eq!(told.first().map(|(_, done, _)| *done), Some(0));
    assert_eq!(told.last().map(|(_, done, of)| (*done, *of)), Some((total, total)));
    assert!(told.is_sorted_by_key(|(_, done, _)| *done));
}

#[test]
fn a_store_with_an_array_that_cannot_be_read_is_left_as_it_is() {
    let copy = quirk("0.3.0-python-string_array");
    let before = snapshot(&copy.path);
    assert!(matches!(upgrade(&copy.path), Err(StoreError::DataFile { .. })));
    let after: Vec<_> =
        snapshot(&copy.path).into_iter().filter(|(path, _)| !path.ends_with("metadata.npkm.lock")).collect();
    assert!(after == before);
    let target = copy.path.with_file_name("new.npk");
    let result = Upgrade { compression: None, progress: &mut |_, _, _| () }.to(&copy.path, &target, None);
    assert!(matches!(result, Err(StoreError::DataFile { .. })));
    assert!(!target.exists());
    for (name, expected) in
        [("0.3.0-wiped_0.2.1", NotAStore::TableLost), ("0.7.0-killed_before_close", NotAStore::ManifestLost)]
    {
        match upgrade(&quirk(name).path) {
            Err(StoreError::NotAStore { found, .. }) => assert_eq!(found, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_upgraded_store_that_an_old_release_wipes_comes_back() {
    let fixture = fixture("0.3.0-rust", "appended");
    let copy = fixture.copy();
    assert!(is_upgraded(upgrade(&copy.path), &fixture));
    // As 0.3.0 does when it opens what it does not know: an empty table, renamed over the manifest.
    let manifest = copy.path.join("metadata.npkm");
    fs::write(copy.path.join("metadata.tmp"), [&b"NPKB\x01\0\0\0"[..], &[0; 12]].concat()).unwrap();
    fs::rename(copy.path.join("metadata.tmp"), &manifest).unwrap();
    for opened in [Store::open(&copy.path, Access::Read), Store::open_or_create(&copy.path)] {
        let found = opened.expect_err("wiped");
        assert!(matches!(found, StoreError::NotAStore { found: NotAStore::Overwritten, .. }), "{found}");
    }
    assert!(matches!(upgrade(&copy.path), Err(StoreError::NotAStore { found: NotAStore::Overwritten, .. })));
    fs::copy(manifest.with_extension("npkm.bak"), &manifest).unwrap();
    assert_content(&Store::open(&copy.path, Access::Write).unwrap(), &fixture.expected());
}

/// Writes a file anew, so that the clock shows it, however coarse it is.
fn change(path: &Path) {
    let before = fs::metadata(path).unwrap().modified().unwrap();
    fs::write(path, fs::read(path).unwrap()).unwrap();
    let then = before + Duration::from_secs(1);
    fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}

#[test]
fn a_copy_that_fails_leaves_nothing() {
    let fixture = fixture("0.7.0-rust", "dropped_rows");
    let copy = fixture.copy();
    let target = copy.path.with_file_name("new.npk");
    let table = copy.path.join("metadata.npkm");
    let mut progress = |_: &str, _, _| change(&table);
    let result = Upgrade { compression: None, progress: &mut progress }.to(&copy.path, &target, None);
    assert!(matches!(result, Err(StoreError::ChangedMeanwhile { .. })));
    assert!(!target.exists());
    // What was there before stays.
    fs::create_dir(&target).unwrap();
    fs::write(target.join(FOREIGN), b"mine").unwrap();
    let mut progress = |_: &str, _, _| change(&table);
    let result = Upgrade { compression: None, progress: &mut progress }.to(&copy.path, &target, None);
    assert!(matches!(result, Err(StoreError::ChangedMeanwhile { .. })));
    assert!(target.join(FOREIGN).exists());
    assert!(is_upgraded(
        Upgrade { compression: None, progress: &mut |_, _, _| () }.to(&copy.path, &target, None),
        &fixture
    ));
    let store = Store::open(&target, Access::Read).unwrap();
    assert_content(&store, &fixture.expected());
    assert_tidy(&DirStorage::open(&target).unwrap(), &store);
}

#[test]
fn names_that_new_files_would_have_are_left_to_their_owners() {
    // One array is called as the new file of another one would be.
    let fixture = fixture("0.3.0-rust", "appended");
    let copy = fixture.copy();
    for id in 1..=8 {
        for name in ["m", "t", "v", "from_empty"] {
            fs::write(copy.path.join(format!("data_{name}~{id}.npkd")), b"mine").unwrap();
        }
    }
    assert!(is_upgraded(upgrade(&copy.path), &fixture));
    assert_content(&Store::open(&copy.path, Access::Read).unwrap(), &fixture.expected());
    for id in 1..=8 {
        assert_eq!(fs::read(copy.path.join(format!("data_m~{id}.npkd"))).unwrap(), b"mine");
    }
}

#[test]
fn what_an_old_release_writes_during_an_upgrade_stops_it() {
    for file in ["metadata.npkm", "deleted_one.npkb", "data_untouched.npkd"] {
        let fixture = fixture("0.7.0-rust", "dropped_rows");
        let copy = fixture.copy();
        let path = copy.path.join(file);
        let good = fs::read(&path).unwrap();
        let mut progress = |_: &str, done, _| {
            if done == 0 {
                fs::write(path.with_extension("new"), &good).unwrap();
                fs::rename(path.with_extension("new"), &path).unwrap();
            }
        };
        let error = Upgrade { compression: None, progress: &mut progress }.in_place(&copy.path).unwrap_err();
        assert!(
            matches!(&error, StoreError::ChangedMeanwhile { path: changed } if *changed == path),
            "{error}"
        );
        let store = Store::open(&copy.path, Access::Read).unwrap();
        assert_eq!(store.old_layout(), Some(TableLayout::Npkb));
        assert_content(&store, &fixture.expected());
        assert!(!snapshot(&copy.path).iter().any(|(path, _)| path.to_str().unwrap().contains('~')));
        assert!(!copy.path.join("metadata.npkm.upgraded").exists());
    }
}

#[test]
fn handles_that_are_open_see_the_new_store() {
    let fixture = fixture("0.7.0-rust", "segmented_mutated");
    let copy = fixture.copy();
    let store = Store::open(&copy.path, Access::Write).unwrap();
    let reader = Store::open(&copy.path, Access::Read).unwrap();
    store.track_changes();
    let held: Vec<_> = fixture.expected().iter().map(|array| store.array(&array.name).unwrap()).collect();
    assert!(is_upgraded(upgrade(&copy.path), &fixture));
    assert!(!store.refresh().unwrap().is_empty());
    for store in [&store, &reader] {
        assert_content(store, &fixture.expected());
    }
    // Those that were looked up before read on, although their files are gone.
    for (array, expected) in held.iter().zip(fixture.expected()) {
        assert!(elements(array) == expected.elements);
    }
    assert_eq!((store.access(), reader.access()), (Access::Write, Access::Read));
    store.drop_rows(&["a"], &[0]).unwrap();
    assert!(matches!(reader.remove(&["a"]), Err(StoreError::ReadOnly { .. })));
}

#[test]
fn removing_an_old_store_removes_all_its_files_and_no_others() {
    for fixture in all() {
        let copy = copy_with_foreign(&fixture);
        Store::remove_all(&copy.path).unwrap();
        assert_eq!(snapshot(&copy.path), [(copy.path.join(FOREIGN), b"mine".to_vec())], "{}", fixture.name);
    }
}

/// A store that may be copied into memory: it has no folders.
fn memory_of(fixture: &Fixture) -> MemStorage {
    let copy = copy_with_foreign(fixture);
    let memory = MemStorage::new();
    for (path, bytes) in snapshot(&copy.path) {
        let file = memory.create_unnamed().unwrap();
        file.write_at(&bytes, 0).unwrap();
        file.sync_data().unwrap();
        memory.link(&file, path.file_name().unwrap().to_str().unwrap()).unwrap();
    }
    memory.sync_dir().unwrap();
    memory
}

/// What a store is after an upgrade that was interrupted, and after one that goes on from there.
fn assert_goes_on(left: Arc<dyn Storage>, boxed: &dyn Fn() -> Box<dyn Storage>, fixture: &Fixture) -> bool {
    let store = Store::with_storage(boxed(), Access::Write).unwrap();
    let was_old = store.old_layout().is_some();
    assert_content(&store, &fixture.expected());
    let report = verify_storage(boxed()).unwrap();
    assert!(report.problems.is_empty(), "{report:?}");
    if !was_old {
        // Whoever comes in between writes to a new store.
        let dtype = Dtype::parse_python("'<u4'").unwrap();
        let new = NewArray { dtype, shape: vec![1], fortran_order: false, data: &[1, 2, 3, 4] };
        store.save(&[("a new array", new)]).unwrap();
    }
    upgrade_in(boxed(), None).unwrap();
    let store = Store::with_storage(boxed(), Access::Write).unwrap();
    assert_eq!(store.old_layout(), None);
    if !was_old {
        assert_eq!(elements(&store.array("a new array").unwrap()), [1, 2, 3, 4]);
        store.remove(&["a new array"]).unwrap();
    }
    assert_content(&store, &fixture.expected());
    assert_tidy(&*left, &store);
    assert!(left.open(FOREIGN, FileAccess::Read).is_ok());
    was_old
}

/// Upgrades a copy of `memory`, and dies at the `n`-th call; `None` if there are fewer.
fn die_at(memory: &MemStorage, n: u64, last_write: LastWrite) -> Option<MemStorage> {
    let memory = memory.after_kill();
    let faulty = FaultyStorage::new(Arc::new(memory.clone()));
    faulty.die_at(n as usize, last_write);
    let result = upgrade_in(Box::new(faulty.clone()), None);
    if faulty.is_dead() {
        return Some(memory);
    }
    result.unwrap();
    None
}

/// Who has read the old table, and looks for the files only now, reads what is right, or an error: not rows that were
/// deleted.
fn assert_late_reader(left: &MemStorage, table: &[u8], fixture: &Fixture) {
    let late = left.after_kill();
    let file = late.create_unnamed().unwrap();
    file.write_at(table, 0).unwrap();
    late.replace(&file, "metadata.npkm").unwrap();
    if late.stat("metadata.npkm.bak").is_ok() {
        late.remove("metadata.npkm.bak").unwrap();
    }
    // An empty table beside data files is one that was lost.
    let Ok(store) = Store::with_storage(Box::new(late), Access::Read) else { return };
    for expected in fixture.expected() {
        match store.array(&expected.name) {
            Ok(array) => assert_elements(&array, &expected),
            Err(error) => assert!(matches!(error, StoreError::DataFile { .. }), "{error}"),
        }
    }
}

#[test]
fn two_upgrades_at_once_are_one() {
    let fixture = fixture("0.7.0-rust", "segmented_mutated");
    let copy = copy_with_foreign(&fixture);
    let results = std::thread::scope(|scope| {
        let threads = [(); 3].map(|()| scope.spawn(|| upgrade(&copy.path).unwrap()));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(results.iter().filter(|result| matches!(result, Upgraded::From { .. })).count(), 1);
    assert_eq!(results.iter().filter(|result| **result == Upgraded::Nothing).count(), 2);
    let store = Store::open(&copy.path, Access::Read).unwrap();
    assert_content(&store, &fixture.expected());
    assert_tidy(&DirStorage::open(&copy.path).unwrap(), &store);
}

#[test]
fn death_at_any_call_leaves_the_old_store_or_the_new_one() {
    let (mut n_old, mut n_new) = (0, 0);
    for (release, name) in [
        ("0.7.0-rust", "dropped_rows"),
        ("0.2.0-rust", "names"),
        ("0.2.0-python", "empty"),
        ("0.2.1-rust", "no_arrays"),
    ] {
        let fixture = fixture(release, name);
        let memory = memory_of(&fixture);
        let table = fs::read(fixture.copy().path.join("metadata.npkm")).unwrap();
        let deaths = (1..).map(|n| (n, die_at(&memory, n, LastWrite::Lost)));
        for (n, whole) in deaths.map_while(|(n, left)| Some((n, left?))) {
            let torn = die_at(&memory, n, LastWrite::Torn).expect("as before");
            for left in [whole, torn] {
                let mut rng = Rng::new(n);
                let mut survives = || rng.one_in(2);
                let lefts = [
                    left.after_kill(),
                    left.after_power_loss(&mut || false),
                    left.after_power_loss(&mut survives),
                ];
                for left in lefts {
                    assert_late_reader(&left, &table, &fixture);
                    let boxed = || -> Box<dyn Storage> { Box::new(left.clone()) };
                    match assert_goes_on(Arc::new(left.clone()), &boxed, &fixture) {
                        true => n_old += 1,
                        false => n_new += 1,
                    }
                }
            }
        }
    }
    eprintln!("{n_old} deaths before the new store, {n_new} after it");
    assert!(n_old > 100 && n_new > 20);
}

#[test]
fn a_call_that_fails_leaves_the_old_store_or_the_new_one() {
    let fixture = fixture("0.7.0-rust", "segmented_mutated");
    for n in 1.. {
        let copy = copy_with_foreign(&fixture);
        let faulty = FaultyStorage::new(Arc::new(DirStorage::open(&copy.path).unwrap()));
        faulty.fail_at(n, io::Error::from_raw_os_error(libc::ENOSPC));
        let result = upgrade_in(Box::new(faulty.clone()), None);
        if !faulty.is_done() {
            assert!(n > 30, "only {n} calls");
            break;
        }
        let store = Store::open(&copy.path, Access::Read).unwrap();
        assert_eq!(result.is_err() && store.old_layout().is_some(), store.old_layout().is_some());
        let boxed = || -> Box<dyn Storage> { Box::new(DirStorage::open(&copy.path).unwrap()) };
        assert_goes_on(Arc::from(boxed()), &boxed, &fixture);
    }
}

/// Tells a process of this test to upgrade the store at this path.
const UPGRADER: &str = "NUMPACK_TEST_UPGRADER";

/// Not a test of its own: what a process runs that is to be killed. It says when it has begun.
#[test]
fn upgrader_process() {
    let Ok(path) = std::env::var(UPGRADER) else { return };
    let mut progress = |_: &str, _, _| {
        let mut stdout = io::stdout().lock();
        let _ = writeln!(stdout, "at work").and_then(|()| stdout.flush());
    };
    Upgrade { compression: None, progress: &mut progress }.in_place(Path::new(&path)).unwrap();
}

fn start_upgrader(path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["upgrade::upgrader_process", "--exact", "--nocapture", "--test-threads=1"])
        .env(UPGRADER, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn an_upgrade_that_is_killed_goes_on_when_it_is_run_again() {
    let names = ["segmented_mutated", "dtypes", "odd_names", "dropped_rows"];
    let mut n_kept = 0;
    for round in 0..40 {
        let fixture = fixture("0.7.0-rust", names[round % names.len()]);
        let copy = copy_with_foreign(&fixture);
        let mut upgrader = start_upgrader(&copy.path);
        // Killed after so many reports, which come before each array and after it.
        let mut lines = BufReader::new(upgrader.stdout.take().unwrap()).lines();
        let n_reports =
            lines.by_ref().map_while(Result::ok).filter(|line| line.contains("at work")).take(round);
        let n_reports = n_reports.count();
        upgrader.kill().unwrap();
        upgrader.wait().unwrap();
        let boxed = || -> Box<dyn Storage> { Box::new(DirStorage::open(&copy.path).unwrap()) };
        let was_old = assert_goes_on(Arc::from(boxed()), &boxed, &fixture);
        n_kept += usize::from(was_old && n_reports > 0);
    }
    assert!(n_kept > 0, "no upgrade was killed at work");
}
