//! Small cases in all orders that have few changes from one process to another: every place at which one of them can
//! stand still while the others do all that they have to do, and every pair of such places.

use shuttle::Runner;
use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

use crate::commits::{Op, Plan, together, two_arrays};
use crate::common::rng;
use crate::{N_ORDERS, config};

/// Most changes in an order that are not forced, where there is time.
const MAX_CHANGES: usize = 2;

/// Chooses one order after the other, depth first.
struct AllOrders {
    /// At each place: which of how many ways is taken.
    path: Vec<(usize, usize)>,
    depth: usize,
    n_changes: usize,
    max_changes: usize,
    has_begun: bool,
}

impl Scheduler for AllOrders {
    fn new_execution(&mut self) -> Option<Schedule> {
        if self.has_begun {
            while self.path.pop_if(|(taken, n)| *taken + 1 == *n).is_some() {}
            self.path.last_mut()?.0 += 1;
        }
        (self.has_begun, self.depth, self.n_changes) = (true, 0, 0);
        Some(Schedule::new(0))
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, _: bool) -> Option<TaskId> {
        let mut ways: Vec<TaskId> = runnable.iter().map(|task| task.id()).collect();
        // First of all, whoever runs goes on.
        let current = current.and_then(|current| ways.iter().position(|way| *way == current));
        if let Some(current) = current {
            ways.swap(0, current);
            if self.n_changes == self.max_changes {
                ways.truncate(1);
            }
        }
        if self.depth == self.path.len() {
            self.path.push((0, ways.len()));
        }
        let (taken, n) = self.path[self.depth];
        assert_eq!(n, ways.len(), "what happens does not depend on the order alone");
        self.depth += 1;
        self.n_changes += usize::from(current.is_some() && taken > 0);
        Some(ways[taken])
    }

    fn next_u64(&mut self) -> u64 {
        // What is not told which array to take is told the same each time.
        1
    }
}

/// All orders of two processes, which both know the state that they begin with, with at most so many changes; with more
/// where more cases are asked for than usual.
fn in_all_orders(what: &str, max_changes: usize, first: fn() -> Vec<Op>, second: fn() -> Vec<Op>) {
    let template = two_arrays();
    let run = move || {
        let plan = |ops: Vec<Op>| Plan { threads: vec![ops], life: u64::MAX, is_early: true };
        together(&template, vec![plan(first()), plan(second())]);
    };
    let max_changes = if rng::n_cases(N_ORDERS) > N_ORDERS { MAX_CHANGES } else { max_changes };
    let orders = AllOrders { path: Vec::new(), depth: 0, n_changes: 0, max_changes, has_begun: false };
    let n = Runner::new(orders, config()).run(run);
    rng::covered(n as u64, &format!("orders, all with up to {max_changes} changes, of {what}"));
}

#[test]
fn an_append_is_seen_from_when_it_returns_on() {
    in_all_orders(
        "an append and reads",
        2,
        || vec![Op::Append("a", 3)],
        || vec![Op::Read("a"), Op::List, Op::Read("a")],
    );
}

#[test]
fn two_appends_are_both_there() {
    in_all_orders("two appends", 1, || vec![Op::Append("a", 3)], || vec![Op::Append("a", 4), Op::List]);
}

#[test]
fn a_reader_of_what_is_overwritten_has_one_version_or_the_other() {
    in_all_orders("an array that is overwritten", 1, || vec![Op::Save("a", vec![3])], || vec![Op::Read("a")]);
}
