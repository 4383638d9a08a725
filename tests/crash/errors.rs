//! Calls that fail, in a process that lives on: the operation says so, what was there before stays, and the handle
//! goes on, unless nobody knows what is on the disk.

use std::io;

use numpack::store::{Access, Attrs, Store, StoreError};

use crate::common::FaultyStorage;
use crate::common::check::assert_store;
use crate::common::model::Model;
use crate::common::ops::Op;
use crate::common::random::any_content;
use crate::common::rng::{self, Rng};
use crate::disk::{Disk, Place};
use crate::stories::{Story, many_arrays, stories};
use crate::{Death, assert_survived, write_next};

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// The disk is full, and nothing was written.
    Full,
    /// The disk is full, and half was written.
    FullHalfway,
    /// The quota is used up, and half was written.
    OverQuotaHalfway,
    /// The disk is broken.
    Broken,
}

impl Fault {
    fn errno(self) -> i32 {
        match self {
            Fault::Full | Fault::FullHalfway => libc::ENOSPC,
            Fault::OverQuotaHalfway => libc::EDQUOT,
            Fault::Broken => libc::EIO,
        }
    }

    fn plan(self, storage: &FaultyStorage, n: usize) {
        let error = io::Error::from_raw_os_error(self.errno());
        if matches!(self, Fault::FullHalfway | Fault::OverQuotaHalfway) {
            storage.fail_halfway_at(n, error);
        } else {
            storage.fail_at(n, error);
        }
    }

    /// Whether nobody knows what is on the disk after `call` failed.
    fn poisons(self, call: &str) -> bool {
        call.starts_with("sync")
            || call == "set_len metadata.npkm"
            || (call == "write_at metadata.npkm" && self == Fault::Broken)
    }
}

/// The error number that the system gave.
fn errno_of(error: &StoreError) -> Option<i32> {
    match error {
        StoreError::Io { source, .. } => source.raw_os_error(),
        _ => None,
    }
}

fn fresh(disk: &Disk) -> Store {
    disk.open(Access::Write).expect("opens")
}

/// Lets each call of the story fail once, and returns the number of calls.
fn fail_everywhere(story: &Story, fault: Fault) -> usize {
    fail_at(story, fault, 1..)
}

/// Lets these calls of the story fail, each once, and returns the number of the last that there was.
fn fail_at(story: &Story, fault: Fault, calls: impl Iterator<Item = usize>) -> usize {
    for n in calls {
        let disk = Disk::new(Place::Disk);
        let storage = FaultyStorage::new(disk.storage());
        fault.plan(&storage, n);
        let create = || Store::create_in(Box::new(storage.clone()));
        // A failure is no reason not to try again.
        let mut store = create().or_else(|_| create()).expect("creates");
        store.set_durable(story.durable);
        let mut was_done = storage.is_done();
        let mut model = Model::default();
        for op in &story.ops {
            let before = model.clone();
            let expected = op.apply(&mut model);
            let result = op.run(&store);
            if storage.is_done() == was_done {
                assert_eq!(result.is_ok(), expected.is_ok(), "{op:?}: {result:?}");
                continue;
            }
            was_done = true;
            let call = storage.failed_call().expect("it failed");
            let told = format!("{op:?}, {call} failed: {result:?}");
            let state = Model::read(&fresh(&disk)).expect("reads");
            let death = Death { before, after: model.clone(), op: None, is_done: result.is_ok() };
            assert_survived(&state, &death, Some(op), crate::LastWrite::Torn);
            if let Err(error) = &result {
                assert_eq!(errno_of(error), Some(fault.errno()), "{told}");
                // Somebody else saves another array, which gets the id that the failed operation would have given.
                let intruder = Op::Save(vec![("intruder".to_owned(), any_content(&mut Rng::new(n as u64)))]);
                let mut now = state.clone();
                intruder.apply(&mut now).expect("fits");
                intruder.run(&fresh(&disk)).expect("saves");
                assert_store(&store, &now, &mut Rng::new(n as u64));
                // The same once more, with the same handle, or a new one.
                if fault.poisons(&call) {
                    let poisoned = op.run(&store).expect_err("poisoned");
                    assert!(matches!(poisoned, StoreError::Poisoned { .. }), "{told}: {poisoned}");
                    assert!(poisoned.to_string().contains("reopen the store"), "{poisoned}");
                    assert_store(&store, &now, &mut Rng::new(n as u64));
                    store = fresh(&disk);
                }
                // Where the sync failed, the commit may be there all the same.
                if state != model {
                    op.apply(&mut now).expect("fits");
                    op.run(&store).unwrap_or_else(|error| panic!("{told}, and again: {error}"));
                }
                model = now;
            }
            if result.is_ok() && call == "sync_dir" {
                // The commit is made, and a new snapshot is published. But its name may not be on the disk, and later
                // commits would go where nobody finds them.
                let refused = store.set_attrs(None, Attrs::new(), &[]).expect_err("poisoned");
                assert!(matches!(refused, StoreError::Poisoned { .. }), "{told}: {refused}");
                store = fresh(&disk);
            }
            // Another handle commits next, and this one must see what it did.
            write_next(&fresh(&disk), &mut model);
            assert_store(&store, &model, &mut Rng::new(n as u64));
            disk.assert_tidy(&store);
        }
        assert_store(&fresh(&disk), &model, &mut Rng::new(n as u64));
        disk.assert_tidy(&store);
        if !was_done {
            return n - 1;
        }
    }
    unreachable!("a story ends")
}

fn fail(fault: Fault) {
    let is_durable = matches!(fault, Fault::Full | Fault::Broken);
    for story in stories().into_iter().filter(|story| story.durable == is_durable || !story.has_blocks()) {
        let n_calls = fail_everywhere(&story, fault);
        eprintln!("{}: {n_calls} failed calls", story.name);
        rng::covered(n_calls as u64, "calls that fail: the disk is full, or broken");
    }
}

/// As in `death_while_many_arrays_are_saved_leaves_old_or_new`.
#[test]
fn full_disk_while_many_arrays_are_saved_leaves_everything_as_it_was() {
    let mut rng = Rng::new(rng::seed());
    for (story, fault) in many_arrays().into_iter().zip([Fault::FullHalfway, Fault::Full]) {
        let n_calls = fail_at(&story, fault, (1 + rng.below(120) as usize..).step_by(120));
        rng::covered(n_calls as u64 / 120, "calls that fail: the disk is full, or broken");
    }
}

#[test]
fn full_disk_at_any_call_leaves_everything_as_it_was() {
    fail(Fault::Full);
}

#[test]
fn full_disk_in_the_middle_of_any_write_leaves_everything_as_it_was() {
    fail(Fault::FullHalfway);
}

#[test]
fn used_up_quota_in_the_middle_of_any_write_leaves_everything_as_it_was() {
    fail(Fault::OverQuotaHalfway);
}

#[test]
fn broken_disk_at_any_call_is_reported() {
    fail(Fault::Broken);
}
