//! Shuffling and differences: the reversible steps that give zstd bytes of one kind next to each other.
//!
//! Each has a plain form for any item and a vectorised one for the common sizes, chosen at run time for the
//! processor. Bytes that do not fill an item stay as they are, at the end. A run may begin within an item: the
//! planes are then rotated among each other, which costs nothing and is undone by the same steps.
//!
//! On disk: spec/npk-format.md, "Filters".

use fearless_simd::{Level, Simd, dispatch, prelude::*, u8x16, u16x8, u32x4, u64x2};

/// Writes the bytes of all items plane by plane: the first byte of each, then the second, and so on.
///
/// # Panics
/// If `out` is not as long as `raw`, or `itemsize` is 0.
pub fn shuffle(itemsize: usize, raw: &[u8], out: &mut [u8]) {
    shuffle_at(Level::new(), itemsize, raw, out);
}

fn shuffle_at(level: Level, itemsize: usize, raw: &[u8], out: &mut [u8]) {
    assert_eq!(raw.len(), out.len(), "a filter keeps the length");
    let done = dispatch!(level, simd => to_planes(simd, itemsize, raw, out));
    shuffle_from(done, itemsize, raw, out);
}

/// Undoes [`shuffle`].
///
/// # Panics
/// If `out` is not as long as `planes`, or `itemsize` is 0.
pub fn unshuffle(itemsize: usize, planes: &[u8], out: &mut [u8]) {
    unshuffle_at(Level::new(), itemsize, planes, out);
}

fn unshuffle_at(level: Level, itemsize: usize, planes: &[u8], out: &mut [u8]) {
    assert_eq!(planes.len(), out.len(), "a filter keeps the length");
    let done = dispatch!(level, simd => from_planes(simd, itemsize, planes, out));
    unshuffle_from(done, itemsize, planes, out);
}

/// Writes each item less the one before it, as little-endian integers that wrap around. The first stays.
///
/// # Panics
/// If `out` is not as long as `raw`, or `itemsize` is not 1, 2, 4 or 8.
pub fn delta(itemsize: usize, raw: &[u8], out: &mut [u8]) {
    assert_eq!(raw.len(), out.len(), "a filter keeps the length");
    match itemsize {
        1 => differences::<1>(raw, out, |item, last| [item[0].wrapping_sub(last[0])]),
        2 => differences(raw, out, |item, last| {
            u16::from_le_bytes(item).wrapping_sub(u16::from_le_bytes(last)).to_le_bytes()
        }),
        4 => differences(raw, out, |item, last| {
            u32::from_le_bytes(item).wrapping_sub(u32::from_le_bytes(last)).to_le_bytes()
        }),
        8 => differences(raw, out, |item, last| {
            u64::from_le_bytes(item).wrapping_sub(u64::from_le_bytes(last)).to_le_bytes()
        }),
        _ => panic!("differences are for items of 1, 2, 4 and 8 bytes, not {itemsize}"),
    }
}

/// Undoes [`delta`], in place: each item becomes the sum of all up to it.
///
/// # Panics
/// If `itemsize` is not 1, 2, 4 or 8.
pub fn undelta(itemsize: usize, items: &mut [u8]) {
    undelta_at(Level::new(), itemsize, items);
}

fn undelta_at(level: Level, itemsize: usize, items: &mut [u8]) {
    // The lanes of a vector are in the byte order of the machine, the items are little-endian.
    let done = match itemsize {
        _ if cfg!(target_endian = "big") => 0,
        1 => dispatch!(level, simd => sums::<_, u8x16<_>>(simd, items)),
        2 => dispatch!(level, simd => sums::<_, u16x8<_>>(simd, items)),
        4 => dispatch!(level, simd => sums::<_, u32x4<_>>(simd, items)),
        8 => dispatch!(level, simd => sums::<_, u64x2<_>>(simd, items)),
        _ => 0,
    };
    undelta_from(done, itemsize, items);
}

