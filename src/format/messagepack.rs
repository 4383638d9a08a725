//! Reading MessagePack as the format has it: each value of the kind that is expected, maps with string keys that are
//! there once, and nothing behind the end.
//!
//! Not through serde, whose types take much for each other: arrays for maps, byte strings for strings, numbers for
//! keys. What one reader takes and another refuses would be an array for the one and damage for the other.

use std::collections::HashSet;

use rmpv::Value;

use super::FormatError;

/// What is wrong with a payload, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) String);

impl Malformed {
    /// The error of the frame at byte `offset`.
    pub(super) fn at(self, offset: u64) -> FormatError {
        FormatError::Payload { offset, what: self.0 }
    }
}

/// So that checks of values can be used while a payload is read.
impl From<FormatError> for Malformed {
    fn from(error: FormatError) -> Self {
        Self(error.to_string())
    }
}

pub(super) type Result<T> = std::result::Result<T, Malformed>;

/// Reads `bytes` with `read`, which takes all of them.
pub(super) fn read_all<'a, T>(bytes: &'a [u8], read: impl FnOnce(&mut Reader<'a>) -> Result<T>) -> Result<T> {
    let mut reader = Reader { rest: bytes };
    let value = read(&mut reader)?;
    match reader.rest.len() {
        0 => Ok(value),
        len => Err(Malformed(format!("{len} bytes follow its end"))),
    }
}

