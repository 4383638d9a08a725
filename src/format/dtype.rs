//! NumPy's own dtype description (`dtype.descr`, as in `.npy` headers) and the item size that follows from it.
//!
//! Every fixed-size dtype is known; objects and variable-width strings are refused here, once for all layers.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::FormatError;
use super::literal::{self, Literal};

/// Deepest nesting of structured dtypes and subarrays.
pub(super) const MAX_DEPTH: usize = 32;

/// Largest item, and largest dimension of a field, that NumPy can have.
const MAX_ITEMSIZE: u64 = i32::MAX as u64;

/// Most dimensions of a field.
const MAX_FIELD_NDIM: usize = 64;

const UNKNOWN: &str = "is not a dtype of NumPy's";
const TOO_LARGE: &str = "has items over 2 GiB";

/// A dtype as NumPy describes it.
///
/// On disk: a string, a list of fields, or the map of a subarray; spec/npk-format.md, "Data types".
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum Descr {
    /// A typestring such as `<f4`, `|b1`, `<M8[ns]`, `|S5`.
    Scalar(String),
    /// The fields of a structured dtype, in memory order.
    Fields(Vec<Field>),
    /// Elements of a field that are arrays themselves.
    Subarray(Box<Subarray>),
}

/// An array within an element: the dtype of the elements of a field that has a shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Subarray {
    /// The dtype of one element.
    pub descr: Descr,
    /// The shape, not empty.
    pub shape: Vec<u64>,
}

/// One field of a structured dtype. Padding is a field with an empty name and dtype `|V<n>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Field {
    /// The field's second name, empty where it has none.
    pub title: String,
    /// The field's name.
    pub name: String,
    /// The dtype of one element.
    pub descr: Descr,
    /// The shape of the field, empty for a single element.
    pub shape: Vec<u64>,
}

/// A fixed-size dtype: a checked description and its item size. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dtype {
    descr: Arc<Descr>,
    itemsize: u64,
}

impl Dtype {
    /// Checks `descr` and computes its item size.
    ///
    /// # Errors
    /// `Dtype` if it is not the description that NumPy has for a fixed-size dtype.
    pub fn from_descr(descr: Descr) -> Result<Self, FormatError> {
        if matches!(descr, Descr::Subarray(_)) {
            return Err(refused(&descr, "is that of an array, which only fields can have"));
        }
        let itemsize = itemsize(&descr, 0)?;
        Ok(Self { descr: Arc::new(descr), itemsize })
    }

    /// Reads a description as it stands in a `.npy` header, such as `'<f4'` or `[('a', '<f4'), ('b', '<i8', (2,))]`.
    ///
    /// # Errors
    /// `Dtype` if it is not a fixed-size dtype of NumPy, `NpyHeader` if it is no Python literal.
    pub fn parse_python(text: &str) -> Result<Self, FormatError> {
        Self::from_literal(&literal::parse(text)?)
    }

    pub(super) fn from_literal(literal: &Literal) -> Result<Self, FormatError> {
        Self::from_descr(descr_of(literal, 0)?)
    }

    /// The description.
    pub fn descr(&self) -> &Descr {
        &self.descr
    }

    /// Bytes of one element.
    pub fn itemsize(&self) -> u64 {
        self.itemsize
    }

    /// The description as it stands in a `.npy` header.
    pub fn to_python(&self) -> String {
        python_text(&self.descr)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.descr {
            Descr::Scalar(typestring) => f.write_str(typestring),
            Descr::Fields(_) | Descr::Subarray(_) => f.write_str(&self.to_python()),
        }
    }
}

fn refused(descr: &Descr, what: &'static str) -> FormatError {
    FormatError::Dtype { descr: python_text(descr), what }
}

fn itemsize(descr: &Descr, depth: usize) -> Result<u64, FormatError> {
    if depth > MAX_DEPTH {
        return Err(FormatError::Dtype { descr: "[...]".into(), what: "is nested too deeply" });
    }
    let inner = depth.saturating_add(1);
    let size = match descr {
        Descr::Scalar(typestring) => {
            let known = Scalar::parse(typestring).map_err(|what| refused(descr, what))?;
            if known.text != *typestring {
                return Err(refused(descr, "is not as NumPy writes it"));
            }
            known.size
        }
        Descr::Subarray(array) => {
            if array.shape.is_empty() {
                return Err(refused(descr, "is that of an array without a shape"));
            }
            let element_len = itemsize(&array.descr, inner)?;
            nbytes(element_len, &array.shape).map_err(|what| refused(descr, what))?
        }
        Descr::Fields(fields) => {
            check_names(fields).map_err(|what| refused(descr, what))?;
            let mut sum = 0_u64;
            for field in fields {
                if field.shape.is_empty() && matches!(field.descr, Descr::Subarray(_)) {
                    return Err(refused(descr, "has a field of arrays that has no shape"));
                }
                let element_len = itemsize(&field.descr, inner)?;
                let len = nbytes(element_len, &field.shape).map_err(|what| refused(descr, what))?;
                // Of lengths up to 2^31 each, there are fewer than would be too many for a sum.
                sum = sum.saturating_add(len);
                if sum > MAX_ITEMSIZE {
                    return Err(refused(descr, TOO_LARGE));
                }
            }
            sum
        }
    };
    if size > MAX_ITEMSIZE {
        return Err(refused(descr, TOO_LARGE));
    }
    Ok(size)
}