/// [`shuffle`] for the items from `first` on.
fn shuffle_from(first: usize, itemsize: usize, raw: &[u8], out: &mut [u8]) {
    let n_items = raw.len() / itemsize;
    let (items, rest) = raw.split_at(n_items * itemsize);
    let (planes, rest_out) = out.split_at_mut(n_items * itemsize);
    rest_out.copy_from_slice(rest);
    if first == n_items {
        return;
    }
    for (place, plane) in planes.chunks_exact_mut(n_items).enumerate() {
        let bytes = items[first * itemsize + place..].iter().step_by(itemsize);
        for (out, byte) in plane[first..].iter_mut().zip(bytes) {
            *out = *byte;
        }
    }
}

/// [`unshuffle`] for the items from `first` on.
fn unshuffle_from(first: usize, itemsize: usize, planes: &[u8], out: &mut [u8]) {
    let n_items = planes.len() / itemsize;
    let (planes, rest) = planes.split_at(n_items * itemsize);
    let (items, rest_out) = out.split_at_mut(n_items * itemsize);
    rest_out.copy_from_slice(rest);
    if first == n_items {
        return;
    }
    for (place, plane) in planes.chunks_exact(n_items).enumerate() {
        let bytes = items[first * itemsize + place..].iter_mut().step_by(itemsize);
        for (out, byte) in bytes.zip(&plane[first..]) {
            *out = *byte;
        }
    }
}

/// [`undelta`] from byte `first` on, the items before it being done.
fn undelta_from(first: usize, itemsize: usize, items: &mut [u8]) {
    let items = &mut items[first.saturating_sub(itemsize)..];
    match itemsize {
        1 => accumulate::<1>(items, |item, last| [item[0].wrapping_add(last[0])]),
        2 => accumulate(items, |item, last| {
            u16::from_le_bytes(item).wrapping_add(u16::from_le_bytes(last)).to_le_bytes()
        }),
        4 => accumulate(items, |item, last| {
            u32::from_le_bytes(item).wrapping_add(u32::from_le_bytes(last)).to_le_bytes()
        }),
        8 => accumulate(items, |item, last| {
            u64::from_le_bytes(item).wrapping_add(u64::from_le_bytes(last)).to_le_bytes()
        }),
        _ => panic!("differences are for items of 1, 2, 4 and 8 bytes, not {itemsize}"),
    }
}

fn differences<const N: usize>(raw: &[u8], out: &mut [u8], sub: impl Fn([u8; N], [u8; N]) -> [u8; N]) {
    let (items, rest) = raw.as_chunks::<N>();
    let (out, rest_out) = out.as_chunks_mut::<N>();
    rest_out.copy_from_slice(rest);
    if let ([first_out, out @ ..], [first, next @ ..]) = (out, items) {
        *first_out = *first;
        for ((out, item), last) in out.iter_mut().zip(next).zip(items) {
            *out = sub(*item, *last);
        }
    }
}

fn accumulate<const N: usize>(items: &mut [u8], add: impl Fn([u8; N], [u8; N]) -> [u8; N]) {
    let mut last = [0; N];
    for item in items.as_chunks_mut::<N>().0 {
        *item = add(*item, last);
        last = *item;
    }
}

/// Items that the longest vector holds one byte of each.
const MAX_LANES: usize = 64;

/// [`shuffle`] with the longest vectors, for as many items as fill them. Returns how many are done.
#[inline(always)]
fn to_planes<S: Simd>(simd: S, itemsize: usize, raw: &[u8], out: &mut [u8]) -> usize {
    let mut place = 0;
    while place < itemsize {
        place += match itemsize - place {
            8.. => piece_to_planes::<S, 8>(simd, itemsize, place, raw, out),
            4.. => piece_to_planes::<S, 4>(simd, itemsize, place, raw, out),
            2.. => piece_to_planes::<S, 2>(simd, itemsize, place, raw, out),
            _ => piece_to_planes::<S, 1>(simd, itemsize, place, raw, out),
        };
    }
    let n_items = raw.len() / itemsize;
    n_items - n_items % S::u8s::LEN
}

