//! Random numbers that a printed seed brings back.

use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 for 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 7);
        while out.len() < len {
            out.extend(self.next().to_le_bytes());
        }
        out.truncate(len);
        out
    }
}

/// The cases of a random test, `default` of them or `NUMPACK_TEST_CASES`, each with random numbers of its own. Should
/// one panic, its seed is printed.
pub fn cases(default: u64) -> Cases {
    Cases { seed: seed(), left: n_cases(default), is_running: false }
}

pub struct Cases {
    seed: u64,
    left: u64,
    is_running: bool,
}

impl Iterator for Cases {
    type Item = Rng;

    fn next(&mut self) -> Option<Rng> {
        self.left = self.left.checked_sub(1)?;
        self.seed = self.seed.wrapping_add(u64::from(self.is_running));
        self.is_running = true;
        // Neighbouring seeds of SplitMix64 give the same numbers, one later.
        Some(Rng::new(Rng::new(self.seed).next()))
    }
}

impl Drop for Cases {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("NUMPACK_TEST_SEED={} begins with the case that failed", self.seed);
        }
    }
}

/// The seed of a test: that of `NUMPACK_TEST_SEED`, or a new one. It is printed, for when the test fails.
pub fn seed() -> u64 {
    let given = std::env::var("NUMPACK_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_nanos() as u64
    });
    eprintln!("NUMPACK_TEST_SEED={seed}");
    seed
}

/// Says how much a test has tried of what, for the summary of all tests.
pub fn covered(n: impl Into<u64>, what: &str) {
    eprintln!("covered: {} {what}", n.into());
}

/// The number of cases of a random test: that of `NUMPACK_TEST_CASES`, or `default`.
pub fn n_cases(default: u64) -> u64 {
    std::env::var("NUMPACK_TEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
