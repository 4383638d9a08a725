//! NumPy's own dtype description (`dtype.descr`, as in `.npy` headers) and the item size that follows from it.
//!
//! Every fixed-size dtype is known; objects and variable-width strings are refused here, once for all layers.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::FormatError;
use super::literal::{self, Literal};

/// Deepest nesting of structured dtypes.
const MAX_DEPTH: usize = 32;

/// Largest item that NumPy can have, in bytes.
const MAX_ITEMSIZE: u64 = i32::MAX as u64;

/// A dtype as NumPy describes it.
///
/// On disk: a string, or a list of fields; spec/npk-format.md, "Data types".
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Descr {
    /// A typestring such as `<f4`, `|b1`, `<M8[ns]`, `|S5`.
    Scalar(String),
    /// The fields of a structured dtype, in memory order.
    Fields(Vec<Field>),
}

/// One field of a structured dtype. Padding is a field with an empty name and dtype `|V<n>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    /// `Dtype` if it is not a fixed-size dtype of NumPy.
    pub fn from_descr(descr: Descr) -> Result<Self, FormatError> {
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
            Descr::Fields(_) => f.write_str(&self.to_python()),
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
    let size = match descr {
        Descr::Scalar(typestring) => scalar_itemsize(typestring).map_err(|what| refused(descr, what))?,
        Descr::Fields(fields) => {
            let mut sum = 0_u64;
            for field in fields {
                let element_len = itemsize(&field.descr, depth.saturating_add(1))?;
                sum = field
                    .shape
                    .iter()
                    .try_fold(element_len, |len, dim| len.checked_mul(*dim))
                    .and_then(|len| sum.checked_add(len))
                    .filter(|sum| *sum <= MAX_ITEMSIZE)
                    .ok_or_else(|| refused(descr, "has items over 2 GiB"))?;
            }
            sum
        }
    };
    if size > MAX_ITEMSIZE {
        return Err(refused(descr, "has items over 2 GiB"));
    }
    Ok(size)
}

fn scalar_itemsize(typestring: &str) -> Result<u64, &'static str> {
    const UNKNOWN: &str = "is not a dtype of NumPy's";
    let code = typestring.strip_prefix(['<', '>', '|', '=']).unwrap_or(typestring);
    let mut chars = code.chars();
    let kind = chars.next().ok_or(UNKNOWN)?;
    let rest = chars.as_str();
    if matches!(kind, 'M' | 'm') {
        let unit = rest.strip_prefix('8').ok_or(UNKNOWN)?;
        return if is_time_unit(unit) { Ok(8) } else { Err(UNKNOWN) };
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
    let size: u64 = rest.parse().map_err(|_| "has items over 2 GiB")?;
    match (kind, size) {
        ('b', 1) | ('i' | 'u', 1 | 2 | 4 | 8) | ('f', 2 | 4 | 8 | 12 | 16) | ('c', 8 | 16 | 24 | 32) => {
            Ok(size)
        }
        ('S' | 'a' | 'V', _) => Ok(size),
        ('U', _) => size.checked_mul(4).ok_or("has items over 2 GiB"),
        _ => Err(UNKNOWN),
    }
}

fn is_time_unit(unit: &str) -> bool {
    const UNITS: [&str; 14] =
        ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "generic"];
    if unit.is_empty() {
        return true;
    }
    unit.strip_prefix('[')
        .and_then(|unit| unit.strip_suffix(']'))
        .map(|unit| unit.trim_start_matches(|c: char| c.is_ascii_digit()))
        .is_some_and(|unit| UNITS.contains(&unit))
}

fn descr_of(literal: &Literal, depth: usize) -> Result<Descr, FormatError> {
    let malformed = || FormatError::NpyHeader { what: "descr is not a dtype description".into() };
    if depth > MAX_DEPTH {
        return Err(malformed());
    }
    match literal {
        Literal::Str(typestring) => Ok(Descr::Scalar(typestring.clone())),
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
                let descr = descr_of(descr, depth.saturating_add(1))?;
                fields.push(Field { title, name, descr, shape });
            }
            Ok(Descr::Fields(fields))
        }
        _ => Err(malformed()),
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
    }

    #[test]
    fn descriptions_survive_the_header_text() {
        for text in
            ["'<f4'", "[('a', '<f4'), ('b', '<i8', (2,))]", "[(('t', 'n'), '|S3'), ('it\\'s \"x\"', '<f8')]"]
        {
            let dtype = Dtype::parse_python(text).unwrap();
            assert_eq!(Dtype::parse_python(&dtype.to_python()).unwrap(), dtype);
        }
        assert_eq!(Dtype::parse_python("[('a', '<f4', 3)]").unwrap().to_python(), "[('a', '<f4', (3,))]");
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
        ] {
            assert!(Dtype::parse_python(text).is_err(), "{text}");
        }
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