/// Does the `W` bytes of each item that begin at `place`; `W` is a power of two, and returned.
///
/// Taking the even and the odd bytes of vectors apart moves the lowest bit of each byte's index to the top; log2(W)
/// times this, and the place within the piece has become the number of the plane.
#[inline(always)]
fn piece_to_planes<S: Simd, const W: usize>(
    simd: S,
    itemsize: usize,
    place: usize,
    raw: &[u8],
    out: &mut [u8],
) -> usize {
    let len = S::u8s::LEN;
    let n_items = raw.len() / itemsize;
    let mut pieces = [[0; W]; MAX_LANES];
    for (nth, items) in raw.chunks_exact(len * itemsize).enumerate() {
        let pieces = if itemsize == W {
            items
        } else {
            for (piece, item) in pieces[..len].iter_mut().zip(items.chunks_exact(itemsize)) {
                piece.copy_from_slice(&item[place..place + W]);
            }
            pieces[..len].as_flattened()
        };
        let mut v: [S::u8s; W] =
            std::array::from_fn(|k| S::u8s::from_slice(simd, &pieces[k * len..(k + 1) * len]));
        for _ in 0..W.trailing_zeros() {
            let pairs = v;
            for k in 0..W / 2 {
                (v[k], v[k + W / 2]) = pairs[2 * k].deinterleave(pairs[2 * k + 1]);
            }
        }
        for (k, v) in v.iter().enumerate() {
            v.store_slice(&mut out[(place + k) * n_items + nth * len..][..len]);
        }
    }
    W
}

/// [`unshuffle`] with the longest vectors: [`to_planes`] backwards.
#[inline(always)]
fn from_planes<S: Simd>(simd: S, itemsize: usize, planes: &[u8], out: &mut [u8]) -> usize {
    let mut place = 0;
    while place < itemsize {
        place += match itemsize - place {
            8.. => piece_from_planes::<S, 8>(simd, itemsize, place, planes, out),
            4.. => piece_from_planes::<S, 4>(simd, itemsize, place, planes, out),
            2.. => piece_from_planes::<S, 2>(simd, itemsize, place, planes, out),
            _ => piece_from_planes::<S, 1>(simd, itemsize, place, planes, out),
        };
    }
    let n_items = out.len() / itemsize;
    n_items - n_items % S::u8s::LEN
}

/// [`piece_to_planes`] backwards.
#[inline(always)]
fn piece_from_planes<S: Simd, const W: usize>(
    simd: S,
    itemsize: usize,
    place: usize,
    planes: &[u8],
    out: &mut [u8],
) -> usize {
    let len = S::u8s::LEN;
    let n_items = out.len() / itemsize;
    let mut pieces = [[0; W]; MAX_LANES];
    for (nth, items) in out.chunks_exact_mut(len * itemsize).enumerate() {
        let mut v: [S::u8s; W] = std::array::from_fn(|k| {
            S::u8s::from_slice(simd, &planes[(place + k) * n_items + nth * len..][..len])
        });
        for _ in 0..W.trailing_zeros() {
            let halves = v;
            for k in 0..W / 2 {
                (v[2 * k], v[2 * k + 1]) = halves[k].interleave(halves[k + W / 2]);
            }
        }
        if itemsize == W {
            for (out, v) in items.chunks_exact_mut(len).zip(v) {
                v.store_slice(out);
            }
        } else {
            for (out, v) in pieces[..len].as_flattened_mut().chunks_exact_mut(len).zip(v) {
                v.store_slice(out);
            }
            for (item, piece) in items.chunks_exact_mut(itemsize).zip(&pieces) {
                item[place..place + W].copy_from_slice(piece);
            }
        }
    }
    W
}