/// Values that are still to be read.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn cut() -> Malformed {
        Malformed("it is cut".into())
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(Self::cut)?;
        self.rest = rest;
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(Self::cut)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn peek(&self) -> Result<u8> {
        self.rest.first().copied().ok_or_else(Self::cut)
    }

    fn mark(&mut self) -> Result<u8> {
        let [mark] = self.bytes()?;
        Ok(mark)
    }

    /// A length of `size` bytes.
    fn len(&mut self, size: u8) -> Result<usize> {
        Ok(match size {
            1 => u8::from_be_bytes(self.bytes()?).into(),
            2 => u16::from_be_bytes(self.bytes()?).into(),
            // Lengths that no memory has are longer than what is left.
            _ => usize::try_from(u32::from_be_bytes(self.bytes()?)).unwrap_or(usize::MAX),
        })
    }

    /// The number of values of an array.
    pub(super) fn array(&mut self) -> Result<usize> {
        match self.mark()? {
            mark @ 0x90..=0x9f => Ok(usize::from(mark & 0x0f)),
            0xdc => self.len(2),
            0xdd => self.len(4),
            mark => Err(unexpected("an array", mark)),
        }
    }

    /// An array of `len` values.
    pub(super) fn tuple(&mut self, len: usize) -> Result<()> {
        match self.array()? {
            found if found == len => Ok(()),
            found => Err(Malformed(format!("an array has {found} values, expected {len}"))),
        }
    }

    /// An array of values that `read` reads.
    pub(super) fn list<T>(&mut self, mut read: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let len = self.array()?;
        // The number of values is what the bytes claim: nothing is reserved for it.
        let mut list = Vec::new();
        for _ in 0..len {
            list.push(read(self)?);
        }
        Ok(list)
    }

    /// The number of entries of a map.
    fn map(&mut self) -> Result<usize> {
        match self.mark()? {
            mark @ 0x80..=0x8f => Ok(usize::from(mark & 0x0f)),
            0xde => self.len(2),
            0xdf => self.len(4),
            mark => Err(unexpected("a map", mark)),
        }
    }

    /// A map with string keys, each of which `read` is told, to read its value. What it reads for a key that is there
    /// twice is to be refused by [`once`].
    pub(super) fn fields(&mut self, mut read: impl FnMut(&mut Self, &'a str) -> Result<()>) -> Result<()> {
        for _ in 0..self.map()? {
            let key = self.str()?;
            read(self, key)?;
        }
        Ok(())
    }

    /// A string, which is UTF-8.
    pub(super) fn str(&mut self) -> Result<&'a str> {
        let len = match self.mark()? {
            mark @ 0xa0..=0xbf => usize::from(mark & 0x1f),
            0xd9 => self.len(1)?,
            0xda => self.len(2)?,
            0xdb => self.len(4)?,
            mark => return Err(unexpected("a string", mark)),
        };
        std::str::from_utf8(self.take(len)?)
            .map_err(|error| Malformed(format!("a string is no UTF-8: {error}")))
    }

    /// A byte string.
    pub(super) fn bin(&mut self) -> Result<&'a [u8]> {
        let len = match self.mark()? {
            0xc4 => self.len(1)?,
            0xc5 => self.len(2)?,
            0xc6 => self.len(4)?,
            mark => return Err(unexpected("a byte string", mark)),
        };
        self.take(len)
    }

    /// An integer of at least 0.
    pub(super) fn uint(&mut self) -> Result<u64> {
        let value = self.integer()?;
        u64::try_from(value).map_err(|_| Malformed(format!("an integer is {value}, expected at least 0")))
    }

    /// An integer of up to 64 bits with a sign.
    pub(super) fn int(&mut self) -> Result<i64> {
        let value = self.integer()?;
        i64::try_from(value)
            .map_err(|_| Malformed(format!("an integer is {value}, expected less than 2**63")))
    }

    fn integer(&mut self) -> Result<i128> {
        Ok(match self.mark()? {
            mark @ 0..=0x7f => mark.into(),
            mark @ 0xe0..=0xff => i8::from_be_bytes([mark]).into(),
            0xcc => u8::from_be_bytes(self.bytes()?).into(),
            0xcd => u16::from_be_bytes(self.bytes()?).into(),
            0xce => u32::from_be_bytes(self.bytes()?).into(),
            0xcf => u64::from_be_bytes(self.bytes()?).into(),
            0xd0 => i8::from_be_bytes(self.bytes()?).into(),
            0xd1 => i16::from_be_bytes(self.bytes()?).into(),
            0xd2 => i32::from_be_bytes(self.bytes()?).into(),
            0xd3 => i64::from_be_bytes(self.bytes()?).into(),
            mark => return Err(unexpected("an integer", mark)),
        })
    }

    /// A boolean.
    pub(super) fn bool(&mut self) -> Result<bool> {
        match self.mark()? {
            0xc2 => Ok(false),
            0xc3 => Ok(true),
            mark => Err(unexpected("a boolean", mark)),
        }
    }

    /// Nil as `None`, or else what `read` reads.
    pub(super) fn optional<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        if self.peek()? != 0xc0 {
            return read(self).map(Some);
        }
        self.mark()?;
        Ok(None)
    }

    /// Whether a string comes next.
    pub(super) fn is_str(&self) -> bool {
        matches!(self.rest.first(), Some(0xa0..=0xbf | 0xd9..=0xdb))
    }

    /// Whether an array comes next.
    pub(super) fn is_array(&self) -> bool {
        matches!(self.rest.first(), Some(0x90..=0x9f | 0xdc | 0xdd))
    }

    /// Any value but extensions, nested at most `depth` deep. Floats are taken for ones of 64 bits.
    pub(super) fn value(&mut self, depth: usize) -> Result<Value> {
        let too_deep = || Malformed("a value is nested deeper than 64 levels".into());
        let inner = depth.checked_sub(1);
        Ok(match self.peek()? {
            0xc0 => {
                self.mark()?;
                Value::Nil
            }
            0xc2 | 0xc3 => Value::Boolean(self.bool()?),
            0..=0x7f | 0xcc..=0xd3 | 0xe0..=0xff => {
                let value = self.integer()?;
                match u64::try_from(value) {
                    Ok(value) => value.into(),
                    Err(_) => i64::try_from(value).map_err(|_| too_deep())?.into(),
                }
            }
            0xca => {
                self.mark()?;
                Value::F64(f32::from_be_bytes(self.bytes()?).into())
            }
            0xcb => {
                self.mark()?;
                Value::F64(f64::from_be_bytes(self.bytes()?))
            }
            0xa0..=0xbf | 0xd9..=0xdb => self.str()?.into(),
            0xc4..=0xc6 => Value::Binary(self.bin()?.to_vec()),
            0x90..=0x9f | 0xdc | 0xdd => {
                let inner = inner.ok_or_else(too_deep)?;
                Value::Array(self.list(|reader| reader.value(inner))?)
            }
            0x80..=0x8f | 0xde | 0xdf => {
                let inner = inner.ok_or_else(too_deep)?;
                let len = self.map()?;
                let (mut entries, mut seen) = (Vec::new(), HashSet::new());
                for nth in 0..len {
                    let key = self.value(inner)?;
                    let mut text = Vec::new();
                    write_key(&key, nth, &mut text)?;
                    if !seen.insert(text) {
                        return Err(Malformed(format!("a map has the key {key} twice")));
                    }
                    entries.push((key, self.value(inner)?));
                }
                Value::Map(entries)
            }
            mark => return Err(unexpected("a value", mark)),
        })
    }
}

/// Writes what is the same for two keys of a map, and only for these, if they are equal to Python: 1, 1.0 and true are,
/// and no NaN is equal to another. `nth` is the key's number in its map.
fn write_key(key: &Value, nth: usize, out: &mut Vec<u8>) -> Result<()> {
    match key {
        Value::Nil => out.push(b'n'),
        Value::Boolean(value) => out.extend(format!("i{};", u8::from(*value)).into_bytes()),
        Value::Integer(value) => out.extend(format!("i{value};").into_bytes()),
        Value::F32(_) | Value::F64(_) => {
            let value = key.as_f64().unwrap_or(f64::NAN);
            // There are no integers of more than 64 bits, and `{:.0}` is exact.
            let text = if value.is_nan() {
                format!("?{nth};")
            } else if value == 0.0 {
                "i0;".to_owned()
            } else if value.fract() == 0.0 {
                format!("i{value:.0};")
            } else {
                format!("f{:x};", value.to_bits())
            };
            out.extend(text.into_bytes());
        }
        Value::String(text) => {
            out.extend(format!("s{}:", text.as_bytes().len()).into_bytes());
            out.extend(text.as_bytes());
        }
        Value::Binary(bytes) => {
            out.extend(format!("b{}:", bytes.len()).into_bytes());
            out.extend(bytes);
        }
        Value::Array(items) => {
            out.extend(format!("a{}:", items.len()).into_bytes());
            for item in items {
                write_key(item, nth, out)?;
            }
        }
        Value::Map(_) | Value::Ext(..) => return Err(Malformed("a map is the key of another".into())),
    }
    Ok(())
}

