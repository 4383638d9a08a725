//! A repair that dies at any call: another one goes on, nothing more is lost, and what was damaged is kept.

use std::sync::Arc;

use numpack::store::{Access, Outcome, Repair, Repaired, StoreError};
use numpack::sys::Storage;

use super::{
    FaultyStorage, MANIFEST, MemStorage, contents, cut, flip, found, kept, open, overwrite, read, repair,
    rows, sample, u8s,
};
use crate::common::LastWrite;
use crate::common::rng::{self, Rng};

/// Two damaged arrays, and with `is_lost` a damaged manifest.
fn damaged(is_lost: bool) -> MemStorage {
    let memory = sample();
    let store = open(&memory, Access::Write);
    store.set_durable(true);
    store.append(&[("zstd", u8s(&rows(4, 3)))]).expect("appends");
    let place = found(&memory, "zstd").blocks[2].clone();
    flip(&memory, "data_zstd.npkd", place.offset);
    cut(&memory, "data_plain.npkd", 4096 + 700);
    if is_lost {
        overwrite(&memory, MANIFEST, 60, &[0xff; 60]);
    }
    // All of it is on the disk, damaged as it is.
    for name in memory.list().expect("lists") {
        let file = memory.open(&name, numpack::sys::FileAccess::Write).expect("opens");
        file.sync_data().expect("syncs");
    }
    memory.sync_dir().expect("syncs");
    memory
}

fn repair_faulty(storage: &FaultyStorage) -> Result<Repaired, StoreError> {
    Repair { progress: &mut |_, _, _| () }.in_storage(Box::new(storage.clone()))
}

/// What is left has all that a repair that is not interrupted leaves, and the damaged files.
fn assert_goes_on(left: &MemStorage, is_lost: bool, manifest: &[u8], told: &str) {
    let whole = damaged(is_lost);
    let originals = ["data_zstd.npkd", "data_plain.npkd"].map(|name| (name, read(&whole, name)));
    repair(&whole).expect("repairs");
    repair(left).unwrap_or_else(|error| panic!("{told}: {error}"));
    assert_eq!(contents(left), contents(&whole), "{told}");
    for (name, bytes) in originals {
        assert!(kept(left, &format!("lost+found/{name}")) == bytes, "{told}: {name}");
    }
    if is_lost {
        // The published length is no part of what it says.
        let kept = kept(left, &format!("lost+found/{MANIFEST}"));
        assert!(kept[..40] == manifest[..40] && kept[48..] == manifest[48..], "{told}");
    }
    let again = repair(left).expect("repairs");
    assert!(again.was_sound(), "{told}: {again:?}");
}

#[test]
fn a_repair_that_dies_at_any_call_is_gone_on_with() {
    for is_lost in [false, true] {
        let mut n_deaths = 0_u64;
        for n in 1.. {
            let memory = damaged(is_lost);
            let manifest = read(&memory, MANIFEST);
            let storage = FaultyStorage::new(Arc::new(memory.clone()));
            storage.die_at(n, if n % 2 == 0 { LastWrite::Torn } else { LastWrite::Lost });
            let result = repair_faulty(&storage);
            if !storage.is_dead() {
                let repaired = result.expect("repairs");
                let is_partly = |of: &Outcome| matches!(of, Outcome::Partly { .. });
                assert_eq!(repaired.arrays.iter().filter(|array| is_partly(&array.outcome)).count(), 2);
                break;
            }
            n_deaths += 1;
            let told = format!("died at {:?}", storage.failed_call());
            assert_goes_on(&memory.after_kill(), is_lost, &manifest, &told);
        }
        assert!(n_deaths > 20, "{n_deaths}");
        rng::covered(n_deaths, "cut points of a repair: the process dies");
    }
}

#[test]
fn a_loss_of_power_during_a_repair_costs_nothing_more() {
    let mut rng = Rng::new(rng::seed());
    for is_lost in [false, true] {
        let mut n_losses = 0_u64;
        for n in 1.. {
            let memory = damaged(is_lost);
            let manifest = read(&memory, MANIFEST);
            let storage = FaultyStorage::new(Arc::new(memory.clone()));
            storage.die_at(n, LastWrite::Torn);
            let _ = repair_faulty(&storage);
            for chance in [0, 1, 3, 4] {
                n_losses += 1;
                let left = memory.after_power_loss(&mut || rng.below(4) < chance);
                let told = format!("lost power at {:?}, {chance} of 4", storage.failed_call());
                assert_goes_on(&left, is_lost, &manifest, &told);
            }
            if !storage.is_dead() {
                break;
            }
        }
        rng::covered(n_losses, "cut points of a repair: the power goes");
    }
}

#[test]
fn a_full_disk_leaves_the_store_as_damaged_as_it_was() {
    for is_lost in [false, true] {
        for n in 1.. {
            let memory = damaged(is_lost);
            let manifest = read(&memory, MANIFEST);
            let storage = FaultyStorage::new(Arc::new(memory.clone()));
            storage.fail_at(n, std::io::Error::from_raw_os_error(libc::ENOSPC));
            let result = repair_faulty(&storage);
            let Some(call) = storage.failed_call() else { break };
            assert_goes_on(&memory, is_lost, &manifest, &format!("{call} failed: {:?}", result.err()));
        }
    }
}