/// Bytes of a field of this shape.
fn nbytes(element_len: u64, shape: &[u64]) -> Result<u64, &'static str> {
    if shape.len() > MAX_FIELD_NDIM {
        return Err("has a field of more than 64 dimensions");
    }
    if shape.iter().any(|&dim| dim > MAX_ITEMSIZE) {
        return Err(TOO_LARGE);
    }
    if shape.contains(&0) {
        return Ok(0);
    }
    let len = shape.iter().try_fold(element_len, |len, dim| len.checked_mul(*dim));
    len.filter(|len| *len <= MAX_ITEMSIZE).ok_or(TOO_LARGE)
}

/// Names and titles of fields are different from each other. Padding has none.
fn check_names(fields: &[Field]) -> Result<(), &'static str> {
    let mut taken = HashSet::new();
    for field in fields.iter().filter(|field| !field.is_padding()) {
        let is_new = taken.insert(&field.name) && (field.title.is_empty() || taken.insert(&field.title));
        if !is_new {
            return Err("has two fields of one name or title");
        }
    }
    Ok(())
}

impl Field {
    /// Whether NumPy takes it for bytes between fields.
    fn is_padding(&self) -> bool {
        let is_void = match &self.descr {
            Descr::Scalar(typestring) => typestring.starts_with("|V"),
            Descr::Fields(_) => false,
            Descr::Subarray(_) => true,
        };
        self.name.is_empty() && (is_void || !self.shape.is_empty())
    }
}

/// A dtype without fields.
struct Scalar {
    /// The typestring as NumPy writes it.
    text: String,
    /// Bytes of one item.
    size: u64,
}

impl Scalar {
    /// Reads a typestring, also one that NumPy reads but does not write: `f4`, `<u1`, `M8[1s]`.
    fn parse(typestring: &str) -> Result<Self, &'static str> {
        let (order, code) = match typestring.strip_prefix(['<', '>', '|', '=']) {
            Some(code) => (typestring.chars().next(), code),
            None => (None, typestring),
        };
        let mut chars = code.chars();
        let kind = chars.next().ok_or(UNKNOWN)?;
        let rest = chars.as_str();
        let native = if cfg!(target_endian = "big") { '>' } else { '<' };
        let order = match order {
            Some(order @ ('<' | '>')) => order,
            _ => native,
        };
        if matches!(kind, 'M' | 'm') {
            let unit = time_unit(rest.strip_prefix('8').ok_or(UNKNOWN)?).ok_or(UNKNOWN)?;
            return Ok(Self { text: format!("{order}{kind}8{unit}"), size: 8 });
        }
        if kind == 'O' {
            return Err(
                "object arrays hold Python objects, which cannot be stored without pickle; convert to a fixed-size dtype",
            );
        }
        if kind == 'T' {
            return Err("variable-width strings cannot be stored; convert to a fixed width such as U16");
        }
        if rest.is_empty() || !rest.bytes().all(|b| b.is_ascii_digit()) {
            return Err(UNKNOWN);
        }
        let len: u64 = rest.parse().map_err(|_| TOO_LARGE)?;
        let (order, size) = match (kind, len) {
            ('b' | 'i' | 'u', 1) => ('|', 1),
            ('i' | 'u', 2 | 4 | 8) | ('f', 2 | 4 | 8 | 12 | 16) | ('c', 8 | 16 | 24 | 32) => (order, len),
            ('S' | 'a' | 'V', _) => ('|', len),
            ('U', _) => (order, len.checked_mul(4).ok_or(TOO_LARGE)?),
            _ => return Err(UNKNOWN),
        };
        let kind = if kind == 'a' { 'S' } else { kind };
        Ok(Self { text: format!("{order}{kind}{len}"), size })
    }
}