/// Keeps the value of a key of a map, which is there once.
pub(super) fn once<T>(slot: &mut Option<T>, key: &str, value: T) -> Result<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Malformed(format!("the key {key:?} is there twice"))),
    }
}

/// The value of a key that must be there.
pub(super) fn needed<T>(slot: Option<T>, key: &str) -> Result<T> {
    slot.ok_or_else(|| Malformed(format!("the key {key:?} is missing")))
}

/// The refusal of a key that no such map has.
pub(super) fn unknown(key: &str) -> Malformed {
    Malformed(format!("the key {key:?} is unknown"))
}

fn unexpected(expected: &str, mark: u8) -> Malformed {
    let found = match mark {
        0..=0x7f | 0xcc..=0xd3 | 0xe0..=0xff => "an integer",
        0x80..=0x8f | 0xde | 0xdf => "a map",
        0x90..=0x9f | 0xdc | 0xdd => "an array",
        0xa0..=0xbf | 0xd9..=0xdb => "a string",
        0xc0 => "nil",
        0xc1 => "a byte that begins nothing",
        0xc2 | 0xc3 => "a boolean",
        0xc4..=0xc6 => "a byte string",
        0xc7..=0xc9 | 0xd4..=0xd8 => "an extension",
        0xca | 0xcb => "a float",
    };
    Malformed(format!("{found} where {expected} is expected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(bytes: &[u8]) -> Result<Value> {
        read_all(bytes, |reader| reader.value(3))
    }

    #[test]
    fn values_come_back() {
        let values = Value::Map(vec![
            (Value::from("a"), Value::Nil),
            (Value::from(-1), Value::from(u64::MAX)),
            (Value::from(i64::MIN), Value::Boolean(true)),
            (Value::F64(0.5), Value::Binary(vec![0; 300])),
            (Value::Array(vec![Value::from(1)]), Value::from("x".repeat(70_000))),
            (Value::Binary(b"a".to_vec()), Value::Array(vec![Value::from(7); 20])),
        ]);
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &values).unwrap();
        assert_eq!(value(&bytes).unwrap(), values);
        for len in 0..bytes.len() {
            assert!(value(&bytes[..len]).is_err(), "{len}");
        }
        bytes.push(0xc0);
        assert_eq!(value(&bytes).unwrap_err().0, "1 bytes follow its end");
    }

    #[test]
    fn floats_have_64_bits() {
        assert_eq!(value(&[0xca, 0x3f, 0x80, 0, 0]).unwrap(), Value::F64(1.0));
    }

    #[test]
    fn what_python_cannot_tell_apart_is_one_key() {
        let one: &[u8] = &[0x01];
        let one_f32: &[u8] = &[0xca, 0x3f, 0x80, 0, 0];
        let one_wide: &[u8] = &[0xd3, 0, 0, 0, 0, 0, 0, 0, 1];
        for (first, second) in
            [(one, one_wide), (one, one_f32), (&[0xc3], one), (&[0xa1, b'x'], &[0xd9, 1, b'x'])]
        {
            let bytes = [&[0x82], first, &[0xc0], second, &[0xc0]].concat();
            assert!(value(&bytes).unwrap_err().0.contains("twice"), "{bytes:?}");
        }
        let nan: &[u8] = &[0xca, 0x7f, 0xc0, 0, 0];
        let text: &[u8] = &[0xa1, b'x'];
        let byte_string: &[u8] = &[0xc4, 1, b'x'];
        for (first, second) in [(nan, nan), (text, byte_string), (one, &[0xca, 0x3f, 0xc0, 0, 0])] {
            assert!(value(&[&[0x82], first, &[0xc0], second, &[0xc0]].concat()).is_ok());
        }
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for (bytes, what) in [
            (&[0xc1][..], "begins nothing"),
            (&[0xd4, 1, 0], "an extension"),
            (&[0xa1, 0xff], "no UTF-8"),
            (&[0x91, 0x91, 0x91, 0x91, 0x00], "deeper"),
            (&[0x81, 0x80, 0x00], "key of another"),
            (&[0xdd, 0xff, 0xff, 0xff, 0xff], "cut"),
            (&[0xc6, 0xff, 0xff, 0xff, 0xff], "cut"),
        ] {
            let error = value(bytes).unwrap_err().0;
            assert!(error.contains(what), "{error}");
        }
    }
}
