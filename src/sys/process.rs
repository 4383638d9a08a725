//! This process among others.

use std::io;

/// Leaves the terminal: this process becomes the first of a session of its own, which no terminal's end reaches.
///
/// # Errors
/// `PermissionDenied` if it leads a process group already.
pub fn new_session() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}
