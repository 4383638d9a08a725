//! What every `Storage` promises, tried on each of them; and what the test storages add.

mod common;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{FaultyStorage, LastWrite, MemStorage};
use numpack::sys::{DirStorage, FileAccess, Storage, StorageFile};

const NO_WAIT: Duration = Duration::ZERO;

/// Runs `check` on an empty storage of each kind.
fn on_each(check: impl Fn(&dyn Storage)) {
    let dir = tempfile::tempdir().expect("temporary directory");
    check(&DirStorage::open(dir.path()).expect("opens"));
    check(&MemStorage::new());
    check(&FaultyStorage::new(Arc::new(MemStorage::new())));
}

fn put(storage: &dyn Storage, name: &str, contents: &[u8]) -> Arc<dyn StorageFile> {
    let file = storage.create_unnamed().expect("creates");
    file.write_at(contents, 0).expect("writes");
    storage.link(&file, name).expect("links");
    file
}

fn contents(storage: &dyn Storage, name: &str) -> Vec<u8> {
    let file = storage.open(name, FileAccess::Read).expect("opens");
    let len = usize::try_from(file.stat().expect("stat").len).expect("small");
    let mut bytes = vec![0; len + 1];
    assert_eq!(file.read_at(&mut bytes, 0).expect("reads"), len);
    bytes.truncate(len);
    bytes
}

fn sorted_names(storage: &dyn Storage) -> Vec<String> {
    let mut names = storage.list().expect("lists");
    names.sort();
    names
}

#[test]
fn unnamed_file_appears_with_its_name() {
    on_each(|storage| {
        let file = storage.create_unnamed().expect("creates");
        file.write_at(b"abc", 0).expect("writes");
        assert!(sorted_names(storage).is_empty());
        storage.link(&file, "a").expect("links");
        assert_eq!(sorted_names(storage), ["a"]);
        assert_eq!(contents(storage, "a"), b"abc");
        assert!(storage.stat("a").expect("stat").is_same_file(&file.stat().expect("stat")));
        assert!(storage.stat("a").expect("stat").is_file());
        assert_eq!(storage.stat("a").expect("stat").nlink, 1);
        drop(storage.create_unnamed().expect("creates"));
        assert_eq!(sorted_names(storage), ["a"]);
    });
}

#[test]
fn link_refuses_a_taken_name_and_can_be_tried_again() {
    on_each(|storage| {
        put(storage, "a", b"old");
        let file = storage.create_unnamed().expect("creates");
        file.write_at(b"new", 0).expect("writes");
        assert_eq!(storage.link(&file, "a").expect_err("taken").kind(), io::ErrorKind::AlreadyExists);
        storage.link(&file, "b").expect("links");
        assert_eq!(contents(storage, "a"), b"old");
        assert_eq!(contents(storage, "b"), b"new");
    });
}

#[test]
fn replace_keeps_the_old_file_for_those_who_have_it() {
    on_each(|storage| {
        let old = put(storage, "a", b"old");
        let map = old.map(0, 3).expect("maps");
        let new = storage.create_unnamed().expect("creates");
        new.write_at(b"newer", 0).expect("writes");
        storage.replace(&new, "a").expect("replaces");
        assert_eq!(contents(storage, "a"), b"newer");
        assert_eq!(sorted_names(storage), ["a"]);
        assert_eq!(old.stat().expect("stat").nlink, 0);
        assert_eq!(&*map, b"old");
        let other = storage.create_unnamed().expect("creates");
        storage.replace(&other, "b").expect("replaces nothing");
        assert_eq!(sorted_names(storage), ["a", "b"]);
    });
}

#[test]
fn link_existing_makes_and_replaces_hard_links() {
    on_each(|storage| {
        put(storage, "a", b"a");
        put(storage, "b", b"b");
        storage.link_existing("a", "c").expect("links");
        storage.link_existing("a", "b").expect("replaces");
        storage.link_existing("a", "b").expect("links again");
        assert_eq!(sorted_names(storage), ["a", "b", "c"]);
        assert_eq!(storage.stat("b").expect("stat").nlink, 3);
        assert_eq!(storage.link_existing("x", "y").expect_err("missing").kind(), io::ErrorKind::NotFound);
        assert_eq!(storage.link_existing("x", "b").expect_err("missing").kind(), io::ErrorKind::NotFound);
        assert_eq!(contents(storage, "b"), b"a");
    });
}

#[test]
fn rename_and_remove() {
    on_each(|storage| {
        put(storage, "a", b"a");
        put(storage, "b", b"b");
        storage.rename("a", "b").expect("renames");
        assert_eq!(sorted_names(storage), ["b"]);
        assert_eq!(contents(storage, "b"), b"a");
        storage.remove("b").expect("removes");
        assert!(sorted_names(storage).is_empty());
        for error in [
            storage.remove("b").expect_err("missing"),
            storage.rename("b", "c").expect_err("missing"),
            storage.stat("b").expect_err("missing"),
            storage.open("b", FileAccess::Write).expect_err("missing"),
        ] {
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        }
    });
}

