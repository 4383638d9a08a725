//! Random operations on a store and on a model of it; after each one, everything is compared, through two handles.
//!
//! `NUMPACK_TEST_SEED` repeats a run, `NUMPACK_TEST_CASES` sets its length.

#[path = "../common/mod.rs"]
mod common;
mod regressions;
mod world;

use common::rng;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use world::{Place, World};

/// Steps of a case: each the seed of what it does.
fn run(place: Place, default_cases: u64) {
    let seed = rng::seed();
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: rng::n_cases(default_cases) as u32,
        failure_persistence: None,
        max_shrink_iters: 1000,
        max_shrink_time: 20_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let case = |steps: &[u64], is_told: bool| {
        let mut world = World::new(place, is_told, !steps[0].is_multiple_of(4));
        steps.iter().for_each(|step| world.step(*step));
        world.finish();
    };
    let result = runner.run(&vec(any::<u64>(), 1..50), |steps| {
        case(&steps, false);
        Ok(())
    });
    match result {
        Err(TestError::Fail(_, steps)) => {
            eprintln!("NUMPACK_TEST_SEED={seed}; the shortest case found, once more:");
            case(&steps, true);
            panic!("it passes now");
        }
        result => result.expect("runs"),
    }
    rng::covered(rng::n_cases(default_cases), "sequences of random operations compared with the model");
}

#[test]
fn store_on_disk_does_what_the_model_does() {
    run(Place::Disk, 30);
}

/// Without the word that handles share on disk, they look at the manifest each time.
#[test]
fn store_in_memory_does_what_the_model_does() {
    run(Place::Memory, 30);
}
