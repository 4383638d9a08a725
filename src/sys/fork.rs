//! Notices forks without a system call.
//!
//! A forked child shares open file descriptions with its parent, so locks that belong to one belong to both, and a
//! temporary file that the child inherits is still the parent's. Objects remember the [`generation`] that made them.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

static FORKS: AtomicU64 = AtomicU64::new(0);

/// Number of `fork`s between the process that first asked and this one.
///
/// # Errors
/// `OutOfMemory` if the handler cannot be registered.
pub(super) fn generation() -> io::Result<u64> {
    static REGISTERED: OnceLock<i32> = OnceLock::new();
    match *REGISTERED.get_or_init(register) {
        0 => Ok(FORKS.load(Ordering::Relaxed)),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

extern "C" fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

#[expect(unsafe_code, reason = "std has no fork handlers, and getpid is a system call for every lock")]
fn register() -> i32 {
    // SAFETY: `count_fork` only adds to an atomic, which is allowed in the child of a threaded process, and it is
    // never unloaded: glibc unregisters the handlers of a library that is closed.
    unsafe { libc::pthread_atfork(None, None, Some(count_fork)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_stays_without_forks() {
        assert_eq!(generation().expect("registers"), generation().expect("registered"));
    }
}