#[test]
fn names_that_leave_the_directory_are_refused() {
    on_each(|storage| {
        put(storage, "a", b"");
        let file = storage.create_unnamed().expect("creates");
        for name in ["", ".", "..", "../a", "/a", "b/a", "a\0"] {
            for result in [
                storage.open(name, FileAccess::Read).map(drop),
                storage.link(&file, name),
                storage.replace(&file, name),
                storage.link_existing("a", name),
                storage.link_existing(name, "b"),
                storage.rename("a", name),
                storage.rename(name, "b"),
                storage.remove(name),
                storage.stat(name).map(drop),
                storage.lock(name, NO_WAIT).map(drop),
            ] {
                assert_eq!(result.expect_err(name).kind(), io::ErrorKind::InvalidInput, "{name:?}");
            }
        }
        assert_eq!(sorted_names(storage), ["a"]);
    });
}

#[test]
fn reads_and_writes_at_any_offset() {
    on_each(|storage| {
        let file = put(storage, "a", b"");
        file.write_at(b"xyz", 10).expect("writes");
        file.write_at(b"", 1000).expect("writes nothing");
        assert_eq!(contents(storage, "a"), b"\0\0\0\0\0\0\0\0\0\0xyz");
        let mut buf = [9; 4];
        assert_eq!(file.read_at(&mut buf, 11).expect("reads"), 2);
        assert_eq!(buf, [b'y', b'z', 9, 9]);
        assert_eq!(file.read_at(&mut buf, 13).expect("reads"), 0);
        assert_eq!(file.read_at(&mut buf, 1 << 40).expect("reads"), 0);
        assert_eq!(file.read_at(&mut [], 0).expect("reads"), 0);
        file.set_len(2).expect("cuts");
        assert_eq!(contents(storage, "a"), b"\0\0");
        file.set_len(3).expect("extends");
        assert_eq!(contents(storage, "a"), b"\0\0\0");
        file.reserve(0).expect("reserves nothing");
        file.reserve(100_000).expect("reserves");
        assert_eq!(file.stat().expect("stat").len, 3);
        file.sync_data().expect("syncs");
        storage.sync_dir().expect("syncs");
    });
}

#[test]
fn file_opened_for_reading_refuses_writes() {
    on_each(|storage| {
        put(storage, "a", b"abc");
        let file = storage.open("a", FileAccess::Read).expect("opens");
        file.write_at(b"x", 0).expect_err("open for reading");
        file.set_len(0).expect_err("open for reading");
        storage.open("a", FileAccess::Write).expect("opens").write_at(b"x", 0).expect("writes");
        assert_eq!(contents(storage, "a"), b"xbc");
    });
}

#[test]
fn maps_have_the_asked_bytes_and_none_past_the_end() {
    on_each(|storage| {
        let file = put(storage, "a", b"0123456789");
        assert_eq!(&*file.map(3, 4).expect("maps"), b"3456");
        assert!(file.map(10, 0).expect("maps").is_empty());
        for (offset, len) in [(0, 11), (10, 1), (11, 0), (u64::MAX, 2), (2, usize::MAX)] {
            let error = file.map(offset, len).expect_err("past the end");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    });
}

#[test]
fn times_are_set_one_by_one() {
    on_each(|storage| {
        let file = put(storage, "a", b"");
        let (early, late) =
            (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 5));
        file.set_times(Some(late), Some(early)).expect("sets");
        file.set_times(None, Some(late)).expect("sets");
        file.set_times(Some(early), None).expect("sets");
        let stat = file.stat().expect("stat");
        assert_eq!((stat.atime, stat.mtime), (early, late));
    });
}

#[test]
fn copy_from_stops_at_the_end_of_the_source() {
    let source = tempfile::NamedTempFile::new().expect("temporary file");
    fs::write(source.path(), b"0123456789").expect("writes");
    let source = File::open(source.path()).expect("opens");
    on_each(|storage| {
        let file = put(storage, "a", b"..");
        assert_eq!(file.copy_from(source.as_fd(), 2, 1, 3).expect("copies"), 3);
        assert_eq!(contents(storage, "a"), b".234");
        assert_eq!(file.copy_from(source.as_fd(), 8, 0, 100).expect("copies"), 2);
        assert_eq!(file.copy_from(source.as_fd(), 10, 0, 5).expect("copies"), 0);
        assert_eq!(file.copy_from(source.as_fd(), 0, 9, 0).expect("copies"), 0);
        assert_eq!(contents(storage, "a"), b"8934");
    });
}

