//! The numbers of users and groups, by name, as the system's account database has them.

use std::ffi::{CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::ptr;

/// What an entry may take: as much as the largest groups of a company have needed.
const MAX_ENTRY_LEN: usize = 1 << 20;

/// The number of a user; `None` if there is none of this name.
pub fn user(name: &str) -> Option<u32> {
    #[expect(unsafe_code, reason = "a call of the C library")]
    // SAFETY: find() hands over a name that ends, and room for an entry and what it points to, with its length.
    find(name, |name, entry, buf, len, found| unsafe { libc::getpwnam_r(name, entry, buf, len, found) })
        .map(|entry: libc::passwd| entry.pw_uid)
}

/// The number of a group; `None` if there is none of this name.
pub fn group(name: &str) -> Option<u32> {
    #[expect(unsafe_code, reason = "a call of the C library")]
    // SAFETY: as above.
    find(name, |name, entry, buf, len, found| unsafe { libc::getgrnam_r(name, entry, buf, len, found) })
        .map(|entry: libc::group| entry.gr_gid)
}

/// Calls one of the functions of getpwnam_r(3) with as much room as it asks for. What the entry that is returned points
/// to is gone: only its numbers may be read.
fn find<T: Copy>(
    name: &str,
    get: impl Fn(*const c_char, *mut T, *mut c_char, usize, *mut *mut T) -> c_int,
) -> Option<T> {
    let name = CString::new(name).ok()?;
    let mut buf: Vec<c_char> = vec![0; 1 << 10];
    loop {
        let mut entry = MaybeUninit::<T>::uninit();
        let mut found = ptr::null_mut();
        match get(name.as_ptr(), entry.as_mut_ptr(), buf.as_mut_ptr(), buf.len(), &mut found) {
            libc::ERANGE if buf.len() < MAX_ENTRY_LEN => buf.resize(2 * buf.len(), 0),
            libc::EINTR => {}
            0 if !found.is_null() => {
                #[expect(unsafe_code, reason = "the C library filled it in")]
                // SAFETY: `found` is not null, so the call wrote a whole entry where it was told to.
                return Some(unsafe { entry.assume_init() });
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_and_nobody_of_no_name() {
        assert_eq!((user("root"), group("root")), (Some(0), Some(0)));
        for name in ["", "no such user", "a\0b", ":", "root:x"] {
            assert_eq!((user(name), group(name)), (None, None), "{name:?}");
        }
    }
}
