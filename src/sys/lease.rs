//! Whether anybody uses an open file besides its holder, asked by a lease (man 2 fcntl, `F_SETLEASE`).

use std::os::fd::{AsRawFd, BorrowedFd};

/// Whether any other open file or mapping of the file exists, in whatever process, or in the kernel itself; `false`
/// where that cannot be asked.
pub(super) fn has_others(fd: BorrowedFd<'_>) -> bool {
    // Who opens the file while the lease is held has its holder be sent a signal: one that nobody minds.
    if control(fd, F_SETSIG, libc::SIGURG).is_err() {
        return false;
    }
    // A lease for writing is given only to the one who alone has the file open. It is given back at once.
    match control(fd, libc::F_SETLEASE, libc::F_WRLCK) {
        Ok(()) => {
            let _ = control(fd, libc::F_SETLEASE, libc::F_UNLCK);
            false
        }
        Err(error) => error.raw_os_error() == Some(libc::EAGAIN),
    }
}

/// From asm-generic/fcntl.h; the crate `libc` lacks it for most targets.
const F_SETSIG: libc::c_int = 10;

#[expect(unsafe_code, reason = "neither std nor rustix has leases")]
fn control(fd: BorrowedFd<'_>, command: libc::c_int, argument: libc::c_int) -> std::io::Result<()> {
    // SAFETY: `fd` is open while it is borrowed, and the other arguments are numbers.
    if unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) } == 0 {
        return Ok(());
    }
    Err(std::io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn other_handles_and_maps_are_found() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        file.as_file().set_len(4096).expect("sets");
        let asked = || has_others(file.as_file().as_fd());
        assert!(!asked());
        let other = File::open(file.path()).expect("opens");
        assert!(asked());
        let map = super::super::Map::of_file(&other, 0, 4096).expect("maps");
        drop(other);
        assert!(asked());
        drop(map);
        assert!(!asked());
    }
}
