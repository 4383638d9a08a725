//! Whether anybody uses an open file besides its holder, asked by a lease (man 2 fcntl, `F_SETLEASE`).

use std::os::fd::{AsRawFd, BorrowedFd};

/// Whether any other open file or mapping of the file exists, in whatever process, or in the kernel itself; `false`
/// where that cannot be asked.
pub(super) fn has_others(fd: BorrowedFd<'_>) -> bool {
    // A lease for writing is given only to the one who alone has the file open. It is given back at once.
    match set_lease(fd, libc::F_WRLCK) {
        Ok(()) => {
            let _ = set_lease(fd, libc::F_UNLCK);
            false
        }
        Err(error) => error.raw_os_error() == Some(libc::EAGAIN),
    }
}

#[expect(unsafe_code, reason = "neither std nor rustix has leases")]
fn set_lease(fd: BorrowedFd<'_>, kind: libc::c_int) -> std::io::Result<()> {
    // SAFETY: `fd` is open while it is borrowed, and the other arguments are numbers.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, kind) } == 0 {
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