/// The unit of times as NumPy writes it, such as `[25s]`; nothing for times without one.
fn time_unit(unit: &str) -> Option<String> {
    const UNITS: [&str; 13] = ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"];
    if unit.is_empty() {
        return Some(String::new());
    }
    let unit = unit.strip_prefix('[')?.strip_suffix(']')?;
    let name = unit.trim_start_matches(|c: char| c.is_ascii_digit());
    let count = unit.strip_suffix(name)?;
    let count: i32 = if count.is_empty() { 1 } else { count.parse().ok()? };
    match count {
        _ if name == "generic" => Some(String::new()),
        _ if !UNITS.contains(&name) => None,
        1 => Some(format!("[{name}]")),
        _ => Some(format!("[{count}{name}]")),
    }
}

/// The description that a header has, as NumPy itself would write it.
fn descr_of(literal: &Literal, depth: usize) -> Result<Descr, FormatError> {
    let malformed = || FormatError::NpyHeader { what: "descr is not a dtype description".into() };
    if depth > MAX_DEPTH {
        return Err(malformed());
    }
    let inner = depth.saturating_add(1);
    match literal {
        Literal::Str(typestring) => match Scalar::parse(typestring) {
            Ok(known) => Ok(Descr::Scalar(known.text)),
            Err(what) => Err(refused(&Descr::Scalar(typestring.clone()), what)),
        },
        Literal::Tuple(parts) => {
            let [descr, shape] = parts.as_slice() else { return Err(malformed()) };
            let (descr, shape) = (descr_of(descr, inner)?, shape_of(shape).ok_or_else(malformed)?);
            Ok(if shape.is_empty() { descr } else { Descr::Subarray(Box::new(Subarray { descr, shape })) })
        }
        Literal::List(items) => {
            let mut fields = Vec::with_capacity(items.len());
            for item in items {
                let Literal::Tuple(parts) = item else { return Err(malformed()) };
                let (name, descr, shape) = match parts.as_slice() {
                    [name, descr] => (name, descr, Vec::new()),
                    [name, descr, shape] => (name, descr, shape_of(shape).ok_or_else(malformed)?),
                    _ => return Err(malformed()),
                };
                let (title, name) = match name {
                    Literal::Str(name) => (String::new(), name.clone()),
                    Literal::Tuple(names) => match names.as_slice() {
                        [Literal::Str(title), Literal::Str(name)] => (title.clone(), name.clone()),
                        _ => return Err(malformed()),
                    },
                    _ => return Err(malformed()),
                };
                fields.push(Field::new(title, name, descr_of(descr, inner)?, shape));
            }
            Ok(Descr::Fields(fields))
        }
        _ => Err(malformed()),
    }
}

impl Field {
    /// A field. One of arrays that has no shape has that of the arrays, as in NumPy.
    pub fn new(title: String, name: String, descr: Descr, shape: Vec<u64>) -> Self {
        match descr {
            Descr::Subarray(array) if shape.is_empty() => Self::new(title, name, array.descr, array.shape),
            descr => Self { title, name, descr, shape },
        }
    }
}

