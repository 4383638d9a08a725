//! The `.npy` header: reads versions 1.0, 2.0 and 3.0 as NumPy does, writes version 1.0 where the text fits it.
//!
//! A header is magic, version, length of the text, and the text: a Python dict with the keys `descr`,
//! `fortran_order` and `shape`, filled with spaces and closed by a newline. The elements follow it.

use std::borrow::Cow;

use super::dtype::shape_text;
use super::literal::{self, Literal};
use super::{Dtype, FormatError, Layout, dtype};
use crate::bytes::{u16_at, u32_at};

/// First bytes of every `.npy` file.
pub const MAGIC: &[u8; 6] = b"\x93NUMPY";

const VERSION_OFFSET: usize = MAGIC.len();
const TEXT_LEN_OFFSET: usize = VERSION_OFFSET + 2;
const V1_TEXT_OFFSET: usize = TEXT_LEN_OFFSET + size_of::<u16>();
const V2_TEXT_OFFSET: usize = TEXT_LEN_OFFSET + size_of::<u32>();

/// Bytes that tell how long a header is.
pub const PREFIX_LEN: usize = V2_TEXT_OFFSET;

/// Longest header that is read, in bytes. NumPy's own limit is 10,000 unless it is told otherwise.
pub const MAX_HEADER_LEN: usize = 1 << 20;

/// Length of the headers that we write: one page, so that the elements start page-aligned.
pub const ALIGNED_HEADER_LEN: usize = 4096;

/// The longest header that NumPy reads unasked is 10,000 bytes of text, so two pages may be filled up.
const MAX_ALIGNED_LEN: usize = 2 * ALIGNED_HEADER_LEN;

/// The alignment that NumPy gives its own headers.
const NUMPY_ALIGN: usize = 64;

/// What a `.npy` header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NpyHeader {
    /// The dtype of the elements.
    pub dtype: Dtype,
    /// The shape.
    pub shape: Vec<u64>,
    /// Whether the first axis varies fastest.
    pub fortran_order: bool,
    /// Offset of the first element, in bytes.
    pub header_len: u64,
}

impl NpyHeader {
    /// Whether this header describes an array of the given dtype and layout.
    pub fn describes(&self, dtype: &Dtype, layout: &Layout) -> bool {
        self.dtype == *dtype
            && Layout::new(&self.dtype, &self.shape, self.fortran_order).is_ok_and(|own| own == *layout)
    }
}

/// The length of the whole header, from the first [`PREFIX_LEN`] bytes of a file (fewer if it is shorter).
///
/// # Errors
/// `Magic`, `Truncated`, `NpyHeader` for an unknown version, `TooLong` over [`MAX_HEADER_LEN`].
pub fn header_len(prefix: &[u8]) -> Result<usize, FormatError> {
    if !prefix.starts_with(MAGIC) {
        let found = prefix.get(..MAGIC.len().min(prefix.len())).unwrap_or(&[]).to_vec();
        return Err(FormatError::Magic { expected: "a .npy file", found });
    }
    let truncated = || FormatError::Truncated {
        part: "the npy header",
        needed: PREFIX_LEN as u64,
        found: prefix.len() as u64,
    };
    let (text_offset, text_len) = match prefix.get(VERSION_OFFSET..TEXT_LEN_OFFSET).ok_or_else(truncated)? {
        [1, 0] => (V1_TEXT_OFFSET, u16_at(prefix, TEXT_LEN_OFFSET).map(usize::from)),
        [2 | 3, 0] => (
            V2_TEXT_OFFSET,
            u32_at(prefix, TEXT_LEN_OFFSET).map(|len| usize::try_from(len).unwrap_or(usize::MAX)),
        ),
        version => {
            return Err(FormatError::NpyHeader {
                what: format!("version {version:?} is none of 1.0, 2.0, 3.0"),
            });
        }
    };
    let len = text_len.ok_or_else(truncated)?.saturating_add(text_offset);
    if len > MAX_HEADER_LEN {
        return Err(too_long(len));
    }
    Ok(len)
}

fn too_long(len: usize) -> FormatError {
    FormatError::TooLong { part: "the npy header", len: len as u64, max: MAX_HEADER_LEN as u64 }
}

