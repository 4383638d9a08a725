//! The store as it is, under a model checker: processes and threads on one directory in memory, in orders that it
//! chooses, one at a time, and among which each call of the storage and each lock is a place to change.
//!
//! Needs the feature `shuttle`, with which the locks of the store are those of the checker: `cargo test --features
//! shuttle --test interleavings`. `NUMPACK_TEST_CASES` sets how many orders each test tries. One that fails prints the
//! order, which `shuttle::replay` brings back, and `NUMPACK_TEST_SEED`.

#[path = "../common/mod.rs"]
mod common;

mod commits;
mod process;
mod rows;
mod small;

use std::sync::{Arc, Mutex};

use numpack::store::{Compression, Dtype, Filter, NewArray};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

use common::rng::Rng;
use common::{MemStorage, rng};
use process::Disk;

const BLOCK_LEN: u64 = 4096;
const BLOCKS: Compression = Compression { level: 1, block_len: BLOCK_LEN as u32, filter: Some(Filter::None) };

/// Orders that are tried of each test.
const N_ORDERS: u64 = 300;
/// Most changes from one process to another that are not forced, in half of the orders.
const MAX_CHANGES: usize = 3;

/// Lets `run` happen in many orders: half of them random, half of them with few changes, which find what needs one
/// process to stand still at the wrong place for long.
fn explore(what: &str, run: impl Fn() + Send + Sync + Clone + 'static) {
    let (seed, n) = (rng::seed(), rng::n_cases(N_ORDERS) as usize);
    let random = RandomScheduler::new_from_seed(seed, n - n / 2);
    let n_run = Runner::new(random, config()).run(run.clone())
        + Runner::new(PctScheduler::new_from_seed(seed, MAX_CHANGES, (n / 2).max(1)), config()).run(run);
    rng::covered(n_run as u64, &format!("orders of {what}"));
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.silence_warnings = true;
    config
}

/// What a store is like before something happens to it: made once, since the store works in an execution only.
#[derive(Clone)]
struct Template(MemStorage);

impl Template {
    fn new(make: impl Fn(&Disk) + Send + Sync + 'static) -> Self {
        let made = Arc::new(Mutex::new(None));
        let result = Arc::clone(&made);
        let once = move || {
            let disk = Disk::new(MemStorage::new());
            make(&disk);
            *result.lock().unwrap() = Some(disk.files().clone());
        };
        Runner::new(RandomScheduler::new_from_seed(0, 1), config()).run(once);
        let made = made.lock().unwrap().take();
        Template(made.expect("it ran once"))
    }

    fn disk(&self) -> Disk {
        Disk::new(self.0.after_kill())
    }
}

/// Random numbers that belong to the order.
fn random() -> Rng {
    use shuttle::rand::RngCore as _;
    Rng::new(shuttle::rand::thread_rng().next_u64())
}

fn bytes(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn values(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

fn array(data: &[u8]) -> NewArray<'_> {
    let dtype = Dtype::parse_python("'<u8'").unwrap();
    NewArray { dtype, shape: vec![data.len() as u64 / 8], fortran_order: false, data }
}
