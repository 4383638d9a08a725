//! How much memory the machine has.

use std::fs;

/// Bytes of memory, without swap; `None` where the system does not tell.
pub fn total_len() -> Option<u64> {
    parse(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_found() {
        assert_eq!(
            parse("MemTotal:       24683552 kB\nMemFree:         2256584 kB\n"),
            Some(24_683_552 * 1024)
        );
        for bad in [
            "",
            "MemFree: 1 kB\n",
            "MemTotal: many kB\n",
            "MemTotal: 1\n",
            "MemTotal: 99999999999999999999 kB",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert!(total_len().is_none_or(|len| len > 1 << 20));
    }
}