/// Reads a header. `bytes` starts at the start of the file and holds the header whole.
///
/// # Errors
/// As [`header_len`]; `NpyHeader`, `Dtype` or `Shape` for a text that describes no array.
pub fn parse(bytes: &[u8]) -> Result<NpyHeader, FormatError> {
    let len = header_len(bytes)?;
    let header = bytes.get(..len).ok_or(FormatError::Truncated {
        part: "the npy header",
        needed: len as u64,
        found: bytes.len() as u64,
    })?;
    let major = header.get(VERSION_OFFSET).copied().unwrap_or(0);
    let text = header.get(if major == 1 { V1_TEXT_OFFSET } else { V2_TEXT_OFFSET }..).unwrap_or(&[]);
    // Most of a header is spaces: they need not become characters first.
    let text = text.trim_ascii_end();
    let text: String = if major == 3 {
        String::from_utf8(text.to_vec())
            .map_err(|_| FormatError::NpyHeader { what: "text is not UTF-8".into() })?
    } else {
        text.iter().map(|byte| char::from(*byte)).collect() // Latin-1
    };
    let Literal::Dict(entries) = literal::parse(&text)? else {
        return Err(FormatError::NpyHeader { what: "text is not a dict".into() });
    };
    let (mut descr, mut fortran_order, mut shape) = (None, None, None);
    for (key, value) in &entries {
        match (key, value) {
            (Literal::Str(key), value) if key == "descr" => descr = Some(value),
            (Literal::Str(key), Literal::Bool(value)) if key == "fortran_order" => {
                fortran_order = Some(*value)
            }
            (Literal::Str(key), Literal::Tuple(_)) if key == "shape" => shape = dtype::shape_of(value),
            (key, _) => {
                return Err(FormatError::NpyHeader {
                    what: format!("entry {key:?} is unknown or of the wrong type"),
                });
            }
        }
    }
    let missing = |key: &str| FormatError::NpyHeader { what: format!("has no {key}") };
    let header = NpyHeader {
        dtype: Dtype::from_literal(descr.ok_or_else(|| missing("descr"))?)?,
        shape: shape.ok_or_else(|| missing("shape"))?,
        fortran_order: fortran_order.ok_or_else(|| missing("fortran_order"))?,
        header_len: len as u64,
    };
    Layout::new(&header.dtype, &header.shape, header.fortran_order)?;
    Ok(header)
}

/// Writes a header for a new file: filled up to [`ALIGNED_HEADER_LEN`] (a multiple of it, or of 64 bytes where
/// NumPy would refuse to read the longer text).
///
/// # Errors
/// `TooLong` over [`MAX_HEADER_LEN`].
pub fn encode(dtype: &Dtype, layout: &Layout) -> Result<Vec<u8>, FormatError> {
    let text = text_of(dtype, layout);
    let needed = V2_TEXT_OFFSET.saturating_add(text.len()).saturating_add(1);
    let aligned = needed.next_multiple_of(ALIGNED_HEADER_LEN);
    let len = if aligned <= MAX_ALIGNED_LEN { aligned } else { needed.next_multiple_of(NUMPY_ALIGN) };
    encode_text(&text, len).ok_or(too_long(len))
}

/// Writes a header as short as NumPy's own, a multiple of 64 bytes, with at least `n_spaces` spaces before its newline.
///
/// # Errors
/// `TooLong` over [`MAX_HEADER_LEN`].
pub fn encode_short(dtype: &Dtype, layout: &Layout, n_spaces: usize) -> Result<Vec<u8>, FormatError> {
    let text = text_of(dtype, layout);
    let needed = V2_TEXT_OFFSET.saturating_add(text.len()).saturating_add(n_spaces).saturating_add(1);
    let len = needed.next_multiple_of(NUMPY_ALIGN);
    encode_text(&text, len).ok_or(too_long(len))
}

/// Writes a header of exactly `len` bytes, so that it can take the place of one; `None` if the text does not fit.
pub fn encode_within(dtype: &Dtype, layout: &Layout, len: u64) -> Option<Vec<u8>> {
    encode_text(&text_of(dtype, layout), usize::try_from(len).ok()?)
}

fn text_of(dtype: &Dtype, layout: &Layout) -> String {
    let fortran_order = if layout.fortran_order() { "True" } else { "False" };
    let (descr, shape) = (dtype.to_python(), shape_text(layout.shape()));
    format!("{{'descr': {descr}, 'fortran_order': {fortran_order}, 'shape': {shape}, }}")
}

