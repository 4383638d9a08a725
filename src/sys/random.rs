//! Random bytes of the system, for names and identities that nobody else has.

use std::io;

use rustix::io::retry_on_intr;
use rustix::rand::{GetRandomFlags, getrandom};

/// `N` random bytes.
///
/// # Errors
/// `Io` on a system without a source of them.
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    const { assert!(N <= 256, "getrandom(2) gives up to 256 bytes whole") };
    let mut bytes = [0; N];
    retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()))?;
    Ok(bytes)
}
