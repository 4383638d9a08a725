//! The tables that are written field after field: `NPKB`, bincode, and what looked like bincode.

use super::RawEntry;
use crate::bytes::array_at;
use crate::format::MAX_NDIM;

/// How a table of 0.3 to 0.7 begins.
pub(super) const NPKB_MAGIC: &[u8] = b"NPKB";
/// The only version of all of these.
const VERSION: u32 = 1;
/// How a table of 0.1 and 0.2.0 begins.
pub(super) const BINCODE_VERSION: u32 = VERSION;

/// How an array is compressed: level, size before, size after.
const NPKB_CODEC_LEN: usize = size_of::<u32>() + 2 * size_of::<u64>();
/// How its blocks are, before their number.
const NPKB_BLOCKS_LEN: usize = 1 + 2 * size_of::<u64>();
/// Of one block.
const NPKB_BLOCK_LEN: usize = 3 * size_of::<u64>();

/// What is wrong, in words.
type Result<T> = std::result::Result<T, String>;

/// `NPKB`, as 0.3 to 0.7 wrote it.
pub(super) fn parse_npkb(bytes: &[u8]) -> Result<Vec<RawEntry>> {
    let mut fields = Fields { bytes, offset: NPKB_MAGIC.len() };
    fields.version()?;
    fields.u64()?; // sum of the sizes
    let n_arrays = fields.u32()?;
    let mut entries = Vec::new();
    for _ in 0..n_arrays {
        let name = fields.text32()?;
        let n_dims = fields.u32()?;
        let shape = fields.shape(n_dims.into())?;
        let file = fields.text32()?;
        let (modified, size) = (fields.u64()?, fields.u64()?);
        let (dtype, compression) = (fields.u8()?, fields.u8()?);
        fields.skip::<NPKB_CODEC_LEN>()?;
        if fields.u8()? != 0 {
            fields.skip::<NPKB_BLOCKS_LEN>()?;
            for _ in 0..fields.u32()? {
                fields.skip::<NPKB_BLOCK_LEN>()?;
            }
        }
        let is_compressed = compression != 0;
        entries.push(RawEntry { name, shape, file, modified, size, dtype: dtype.into(), is_compressed });
    }
    fields.end()?;
    Ok(entries)
}

/// bincode, as 0.1 and 0.2.0 wrote it.
pub(super) fn parse_bincode(bytes: &[u8]) -> Result<Vec<RawEntry>> {
    let mut fields = Fields { bytes, offset: 0 };
    fields.version()?;
    let n_arrays = fields.u64()?;
    let mut entries = Vec::new();
    for _ in 0..n_arrays {
        let name = fields.key_and_name()?;
        let n_dims = fields.u64()?;
        let shape = fields.shape(n_dims)?;
        let file = fields.text64()?;
        let (modified, size) = (fields.u64()?, fields.u64()?);
        let dtype = fields.u32()?.into();
        entries.push(RawEntry { name, shape, file, modified, size, dtype, is_compressed: false });
    }
    fields.u64()?; // sum of the sizes
    fields.end()?;
    Ok(entries)
}

/// What 0.2.0 wrote without its Rust extension.
pub(super) fn parse_bincode_python(bytes: &[u8]) -> Result<Vec<RawEntry>> {
    let mut fields = Fields { bytes, offset: 0 };
    fields.version()?;
    let n_arrays = fields.u64()?;
    let mut entries = Vec::new();
    for _ in 0..n_arrays {
        let name = fields.key_and_name()?;
        let n_dims = fields.u64()?;
        let shape = fields.shape(n_dims)?;
        let dtype = fields.u64()?;
        let file = fields.text64()?;
        let modified = fields.u64()?;
        fields.u64()?; // the same number for every array
        let size = fields.u64()?;
        entries.push(RawEntry { name, shape, file, modified, size, dtype, is_compressed: false });
    }
    fields.end()?;
    Ok(entries)
}

/// Fields that are read one after the other. Nothing is allocated that the bytes do not hold.
struct Fields<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let array = array_at(self.bytes, self.offset).ok_or_else(|| self.cut())?;
        self.offset = self.offset.saturating_add(N);
        Ok(array)
    }

    fn skip<const N: usize>(&mut self) -> Result<()> {
        self.array::<N>().map(|_| ())
    }

    fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text32(&mut self) -> Result<String> {
        let len = self.u32()?;
        self.text(len.into())
    }

    fn text64(&mut self) -> Result<String> {
        let len = self.u64()?;
        self.text(len)
    }

    fn text(&mut self, len: u64) -> Result<String> {
        let end = usize::try_from(len).ok().and_then(|len| self.offset.checked_add(len));
        let text = end.and_then(|end| self.bytes.get(self.offset..end)).ok_or_else(|| self.cut())?;
        let text = std::str::from_utf8(text)
            .map_err(|_| format!("the text at byte {} is not UTF-8", self.offset))?
            .to_owned();
        self.offset = self.offset.saturating_add(text.len());
        Ok(text)
    }

    fn key_and_name(&mut self) -> Result<String> {
        let (key, name) = (self.text64()?, self.text64()?);
        if key != name {
            return Err(format!("array {key:?} is called {name:?} as well"));
        }
        Ok(name)
    }

    fn shape(&mut self, n_dims: u64) -> Result<Vec<u64>> {
        if n_dims > MAX_NDIM as u64 {
            return Err(format!("an array has {n_dims} dimensions at byte {}", self.offset));
        }
        (0..n_dims).map(|_| self.u64()).collect()
    }

    fn version(&mut self) -> Result<()> {
        match self.u32()? {
            VERSION => Ok(()),
            version => Err(format!("has version {version}, expected {VERSION}")),
        }
    }

    fn end(&self) -> Result<()> {
        match self.bytes.len().saturating_sub(self.offset) {
            0 => Ok(()),
            rest => Err(format!("ends at byte {}, and {rest} bytes follow", self.offset)),
        }
    }

    fn cut(&self) -> String {
        format!("is cut off after {} bytes, within the field at byte {}", self.bytes.len(), self.offset)
    }
}