/// A shape written as a tuple, or as one integer.
pub(super) fn shape_of(literal: &Literal) -> Option<Vec<u64>> {
    match literal {
        Literal::Int(dim) => Some(vec![*dim]),
        Literal::Tuple(dims) => dims
            .iter()
            .map(|dim| match dim {
                Literal::Int(dim) => Some(*dim),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

/// The text of a shape as Python writes a tuple.
pub(super) fn shape_text(shape: &[u64]) -> String {
    match shape {
        [only] => format!("({only},)"),
        _ => {
            let dims: Vec<String> = shape.iter().map(u64::to_string).collect();
            format!("({})", dims.join(", "))
        }
    }
}

fn python_text(descr: &Descr) -> String {
    match descr {
        Descr::Scalar(typestring) => literal::repr(typestring),
        Descr::Fields(fields) => {
            let fields: Vec<String> = fields.iter().map(field_text).collect();
            format!("[{}]", fields.join(", "))
        }
        Descr::Subarray(array) => format!("({}, {})", python_text(&array.descr), shape_text(&array.shape)),
    }
}

fn field_text(field: &Field) -> String {
    let name = literal::repr(&field.name);
    let name =
        if field.title.is_empty() { name } else { format!("({}, {name})", literal::repr(&field.title)) };
    let descr = python_text(&field.descr);
    if field.shape.is_empty() {
        format!("({name}, {descr})")
    } else {
        format!("({name}, {descr}, {})", shape_text(&field.shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> u64 {
        Dtype::parse_python(text).unwrap().itemsize()
    }

    #[test]
    fn item_sizes_are_numpys() {
        assert_eq!(size("'|b1'"), 1);
        assert_eq!(size("'>i8'"), 8);
        assert_eq!(size("'<f2'"), 2);
        assert_eq!(size("'<c16'"), 16);
        assert_eq!(size("'<U3'"), 12);
        assert_eq!(size("'|S7'"), 7);
        assert_eq!(size("'<M8[ns]'"), 8);
        assert_eq!(size("'<m8[25s]'"), 8);
        assert_eq!(size("[('a', '<f4'), ('b', '<i8', (2, 3))]"), 52);
        assert_eq!(size("[('a', '|i1'), ('', '|V3'), ('b', [('x', '<f8')], (2,))]"), 20);
        assert_eq!(size("[(('a title', 'a'), '<f4')]"), 4);
        assert_eq!(size("[('a', '<i4'), ('c', ('<f8', (5,)), (2,))]"), 84);
        assert_eq!(size("[('a', '<i4', (0, 1000))]"), 0);
    }

    #[test]
    fn descriptions_survive_the_header_text() {
        for text in [
            "'<f4'",
            "'<M8[0s]'",
            "[]",
            "[('a', '<f4'), ('b', '<i8', (2,))]",
            "[(('t', 'n'), '|S3'), ('it\\'s \"x\"', '<f8')]",
            "[('a', '<i4'), ('c', ('<f8', (5,)), (2,))]",
            "[('a', ([('x', '<f4'), ('', '|V4')], (2, 3)), (0,))]",
        ] {
            let dtype = Dtype::parse_python(text).unwrap();
            assert_eq!(Dtype::parse_python(&dtype.to_python()).unwrap(), dtype);
        }
    }

    #[test]
    fn dtypes_are_described_as_numpy_describes_them() {
        for (text, canonical) in [
            ("'<u1'", "'|u1'"),
            ("'=i4'", "'<i4'"),
            ("'|f8'", "'<f8'"),
            ("'f04'", "'<f4'"),
            ("'<S5'", "'|S5'"),
            ("'a5'", "'|S5'"),
            ("'M8[generic]'", "'<M8'"),
            ("'>m8[1s]'", "'>m8[s]'"),
            ("'<M8[060s]'", "'<M8[60s]'"),
            ("[('a', '<f4', 3)]", "[('a', '<f4', (3,))]"),
            ("[('a', '<f4', ())]", "[('a', '<f4')]"),
            ("[('a', ('<f4', (3,)))]", "[('a', '<f4', (3,))]"),
            ("[('a', (('<f4', ()), (3,)), 2)]", "[('a', ('<f4', (3,)), (2,))]"),
        ] {
            assert_eq!(Dtype::parse_python(text).unwrap().to_python(), canonical, "{text}");
        }
        for typestring in ["f4", "<u1", "<S5", "<M8[1s]"] {
            let error = Dtype::from_descr(Descr::Scalar(typestring.into())).unwrap_err().to_string();
            assert!(error.contains("is not as NumPy writes it"), "{error}");
        }
    }

    #[test]
    fn refuses_what_has_no_fixed_size() {
        let error = Dtype::parse_python("'|O'").unwrap_err().to_string();
        assert!(error.contains("'|O'") && error.contains("pickle"), "{error}");
        for text in [
            "'<f3'",
            "''",
            "'<'",
            "'f'",
            "'<M8[parsec]'",
            "[('a', '|O')]",
            "[('a',)]",
            "3",
            "'<U999999999999'",
            "('<f4', (3,))",
            "'<M8[2147483648s]'",
            "'<M8[-1s]'",
            "[('a', '<f4'), ('a', '<f4')]",
            "[(('b', 'a'), '<f4'), ('b', '<f4')]",
            "[(('a', 'a'), '<f4')]",
            "[('a', '<f4', (0, 2147483648))]",
            "[('a', '|V1073741824'), ('b', '|V1073741824')]",
        ] {
            assert!(Dtype::parse_python(text).is_err(), "{text}");
        }
        assert!(Dtype::parse_python("[('', '|V1'), ('', '|V2'), ('', '<f4', (2,))]").is_ok());
        assert!(Dtype::parse_python("[('a', '<f8', (4294967296, 4294967296))]").is_err());
    }

    #[test]
    fn nested_dtypes_are_bounded() {
        let mut descr = Descr::Scalar("<f4".into());
        for _ in 0..100 {
            descr =
                Descr::Fields(vec![Field { title: String::new(), name: "a".into(), descr, shape: vec![] }]);
        }
        assert!(Dtype::from_descr(descr).is_err());
    }
}
