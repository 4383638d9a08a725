//! What can be done about an error of the operating system, to be said behind it.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// Shows an error of the system, and the next step where there is one.
#[derive(Debug)]
pub struct WithRemedy<'a>(pub &'a io::Error);

impl fmt::Display for WithRemedy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0, remedy(self.0))
    }
}

/// The next step, with what separates it from the error; empty where there is none to tell.
pub fn remedy(error: &io::Error) -> &'static str {
    // The same words as in python/numpack/_errors.py.
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC) => "; make room on that disk and try again",
        Some(Errno::DQUOT) => "; make room or have the quota raised, and try again",
        Some(Errno::MFILE) => "; close arrays and stores, or raise the limit of open files (ulimit -n)",
        Some(Errno::NOMEM) => "; free memory, or raise the limit on it, and try again",
        Some(Errno::ROFS) => {
            "; the disk may have become read-only after an error: see the kernel's log (dmesg)"
        }
        Some(Errno::IO) => "; the disk may be failing: see the kernel's log (dmesg)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_a_remedy_and_a_made_up_error_has_none() {
        let full = io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error());
        assert!(
            WithRemedy(&full).to_string().ends_with("(os error 28); make room on that disk and try again")
        );
        assert_eq!(WithRemedy(&io::Error::other("odd")).to_string(), "odd");
    }
}
