//! Differences: each item less the one some items before it, which leaves less to say where items rise, fall or wave.
//! They are folded: small ones of either sign become small numbers, whose upper bytes are zero.
//!
//! Items are little-endian integers that wrap around; the bits of floating-point numbers are taken for integers,
//! whose order is the same. Bytes that do not fill an item stay as they are, at the end. Making differences is left
//! to the compiler; adding them up again waits for the item before, and is vectorised here.
//!
//! On disk: spec/npk-format.md, "Filters".

use fearless_simd::{Level, Simd, dispatch, prelude::*, u8x16, u16x8, u32x4, u64x2};

/// Writes the differences of items of `itemsize` bytes to those `step` items before. What is before the first item
/// counts as zeros.
///
/// # Panics
/// If `out` is not as long as `raw`, `itemsize` is not 1, 2, 4 or 8, or the step not 1 to 4.
pub fn delta(step: usize, itemsize: usize, raw: &[u8], out: &mut [u8]) {
    assert_eq!(raw.len(), out.len(), "a filter keeps the length");
    match itemsize {
        1 => subtract::<1, u8>(step, raw, out),
        2 => subtract::<2, u16>(step, raw, out),
        4 => subtract::<4, u32>(step, raw, out),
        8 => subtract::<8, u64>(step, raw, out),
        _ => panic!("differences are for items of 1, 2, 4 and 8 bytes, not {itemsize}"),
    }
}

/// Undoes [`delta`], in place.
///
/// # Panics
/// If `itemsize` is not 1, 2, 4 or 8, or the step not 1 to 4.
pub fn undelta(step: usize, itemsize: usize, items: &mut [u8]) {
    undelta_at(Level::new(), step, itemsize, items);
}

fn undelta_at(level: Level, step: usize, itemsize: usize, items: &mut [u8]) {
    // The lanes of a vector are in the byte order of the machine, the items are little-endian.
    let done = match itemsize {
        _ if cfg!(target_endian = "big") => 0,
        1 => dispatch!(level, simd => add_vectors::<_, u8x16<_>>(simd, step, items)),
        2 => dispatch!(level, simd => add_vectors::<_, u16x8<_>>(simd, step, items)),
        4 => dispatch!(level, simd => add_vectors::<_, u32x4<_>>(simd, step, items)),
        8 => dispatch!(level, simd => add_vectors::<_, u64x2<_>>(simd, step, items)),
        _ => 0,
    };
    match itemsize {
        1 => add::<1, u8>(step, done, items),
        2 => add::<2, u16>(step, done, items),
        4 => add::<4, u32>(step, done, items),
        8 => add::<8, u64>(step, done, items),
        _ => panic!("differences are for items of 1, 2, 4 and 8 bytes, not {itemsize}"),
    }
}

/// An unsigned integer of `N` bytes, as items are.
trait Item<const N: usize>: Copy + Default {
    fn read(bytes: [u8; N]) -> Self;
    fn bytes(self) -> [u8; N];
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    /// 0, -1, 1, -2, 2 ... become 0, 1, 2, 3, 4 ...: the sign is the lowest bit.
    fn folded(self) -> Self;
    fn unfolded(self) -> Self;
}

macro_rules! item {
    ($int:ty) => {
        impl Item<{ size_of::<$int>() }> for $int {
            fn read(bytes: [u8; size_of::<$int>()]) -> Self {
                Self::from_le_bytes(bytes)
            }
            fn bytes(self) -> [u8; size_of::<$int>()] {
                self.to_le_bytes()
            }
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            fn folded(self) -> Self {
                (self << 1) ^ (self >> (Self::BITS - 1)).wrapping_neg()
            }
            fn unfolded(self) -> Self {
                (self >> 1) ^ (self & 1).wrapping_neg()
            }
        }
    };
}

item!(u8);
item!(u16);
item!(u32);
item!(u64);

fn subtract<const N: usize, T: Item<N>>(step: usize, raw: &[u8], out: &mut [u8]) {
    let (items, rest) = raw.as_chunks::<N>();
    let (out, rest_out) = out.as_chunks_mut::<N>();
    rest_out.copy_from_slice(rest);
    let (first, next) = items.split_at(step.min(items.len()));
    let (first_out, out) = out.split_at_mut(first.len());
    for (out, item) in first_out.iter_mut().zip(first) {
        *out = T::read(*item).folded().bytes();
    }
    for ((out, item), before) in out.iter_mut().zip(next).zip(items) {
        *out = T::read(*item).minus(T::read(*before)).folded().bytes();
    }
}

/// [`undelta`], item by item, from byte `done` on.
fn add<const N: usize, T: Item<N>>(step: usize, done: usize, items: &mut [u8]) {
    let items = items.as_chunks_mut::<N>().0;
    match step {
        1 => add_with::<N, 1, T>(done / N, items),
        2 => add_with::<N, 2, T>(done / N, items),
        3 => add_with::<N, 3, T>(done / N, items),
        4 => add_with::<N, 4, T>(done / N, items),
        _ => panic!("differences are taken 1 to 4 items apart, not {step}"),
    }
}

fn add_with<const N: usize, const STEP: usize, T: Item<N>>(first: usize, items: &mut [[u8; N]]) {
    let (done, items) = items.split_at_mut(first);
    let mut before = [T::default(); STEP];
    for (before, item) in before.iter_mut().rev().zip(done.iter().rev()) {
        *before = T::read(*item);
    }
    let mut add = |group: &mut [[u8; N]]| {
        for (item, before) in group.iter_mut().zip(&mut before) {
            *before = T::read(*item).unfolded().plus(*before);
            *item = before.bytes();
        }
    };
    let (groups, rest) = items.as_chunks_mut::<STEP>();
    for group in groups {
        add(group);
    }
    add(rest);
}

