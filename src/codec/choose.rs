//! The choice of a filter: by trying them.

use super::{CodecError, Encoder};
use crate::format::{BLOCK_ALIGN, Codec, Descr, Dtype, Filter};

/// A filter that takes more time must save this part of what the one before it leaves.
const MIN_GAIN_PART: u64 = 100;

/// Filters are compared at this level at most: higher ones take long and rank them alike.
const MAX_TRIAL_LEVEL: i32 = 3;

/// The filter that makes `blocks` smallest: samples of an array of `dtype` that is to be encoded with `level`.
///
/// Of two that are within a hundredth of each other, the faster one. Without samples, what is best for most arrays
/// of numbers: [`Filter::Shuffle`].
///
/// # Errors
/// `Zstd` if zstd has no memory.
pub fn choose_filter(dtype: &Dtype, blocks: &[&[u8]], level: i32) -> Result<Filter, CodecError> {
    let itemsize = dtype.itemsize();
    if blocks.iter().all(|block| block.is_empty()) {
        return Ok(if is_number(dtype) { Filter::Shuffle.for_itemsize(itemsize) } else { Filter::None });
    }
    let mut best = (Filter::None, u64::MAX);
    for filter in Filter::ALL {
        let is_difference = filter.step().is_some();
        if filter.for_itemsize(itemsize) != filter || (is_difference && !has_differences(dtype)) {
            continue;
        }
        let codec = Codec { level: level.min(MAX_TRIAL_LEVEL), block_len: BLOCK_ALIGN, filter };
        let mut encoder = Encoder::new(&codec, itemsize);
        let mut len = 0;
        for block in blocks {
            len += encoder.encode(block)?.1.len() as u64;
        }
        // All differences take the same time.
        let min_gain = if best.0.step().is_some() { 0 } else { best.1 / MIN_GAIN_PART };
        if len < best.1 - min_gain {
            best = (filter, len);
        }
    }
    Ok(best.0)
}

/// Whether items are integers, or floating-point numbers, whose bits order them as integers do, of this machine's
/// byte order or of a single byte.
fn has_differences(dtype: &Dtype) -> bool {
    match typestring(dtype) {
        Some((order, 'b' | 'i' | 'u' | 'f' | 'M' | 'm')) => order != '>' || dtype.itemsize() == 1,
        _ => false,
    }
}

fn is_number(dtype: &Dtype) -> bool {
    matches!(typestring(dtype), Some((_, 'b' | 'i' | 'u' | 'f' | 'c' | 'M' | 'm')))
}

/// Byte order and kind of a dtype without fields.
fn typestring(dtype: &Dtype) -> Option<(char, char)> {
    let Descr::Scalar(typestring) = dtype.descr() else { return None };
    let mut chars = typestring.chars();
    match chars.next()? {
        order @ ('<' | '>' | '|' | '=') => Some((order, chars.next()?)),
        kind => Some(('=', kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dtype(typestring: &str) -> Dtype {
        Dtype::from_descr(Descr::Scalar(typestring.into())).unwrap()
    }

    /// Bytes without any pattern.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn bytes_of<const N: usize>(items: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
        items.flatten().collect()
    }

    #[test]
    fn sorted_ids_are_stored_as_differences() {
        let gaps = noise(8192);
        let ids = gaps.iter().scan(1_u64 << 40, |id, gap| {
            *id += u64::from(*gap);
            Some(*id)
        });
        let ids = bytes_of(ids.map(u64::to_le_bytes));
        assert_eq!(choose_filter(&dtype("<i8"), &[&ids], 1).unwrap(), Filter::Delta);
        assert_eq!(choose_filter(&dtype("<M8[ns]"), &[&ids], 22).unwrap(), Filter::Delta);
        // The same bytes as something whose items are no integers.
        assert_eq!(choose_filter(&dtype(">i8"), &[&ids], 1).unwrap(), Filter::Shuffle);
        assert_eq!(choose_filter(&dtype("|V8"), &[&ids], 1).unwrap(), Filter::Shuffle);
    }

    #[test]
    fn the_step_is_that_of_the_last_axis() {
        // Colours that drift, each by itself.
        let mut colours = [100_u8, 20, 220, 180];
        let steps: Vec<u8> = noise(60000).into_iter().map(|byte| byte % 5).collect();
        for (step, filter) in
            [(1, Filter::Delta), (2, Filter::Delta2), (3, Filter::Delta3), (4, Filter::Delta4)]
        {
            let mut next = |(at, drift): (usize, &u8)| {
                colours[at % step] = colours[at % step].wrapping_add(*drift).wrapping_sub(2);
                colours[at % step]
            };
            let image: Vec<u8> = steps.iter().enumerate().map(&mut next).collect();
            assert_eq!(choose_filter(&dtype("|u1"), &[&image], 1).unwrap(), filter, "{step}");
        }
    }

    #[test]
    fn unordered_numbers_of_one_magnitude_are_shuffled() {
        let numbers = bytes_of(
            noise(65536)
                .as_chunks::<2>()
                .0
                .iter()
                .map(|bytes| (1.0 + f32::from(u16::from_le_bytes(*bytes)) / 65536.0).to_le_bytes()),
        );
        assert_eq!(
            choose_filter(&dtype("<f4"), &[&numbers[..65536], &numbers[65536..]], 1).unwrap(),
            Filter::Shuffle
        );
    }

    #[test]
    fn what_no_filter_helps_has_none() {
        assert_eq!(choose_filter(&dtype("<f8"), &[&noise(65536)], 1).unwrap(), Filter::None);
        let text: Vec<u8> = b"the same words ".iter().copied().cycle().take(65536).collect();
        assert_eq!(choose_filter(&dtype("|S64"), &[&text], 3).unwrap(), Filter::None);
        assert_eq!(choose_filter(&dtype("|u1"), &[&text], 3).unwrap(), Filter::None);
    }

    #[test]
    fn without_samples_numbers_are_shuffled() {
        assert_eq!(choose_filter(&dtype("<f4"), &[], 1).unwrap(), Filter::Shuffle);
        assert_eq!(choose_filter(&dtype("<c16"), &[b""], 1).unwrap(), Filter::Shuffle);
        assert_eq!(choose_filter(&dtype("|u1"), &[], 1).unwrap(), Filter::None);
        assert_eq!(choose_filter(&dtype("<U8"), &[], 1).unwrap(), Filter::None);
    }
}
