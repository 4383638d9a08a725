//! This process among others.

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

/// Threads that can run at once, 1 if the system does not say. Asked once: it takes as long as decoding a block.
pub fn n_cores() -> usize {
    static N_CORES: OnceLock<usize> = OnceLock::new();
    *N_CORES.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

/// Hands `items` out, one at a time, to up to `n_threads` threads, this one among them. Each thread has a state of its
/// own, which `init` makes, and takes no more items after an error. Returns one of the errors, if there are any, when
/// all threads have ended.
///
/// The threads are made for this call: a forked process needs none that it does not have.
///
/// # Errors
/// What `work` gives.
pub fn share_out<T: Send, S, E: Send>(
    n_threads: usize,
    items: impl Iterator<Item = T> + Send,
    init: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    if n_threads < 2 {
        let mut state = init();
        let mut items = items;
        return items.try_for_each(|item| work(&mut state, item));
    }
    let items = Mutex::new(items);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let take = || {
        let mut state = init();
        while let Some(item) = next() {
            work(&mut state, item)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..n_threads).map(|_| scope.spawn(take)).collect();
        let own = take();
        others.into_iter().fold(own, |result, other| match other.join() {
            Ok(other) => result.and(other),
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// Leaves the terminal: this process becomes the first of a session of its own, which no terminal's end reaches.
///
/// # Errors
/// `PermissionDenied` if it leads a process group already.
pub fn new_session() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// Ends a process, whatever it is doing.
///
/// # Errors
/// `PermissionDenied` if it is another user's; none if there is no such process.
pub fn kill(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .ok_or(io::ErrorKind::InvalidInput)?;
    match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
        Err(rustix::io::Errno::SRCH) => Ok(()),
        result => Ok(result?),
    }
}

/// How many descriptors this process may have open.
pub fn max_descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Lets this process have as many descriptors open as it may allow itself.
///
/// # Errors
/// What the system says.
pub fn raise_max_descriptors() -> io::Result<()> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    Ok(rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_item_is_taken_once_by_any_number_of_threads() {
        for n_threads in [0, 1, 2, 7] {
            let mut squares = vec![0; 100];
            let n_states = AtomicUsize::new(0);
            let init = || n_states.fetch_add(1, Ordering::Relaxed);
            let result: Result<(), ()> =
                share_out(n_threads, squares.iter_mut().enumerate(), init, |_, (i, out)| {
                    *out += i * i;
                    Ok(())
                });
            assert_eq!(result, Ok(()));
            assert!(squares.iter().enumerate().all(|(i, square)| *square == i * i));
            assert_eq!(n_states.into_inner(), n_threads.max(1));
        }
    }

    #[test]
    fn an_error_ends_its_thread_and_is_returned() {
        for n_threads in [1, 3] {
            let n_failed = AtomicUsize::new(0);
            let result = share_out(
                n_threads,
                0..100,
                || (),
                |(), i| {
                    n_failed.fetch_add(1, Ordering::Relaxed);
                    Err(i)
                },
            );
            assert!(result.is_err_and(|i| i < n_threads));
            assert_eq!(n_failed.into_inner(), n_threads);
        }
    }
}