/// [`undelta`] with vectors of 16 bytes, whose lanes are the items. Returns how many bytes are done.
///
/// Adding the vector to itself moved up by 1, 2, 4 and 8 bytes, from the size of an item on, makes sums within the
/// vector. What came before is added last and kept apart, so that one vector waits for the one before it for no
/// more than that addition.
#[inline(always)]
fn sums<S: Simd, V: SimdBase<S, ByteVector = u8x16<S>>>(simd: S, items: &mut [u8]) -> usize {
    let itemsize = 16 / V::LEN;
    let zeros = u8x16::splat(simd, 0);
    let last_item = u8x16::from_fn(simd, |k| (16 - itemsize + k % itemsize) as u8);
    let mut before: V = zeros.bitcast();
    let (vectors, _) = items.as_chunks_mut::<16>();
    for bytes in &mut *vectors {
        let mut sum: V = u8x16::from_slice(simd, bytes).bitcast();
        if itemsize <= 1 {
            sum += raised::<15, _, _>(sum, zeros);
        }
        if itemsize <= 2 {
            sum += raised::<14, _, _>(sum, zeros);
        }
        if itemsize <= 4 {
            sum += raised::<12, _, _>(sum, zeros);
        }
        sum += raised::<8, _, _>(sum, zeros);
        (sum + before).bitcast::<u8x16<S>>().store_slice(bytes);
        before += sum.bitcast::<u8x16<S>>().swizzle_dyn(last_item).bitcast::<V>();
    }
    vectors.len() * 16
}

/// The vector moved up by `16 - KEPT` bytes, zeros below it.
#[inline(always)]
fn raised<const KEPT: usize, S: Simd, V: SimdBase<S, ByteVector = u8x16<S>>>(v: V, zeros: u8x16<S>) -> V {
    zeros.slide::<KEPT>(v.to_bytes()).bitcast()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition of shuffling, byte by byte.
    fn shuffled(itemsize: usize, raw: &[u8]) -> Vec<u8> {
        let n_items = raw.len() / itemsize;
        let mut out = raw.to_vec();
        for item in 0..n_items {
            for place in 0..itemsize {
                out[place * n_items + item] = raw[item * itemsize + place];
            }
        }
        out
    }

    /// The definition of differences, item by item: subtraction with borrow, from the lowest byte on.
    fn differences_of(itemsize: usize, raw: &[u8]) -> Vec<u8> {
        let mut out = raw.to_vec();
        for item in 1..raw.len() / itemsize {
            let mut borrow = 0;
            for at in item * itemsize..(item + 1) * itemsize {
                let difference = i16::from(raw[at]) - i16::from(raw[at - itemsize]) - borrow;
                borrow = i16::from(difference < 0);
                out[at] = difference.rem_euclid(256) as u8;
            }
        }
        out
    }

    fn check(itemsize: usize, raw: &[u8]) {
        let expected = shuffled(itemsize, raw);
        for level in [Level::new(), Level::baseline()] {
            let what = format!("{} bytes, items of {itemsize}, {level:?}", raw.len());
            let (mut planes, mut back) = (vec![0xaa; raw.len()], vec![0x55; raw.len()]);
            shuffle_at(level, itemsize, raw, &mut planes);
            assert_eq!(planes, expected, "shuffle of {what}");
            unshuffle_at(level, itemsize, &planes, &mut back);
            assert_eq!(back, raw, "unshuffle of {what}");
            if matches!(itemsize, 1 | 2 | 4 | 8) {
                let mut out = vec![0xaa; raw.len()];
                delta(itemsize, raw, &mut out);
                assert_eq!(out, differences_of(itemsize, raw), "delta of {what}");
                undelta_at(level, itemsize, &mut out);
                assert_eq!(out, raw, "undelta of {what}");
            }
        }
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    #[test]
    fn every_size_around_a_vector_is_right() {
        let raw = pattern(16 * 130);
        for itemsize in (1..=20).chain([24, 64, 255]) {
            for n_items in [0, 1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129] {
                for rest in [0, 1, itemsize - 1] {
                    check(itemsize, &raw[..(n_items * itemsize + rest).min(raw.len())]);
                }
            }
        }
    }

    #[test]
    fn shuffling_is_what_the_specification_shows() {
        let mut out = [0; 8];
        shuffle(3, b"abcABC12", &mut out);
        assert_eq!(&out, b"aAbBcC12");
        let mut out = [0; 5];
        delta(2, &[1, 0, 0, 0, 9], &mut out);
        assert_eq!(out, [1, 0, 0xff, 0xff, 9]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_right(itemsize in 1_usize..=40, raw in prop::collection::vec(any::<u8>(), 0..5000)) {
            check(itemsize, &raw);
        }
    }
}
