//! Shuffling: the first byte of every item, then the second of every item, and so on.
//!
//! It has a plain form for any item and a vectorised one for the common sizes, chosen at run time for the processor.
//! Bytes that do not fill an item stay as they are, at the end. A run may begin within an item: the planes are then
//! rotated among each other, which costs nothing and is undone by the same steps.
//!
//! On disk: spec/npk-format.md, "Filters".

use fearless_simd::{Level, Simd, dispatch, prelude::*};

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

    fn check(itemsize: usize, raw: &[u8]) {
        let expected = shuffled(itemsize, raw);
        for level in [Level::new(), Level::baseline()] {
            let what = format!("{} bytes, items of {itemsize}, {level:?}", raw.len());
            let (mut planes, mut back) = (vec![0xaa; raw.len()], vec![0x55; raw.len()]);
            shuffle_at(level, itemsize, raw, &mut planes);
            assert_eq!(planes, expected, "shuffle of {what}");
            unshuffle_at(level, itemsize, &planes, &mut back);
            assert_eq!(back, raw, "unshuffle of {what}");
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
    }

    proptest! {
        #[test]
        fn any_bytes_are_right(itemsize in 1_usize..=40, raw in prop::collection::vec(any::<u8>(), 0..5000)) {
            check(itemsize, &raw);
        }
    }
}