fn encode_text(text: &str, len: usize) -> Option<Vec<u8>> {
    if len > MAX_HEADER_LEN {
        return None;
    }
    let latin1: Option<Cow<'_, [u8]>> = match text.is_ascii() {
        true => Some(text.as_bytes().into()),
        false => text.chars().map(|c| u8::try_from(c).ok()).collect::<Option<Vec<u8>>>().map(Cow::from),
    };
    let v1_len = len.checked_sub(V1_TEXT_OFFSET).and_then(|len| u16::try_from(len).ok());
    let mut out = Vec::with_capacity(len);
    out.extend_from_slice(MAGIC);
    match (latin1, v1_len) {
        (Some(text), Some(text_len)) => {
            out.extend_from_slice(&[1, 0]);
            out.extend_from_slice(&text_len.to_le_bytes());
            out.extend_from_slice(&text);
        }
        (latin1, _) => {
            out.extend_from_slice(if latin1.is_some() { &[2, 0] } else { &[3, 0] });
            out.extend_from_slice(&u32::try_from(len.checked_sub(V2_TEXT_OFFSET)?).ok()?.to_le_bytes());
            out.extend_from_slice(latin1.as_deref().unwrap_or(text.as_bytes()));
        }
    }
    if out.len() >= len {
        return None;
    }
    out.resize(len.saturating_sub(1), b' ');
    out.push(b'\n');
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(dtype: &str, shape: &[u64], fortran_order: bool) -> (Dtype, Layout) {
        let dtype = Dtype::parse_python(dtype).unwrap();
        let layout = Layout::new(&dtype, shape, fortran_order).unwrap();
        (dtype, layout)
    }

    #[test]
    fn what_we_write_is_what_numpy_writes_but_longer() {
        let (dtype, layout) = header("'<f4'", &[3, 2], false);
        let bytes = encode(&dtype, &layout).unwrap();
        assert_eq!(bytes.len(), 4096);
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\xf6\x0f");
        assert!(bytes[10..].starts_with(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }   "));
        assert!(bytes.ends_with(b" \n"));
        assert!(parse(&bytes).unwrap().describes(&dtype, &layout));
    }

    #[test]
    fn headers_survive_the_round_trip() {
        let cases: [(&str, &[u64], bool); 6] = [
            ("'|b1'", &[], false),
            ("'<i8'", &[0], false),
            ("'>c16'", &[5, 1, 3], true),
            ("'<U3'", &[1; 64], false),
            ("[('a', '<f4'), ('\u{e9}', '|S3', (2,))]", &[7], false),
            ("[('\u{6570}', '<f4')]", &[7], false),
        ];
        for (dtype, shape, fortran_order) in cases {
            let (dtype, layout) = header(dtype, shape, fortran_order);
            let bytes = encode(&dtype, &layout).unwrap();
            let parsed = parse(&bytes).unwrap();
            assert!(parsed.describes(&dtype, &layout));
            assert_eq!(parsed.header_len, bytes.len() as u64);
            let version = if dtype.to_python().contains('\u{6570}') { 3 } else { 1 };
            assert_eq!(bytes[6], version);
        }
    }

    #[test]
    fn a_long_header_stays_readable_for_numpy() {
        let fields: Vec<String> = (0..400).map(|i| format!("('field_{i:04}', '<f4')")).collect();
        let (dtype, layout) = header(&format!("[{}]", fields.join(", ")), &[7], false);
        let bytes = encode(&dtype, &layout).unwrap();
        assert!(
            bytes.len() > 8192 && bytes.len() < 10_000 && bytes.len().is_multiple_of(64),
            "{}",
            bytes.len()
        );
        assert!(parse(&bytes).unwrap().describes(&dtype, &layout));
    }

    #[test]
    fn a_short_header_has_the_room_that_is_asked_for() {
        for (text, n_spaces) in [("'<f4'", 0), ("'<f4'", 32), ("[('\u{6570}', '<f4')]", 64)] {
            let (dtype, layout) = header(text, &[3, 2], false);
            let bytes = encode_short(&dtype, &layout, n_spaces).unwrap();
            assert!(bytes.len().is_multiple_of(64) && bytes.len() <= 192);
            let spaces = bytes.iter().rev().skip(1).take_while(|byte| **byte == b' ').count();
            assert!(spaces >= n_spaces && bytes.ends_with(b"\n"));
            assert!(parse(&bytes).unwrap().describes(&dtype, &layout));
        }
    }

    #[test]
    fn a_header_takes_the_place_of_another_of_the_same_length() {
        let (dtype, layout) = header("'<f4'", &[12345], false);
        let bytes = encode_within(&dtype, &layout, 128).unwrap();
        assert_eq!(bytes.len(), 128);
        assert!(parse(&bytes).unwrap().describes(&dtype, &layout));
        assert_eq!(encode_within(&dtype, &layout, 64), None);
        assert_eq!(encode_within(&dtype, &layout, 5), None);
    }

    #[test]
    fn every_cut_is_an_error() {
        let (dtype, layout) = header("'<f4'", &[3, 2], false);
        let bytes = encode_within(&dtype, &layout, 128).unwrap();
        for len in 0..bytes.len() {
            assert!(parse(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn refuses_what_numpy_refuses() {
        let refuse = |text: &str| {
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
            parse(&bytes).unwrap_err().to_string()
        };
        assert!(refuse("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}").contains("pickle"));
        assert!(refuse("{'descr': '<f4', 'fortran_order': False}").contains("no shape"));
        assert!(refuse("{'descr': '<f4', 'fortran_order': 0, 'shape': (3,)}").contains("fortran_order"));
        assert!(refuse("{'descr': '<f4', 'fortran_order': False, 'shape': 3}").contains("shape"));
        assert!(
            refuse("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), 'x': 1}").contains("unknown")
        );
        assert!(
            refuse("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999)}")
                .contains("larger")
        );
        assert!(refuse("['descr']").contains("dict"));
        assert!(parse(b"PK\x03\x04 a zip file").unwrap_err().to_string().contains(".npy"));
        assert!(
            parse(b"\x93NUMPY\x09\x00\x10\x00\x00\x00\x00\x00").unwrap_err().to_string().contains("version")
        );
        assert!(parse(b"\x93NUMPY\x02\x00\xff\xff\xff\xff").unwrap_err().to_string().contains("limit"));
    }
}
