//! `all.safetensors`: eight bytes that tell how long the header is, the header, and the elements of all arrays.
//!
//! The header is JSON: for each tensor its dtype, shape, and where its elements are, which must follow each other
//! without gaps. They are in C-order and little-endian. What cannot be shown so is left out, and named in the header.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::image::{Content, Image};
use super::snapshot::Snapshot;
use crate::store::Array;

/// The key under which the header has what is no tensor.
const METADATA: &str = "__metadata__";
/// What was left out: the value is a JSON object of names and reasons.
const LEFT_OUT: &str = "npk.left_out";
/// The elements begin with a page.
const ALIGN: usize = 4096;
const LEN_LEN: usize = size_of::<u64>();

/// How the elements of an array are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tensor {
    dtype: &'static str,
    item_len: u8,
    is_swapped: bool,
}

impl Tensor {
    /// How an array is shown, or else why it cannot be.
    fn of(array: &Array) -> Result<Self, String> {
        if **array.name() == *METADATA {
            return Err("has the name of the metadata".into());
        }
        if array.fortran_order() {
            return Err("is in Fortran order".into());
        }
        let descr = array.dtype().to_string();
        let (is_swapped, code) = match descr.strip_prefix('>') {
            Some(code) => (true, code),
            None => (false, descr.trim_start_matches(['<', '|', '='])),
        };
        let dtype = match code {
            "b1" => "BOOL",
            "i1" => "I8",
            "u1" => "U8",
            "i2" => "I16",
            "u2" => "U16",
            "f2" => "F16",
            "i4" => "I32",
            "u4" => "U32",
            "f4" => "F32",
            "i8" => "I64",
            "u8" => "U64",
            "f8" => "F64",
            // Complex numbers of 8 bytes are known to some releases only, and the others refuse the whole file.
            _ => return Err(format!("has the dtype {descr}")),
        };
        let item_len = array.dtype().itemsize() as u8;
        Ok(Self { dtype, item_len, is_swapped: is_swapped && item_len > 1 })
    }
}

/// The file of all arrays that it can hold.
pub(super) fn image(snapshot: &Snapshot) -> Image {
    let mut shown = Vec::new();
    let mut left_out = BTreeMap::new();
    for (member, array) in (0..).zip(snapshot.members.iter().map(|member| &member.array)) {
        match Tensor::of(array) {
            Ok(tensor) => shown.push((member, array, tensor)),
            Err(reason) => drop(left_out.insert(&**array.name(), reason)),
        }
    }
    // So each tensor is aligned to its items.
    shown.sort_by_key(|(_, _, tensor)| Reverse(tensor.item_len));
    let mut image = Image::default();
    let text = header(&shown, &left_out);
    let len = text.len() as u64;
    image.push(Content::Text(text.into()), len);
    for (member, array, Tensor { item_len, is_swapped, .. }) in shown {
        let content =
            if is_swapped { Content::Swapped { member, item_len } } else { Content::Elements(member) };
        image.push(content, array.nbytes());
    }
    image
}

fn header(shown: &[(u32, &Array, Tensor)], left_out: &BTreeMap<&str, String>) -> Vec<u8> {
    let mut text = String::from("{");
    if !left_out.is_empty() {
        let left_out = quoted(&serde_json::json!(left_out).to_string());
        let _ = write!(text, "\"{METADATA}\":{{\"{LEFT_OUT}\":{left_out}}}");
    }
    let mut start = 0;
    for (_, array, tensor) in shown {
        let comma = if text.len() > 1 { "," } else { "" };
        let (name, shape, end) =
            (quoted(array.name()), serde_json::json!(array.shape()), start + array.nbytes());
        let dtype = tensor.dtype;
        let _ = write!(
            text,
            "{comma}{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{start},{end}]}}"
        );
        start = end;
    }
    text.push('}');
    let padded_len = (LEN_LEN + text.len()).next_multiple_of(ALIGN) - LEN_LEN;
    let mut bytes = (padded_len as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes.resize(LEN_LEN + padded_len, b' ');
    bytes
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