/// [`undelta`] with vectors of 16 bytes, whose lanes are the items. Returns how many bytes are done.
#[inline(always)]
fn add_vectors<S, V>(simd: S, step: usize, items: &mut [u8]) -> usize
where
    S: Simd,
    V: SimdInt<S> + SimdBase<S, ByteVector = u8x16<S>>,
{
    match step {
        1 => add_vectors_with::<S, V, 1>(simd, items),
        2 => add_vectors_with::<S, V, 2>(simd, items),
        3 => add_vectors_with::<S, V, 3>(simd, items),
        4 => add_vectors_with::<S, V, 4>(simd, items),
        _ => 0,
    }
}

/// Adding the vector to itself moved up by a step, by two, by four ... makes the sums within the vector. What came
/// before is added last, so that all but that addition is done while the vector before is.
#[inline(always)]
fn add_vectors_with<S, V, const STEP: usize>(simd: S, items: &mut [u8]) -> usize
where
    S: Simd,
    V: SimdInt<S> + SimdBase<S, ByteVector = u8x16<S>>,
{
    let itemsize = 16 / V::LEN;
    let step_len = STEP * itemsize;
    if step_len > 16 {
        return 0;
    }
    let zeros = u8x16::splat(simd, 0);
    let one = V::from_fn(simd, |_| true.into());
    // For each lane, the last one of the vector before that is whole steps before it.
    let last_lanes = u8x16::from_fn(simd, |k| (16 - step_len + k % step_len) as u8);
    let mut before: V = zeros.bitcast();
    let (vectors, _) = items.as_chunks_mut::<16>();
    for bytes in &mut *vectors {
        let mut sum: V = u8x16::from_slice(simd, bytes).bitcast();
        sum = (sum >> 1) ^ (zeros.bitcast::<V>() - (sum & one));
        let mut moved_by = step_len;
        while moved_by < 16 {
            sum += moved_up(sum.to_bytes(), moved_by, zeros).bitcast::<V>();
            moved_by *= 2;
        }
        let total = sum + before;
        total.to_bytes().store_slice(bytes);
        if 16 % step_len == 0 {
            // The same sums, but the next vector waits for one addition only.
            before += sum.to_bytes().swizzle_dyn(last_lanes).bitcast::<V>();
        } else {
            before = total.to_bytes().swizzle_dyn(last_lanes).bitcast();
        }
    }
    vectors.len() * 16
}

/// The vector moved up by `len` bytes, with zeros below it.
#[inline(always)]
fn moved_up<S: Simd>(bytes: u8x16<S>, len: usize, zeros: u8x16<S>) -> u8x16<S> {
    // A vector moves by constants only; `len` is one once all this is inlined.
    match len {
        1 => zeros.slide::<15>(bytes),
        2 => zeros.slide::<14>(bytes),
        3 => zeros.slide::<13>(bytes),
        4 => zeros.slide::<12>(bytes),
        6 => zeros.slide::<10>(bytes),
        8 => zeros.slide::<8>(bytes),
        12 => zeros.slide::<4>(bytes),
        _ => unreachable!("steps of 1 to 4 items of 1, 2, 4 or 8 bytes, doubled"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::Filter;

    /// The definition, item by item.
    fn differences_of(step: usize, itemsize: usize, raw: &[u8]) -> Vec<u8> {
        let n_items = raw.len() / itemsize;
        let bits = 8 * itemsize as u32;
        let item = |index: usize| {
            let bytes = &raw[index * itemsize..(index + 1) * itemsize];
            bytes.iter().rev().fold(0_i128, |item, byte| item << 8 | i128::from(*byte))
        };
        let mut out = raw.to_vec();
        for index in 0..n_items {
            let before = if index < step { 0 } else { item(index - step) };
            let difference = (item(index) - before).rem_euclid(1 << bits);
            let negative = difference >= 1 << (bits - 1);
            let signed = difference - if negative { 1 << bits } else { 0 };
            let folded = if negative { -2 * signed - 1 } else { 2 * signed };
            let bytes = folded.to_le_bytes();
            out[index * itemsize..(index + 1) * itemsize].copy_from_slice(&bytes[..itemsize]);
        }
        out
    }

    fn check(itemsize: usize, raw: &[u8]) {
        for filter in Filter::ALL {
            let Some(step) = filter.step() else { continue };
            let what = format!("{filter} of {} bytes, items of {itemsize}", raw.len());
            let mut out = vec![0xaa; raw.len()];
            delta(step, itemsize, raw, &mut out);
            assert_eq!(out, differences_of(step, itemsize, raw), "{what}");
            for level in [Level::new(), Level::baseline()] {
                let mut back = out.clone();
                undelta_at(level, step, itemsize, &mut back);
                assert_eq!(back, raw, "{what}, {level:?}");
            }
        }
    }

    #[test]
    fn every_length_around_a_few_vectors_is_right() {
        let raw: Vec<u8> = (0..70_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for itemsize in [1, 2, 4, 8] {
            for len in 0..raw.len() {
                check(itemsize, &raw[..len]);
            }
        }
    }

    #[test]
    fn differences_are_what_the_specification_shows() {
        let mut out = [0; 5];
        delta(1, 2, &[1, 0, 0, 0, 9], &mut out);
        assert_eq!(out, [2, 0, 1, 0, 9]);
        let mut out = [0; 6];
        delta(3, 1, &[0xc8, 10, 20, 0xcb, 9, 20], &mut out);
        assert_eq!(out, [0x6f, 0x14, 0x28, 6, 1, 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_right(
            itemsize in prop::sample::select(vec![1_usize, 2, 4, 8]),
            raw in prop::collection::vec(any::<u8>(), 0..3000),
        ) {
            check(itemsize, &raw);
        }
    }
}
