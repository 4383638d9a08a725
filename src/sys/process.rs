//! This process among others.

use std::io;
use std::sync::OnceLock;
use std::thread;

/// Threads that can run at once, 1 if the system does not say. Asked once: it takes as long as decoding a block.
pub fn n_cores() -> usize {
    static N_CORES: OnceLock<usize> = OnceLock::new();
    *N_CORES.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

/// Leaves the terminal: this process becomes the first of a session of its own, which no terminal's end reaches.
///
/// # Errors
/// `PermissionDenied` if it leads a process group already.
pub fn new_session() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// How many descriptors this process may have open.
pub fn max_descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
