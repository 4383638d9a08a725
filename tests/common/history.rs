//! What several clients did to one thing at once, and whether some order of it explains what each of them saw.
//!
//! The search is that of Wing and Gong, with Lowe's memory of where it has been: an operation may be next in the order
//! if no other one that is left had returned before it was called.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// One operation, as its client saw it.
#[derive(Debug, Clone)]
pub struct Event<O> {
    pub client: usize,
    /// When it was called.
    pub start: u64,
    /// When it returned; `None` if the client died before: then it may have been done, also later, or not.
    pub end: Option<u64>,
    pub op: O,
}

/// The thing as it would be if operations came one after the other.
pub trait Model: Clone + Eq + Hash {
    /// An operation and what it returned.
    type Op;

    /// The state after `op`; `None` if `op` does not return in this state what it has returned. Of an operation whose
    /// client died (`!returned`) nobody knows what it would have returned.
    fn after(&self, op: &Self::Op, returned: bool) -> Option<Self>;
}

/// Finds an order of the events that explains them, and that no client could know to be wrong; panics with all of them
/// if there is none. Each client does one thing at a time, and nothing after it died.
pub fn assert_explained<M: Model>(initial: M, events: &[Event<M::Op>])
where
    M::Op: Debug,
{
    let n_clients = events.iter().map(|event| event.client + 1).max().unwrap_or(0);
    let mut clients: Vec<Vec<&Event<M::Op>>> = vec![Vec::new(); n_clients];
    for event in events {
        clients[event.client].push(event);
    }
    clients.iter_mut().for_each(|client| client.sort_by_key(|event| event.start));
    let mut seen = HashSet::new();
    if !search(&clients, &mut vec![0; n_clients], &initial, &mut seen) {
        let mut events: Vec<_> = events.iter().collect();
        events.sort_by_key(|event| event.start);
        let lines: Vec<String> = events
            .iter()
            .map(|e| format!("  {:>5} - {:>5?}  client {}: {:?}", e.start, e.end, e.client, e.op))
            .collect();
        panic!("no order of these operations explains what they returned:\n{}", lines.join("\n"));
    }
}

fn search<M: Model>(
    clients: &[Vec<&Event<M::Op>>],
    done: &mut Vec<usize>,
    state: &M,
    seen: &mut HashSet<(Vec<usize>, M)>,
) -> bool {
    let next = |client: usize, done: &[usize]| clients[client].get(done[client]).copied();
    let first_end = (0..clients.len()).filter_map(|client| next(client, done)?.end).min();
    let Some(first_end) = first_end else {
        // All that is left was cut short by death, and need not have happened.
        return true;
    };
    if !seen.insert((done.clone(), state.clone())) {
        return false;
    }
    for client in 0..clients.len() {
        let Some(event) = next(client, done) else { continue };
        if event.start > first_end {
            continue;
        }
        if let Some(after) = state.after(&event.op, event.end.is_some()) {
            done[client] += 1;
            if search(clients, done, &after, seen) {
                return true;
            }
            done[client] -= 1;
        }
    }
    false
}