#[test]
fn lock_excludes_until_dropped() {
    on_each(|storage| {
        let guard = storage.lock("l", NO_WAIT).expect("locks");
        assert!(guard.is_current().expect("stat"));
        assert_eq!(storage.lock("l", NO_WAIT).err().expect("held").kind(), io::ErrorKind::WouldBlock);
        storage.lock("other", NO_WAIT).expect("another lock");
        drop(guard);
        storage.lock("l", NO_WAIT).expect("locks again");
        assert_eq!(sorted_names(storage), ["l", "other"]);
    });
}

#[test]
fn waiting_thread_gets_the_lock_when_it_is_dropped() {
    on_each(|storage| {
        let guard = storage.lock("l", NO_WAIT).expect("locks");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| storage.lock("l", Duration::from_secs(60)).map(drop));
            drop(guard);
            waiting.join().expect("no panic").expect("locks");
        });
    });
}

#[test]
fn power_loss_forgets_what_was_not_synced() {
    let storage = MemStorage::new();
    let synced = put(&storage, "synced", b"old");
    synced.sync_data().expect("syncs");
    storage.sync_dir().expect("syncs");
    synced.write_at(b"new", 0).expect("writes");
    put(&storage, "unsynced", b"x").sync_data().expect("syncs");
    let unsynced_bytes = put(&storage, "b", b"x");
    storage.link_existing("synced", "link").expect("links");

    let lost = storage.after_power_loss(&mut || false);
    assert_eq!(sorted_names(&lost), ["synced"]);
    assert_eq!(contents(&lost, "synced"), b"old");

    let kept = storage.after_power_loss(&mut || true);
    let killed = storage.after_kill();
    for copy in [&kept, &killed] {
        assert_eq!(sorted_names(copy), ["b", "link", "synced", "unsynced"]);
        assert_eq!(contents(copy, "link"), b"new");
        assert_eq!(copy.stat("link").expect("stat").nlink, 2);
    }
    storage.sync_dir().expect("syncs");
    assert_eq!(contents(&storage.after_power_loss(&mut || false), "b"), b"");
    unsynced_bytes.write_at(b"y", 0).expect("writes");
    assert_eq!(contents(&killed, "b"), b"x", "a copy does not follow");
}

#[test]
fn power_loss_keeps_pages_in_any_order_but_each_in_its_own() {
    let storage = MemStorage::new();
    let file = put(&storage, "a", &[0; 8192]);
    file.sync_data().expect("syncs");
    storage.sync_dir().expect("syncs");
    file.write_at(&[1; 8192], 0).expect("writes");
    file.write_at(&[2; 8192], 0).expect("writes");
    // First page: lost at once, so not asked again. Second page: first write kept, second lost.
    let mut answers = [false, true, false].into_iter();
    let after = contents(&storage.after_power_loss(&mut || answers.next().expect("three questions")), "a");
    assert_eq!(after[..4096], [0; 4096]);
    assert_eq!(after[4096..], [1; 4096]);
    assert_eq!(answers.next(), None);
}

#[test]
fn faulty_storage_fails_one_call_and_works_again() {
    let storage = FaultyStorage::new(Arc::new(MemStorage::new()));
    storage.fail_at(2, io::Error::from_raw_os_error(libc::ENOSPC));
    let file = storage.create_unnamed().expect("first call");
    assert!(!storage.is_done());
    let error = file.write_at(b"abcd", 0).expect_err("second call");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(storage.is_done());
    file.write_at(b"ab", 0).expect("third call");
    storage.link(&file, "a").expect("fourth call");
    assert_eq!(contents(&storage, "a"), b"ab");
    assert_eq!(storage.calls(), ["create_unnamed", "write_at", "write_at", "link"]);
}

#[test]
fn dead_storage_changes_nothing_more() {
    for (last_write, left) in [(LastWrite::Lost, &b""[..]), (LastWrite::Torn, b"ab")] {
        let inner = MemStorage::new();
        let storage = FaultyStorage::new(Arc::new(inner.clone()));
        let file = put(&storage, "a", b"");
        let guard = storage.lock("l", NO_WAIT).expect("locks");
        storage.die_at(storage.calls().len() + 1, last_write);
        file.write_at(b"abcd", 0).expect_err("dies");
        file.write_at(b"x", 0).expect_err("dead");
        file.read_at(&mut [0], 0).expect_err("dead");
        storage.remove("a").expect_err("dead");
        storage.list().expect_err("dead");
        assert_eq!(contents(&inner, "a"), left);
        drop(guard);
        inner.lock("l", NO_WAIT).expect("the dead hold no locks");
    }
}
