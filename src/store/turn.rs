//! Turns: of the threads of one process, one at a time writes to a store.
//!
//! As a mutex, but one whose waiters look up now and then, and may give up.

use std::sync::PoisonError;

use super::INTERRUPT_PERIOD;
use super::data::lock;
use crate::sys::sync::{Condvar, Mutex};

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turn {
    state: Mutex<State>,
    free: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_taken: bool,
    n_waiting: usize,
}

/// The turn, until dropped.
#[derive(Debug)]
pub(super) struct TurnGuard<'a>(&'a Turn);

impl Turn {
    /// Takes the turn if nobody has it.
    pub(super) fn try_take(&self) -> Option<TurnGuard<'_>> {
        let mut state = lock(&self.state);
        let is_free = !std::mem::replace(&mut state.is_taken, true);
        is_free.then(|| TurnGuard(self))
    }

    /// Waits for the turn; `None` if `interrupted` says so meanwhile.
    pub(super) fn take(&self, interrupted: Option<&fn() -> bool>) -> Option<TurnGuard<'_>> {
        let mut state = lock(&self.state);
        while state.is_taken {
            state.n_waiting += 1;
            state = match interrupted {
                None => self.free.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(_) => {
                    let waited = self.free.wait_timeout(state, INTERRUPT_PERIOD);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
            state.n_waiting -= 1;
            if state.is_taken && interrupted.is_some() {
                // Asked without the lock: the answer may have to wait for those who wait for this one.
                drop(state);
                if interrupted.is_some_and(|interrupted| interrupted()) {
                    return None;
                }
                state = lock(&self.state);
            }
        }
        state.is_taken = true;
        Some(TurnGuard(self))
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.is_taken = false;
        let is_awaited = state.n_waiting > 0;
        drop(state);
        if is_awaited {
            self.0.free.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    #[test]
    fn one_thread_at_a_time_has_it() {
        let turn = Turn::default();
        let inside = AtomicBool::new(false);
        let never: fn() -> bool = || false;
        thread::scope(|scope| {
            for interrupted in [None, Some(&never), None, Some(&never)] {
                let (turn, inside) = (&turn, &inside);
                scope.spawn(move || {
                    for _ in 0..500 {
                        let guard = turn.take(interrupted).expect("nobody interrupts");
                        assert!(!inside.swap(true, Ordering::SeqCst), "two at once");
                        assert!(turn.try_take().is_none());
                        assert!(inside.swap(false, Ordering::SeqCst));
                        drop(guard);
                    }
                });
            }
        });
        assert!(turn.try_take().is_some());
    }

    #[test]
    fn who_is_interrupted_gives_up_and_leaves_the_turn_alone() {
        let turn = Turn::default();
        let guard = turn.try_take().expect("free");
        let always: fn() -> bool = || true;
        assert!(turn.take(Some(&always)).is_none());
        assert!(turn.try_take().is_none());
        drop(guard);
        assert!(turn.take(Some(&always)).is_some(), "who need not wait is not asked");
    }
}
