//! Numbers of bytes, and ways to compress, as a user writes them.

use crate::format::{MAX_LEVEL, MIN_LEVEL};
use crate::store::{Compression, Filter};

/// What [`size`] takes, for messages.
pub const SIZE_EXPECTED: &str = "a number of bytes, or one with K, M, G or T";

/// A number of bytes: `4096`, or `64K`, `1M`, `2G`, `1T` for so many times 1024, 1024 * 1024 and so on.
pub fn size(text: &str) -> Option<u64> {
    let (number, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        b'T' | b't' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    // `parse` would take a sign.
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// What [`compress`] takes, for messages.
pub const COMPRESS_EXPECTED: &str = "compress=off, compress=zstd or compress=zstd:LEVEL, LEVEL from -7 to 22";

/// How new arrays are compressed: `off`, `zstd`, or `zstd:LEVEL`.
pub fn compress(text: &str) -> Option<Option<Compression>> {
    let level = match text {
        "off" => return Some(None),
        "zstd" => return Some(Some(Compression::default())),
        _ => text.strip_prefix("zstd:")?.parse().ok()?,
    };
    (MIN_LEVEL..=MAX_LEVEL).contains(&level).then(|| Some(Compression { level, ..Compression::default() }))
}

/// The opposite of [`compress`].
pub fn compress_text(compression: Option<&Compression>) -> String {
    compression.map_or_else(|| "off".to_owned(), codec_name)
}

/// A codec and its level, for people: `zstd:1`.
pub fn codec_name(compression: &Compression) -> String {
    format!("zstd:{}", compression.level)
}

/// How an array's blocks are encoded, for people: `zstd:1, 64 KiB blocks, shuffle`.
pub fn codec_text(compression: &Compression) -> String {
    let blocks = match compression.block_len / 1024 {
        kib if kib % 1024 == 0 => format!("{} MiB", kib / 1024),
        kib => format!("{kib} KiB"),
    };
    let filter = match compression.filter {
        Some(Filter::None) => "no filter",
        Some(filter) => filter.name(),
        None => "a filter that fits",
    };
    format!("{}, {blocks} blocks, {filter}", codec_name(compression))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        for (text, n_bytes) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("64K", Some(65536)),
            ("64k", Some(65536)),
            ("1M", Some(1 << 20)),
            ("3G", Some(3 << 30)),
            ("2T", Some(2 << 40)),
            ("", None),
            ("K", None),
            ("-1", None),
            ("+1", None),
            ("1.5M", None),
            ("1MB", None),
            ("16777216T", None),
            ("1\u{e9}", None),
        ] {
            assert_eq!(size(text), n_bytes, "{text:?}");
        }
    }

    #[test]
    fn ways_to_compress_are_read_as_they_are_written() {
        for text in ["off", "zstd:1", "zstd:-7", "zstd:22"] {
            let compression = compress(text).unwrap();
            assert_eq!(compress_text(compression.as_ref()), text);
        }
        assert_eq!(compress("zstd"), Some(Some(Compression::default())));
        for text in ["", "on", "zstd:", "zstd:23", "zstd:-8", "zstd:1.5", "lz4", "zstd=3", "ZSTD"] {
            assert_eq!(compress(text), None, "{text:?}");
        }
    }

    #[test]
    fn codecs_are_described() {
        let text = |level, block_len, filter| codec_text(&Compression { level, block_len, filter });
        assert_eq!(text(1, 65536, Some(Filter::Shuffle)), "zstd:1, 64 KiB blocks, shuffle");
        assert_eq!(text(-7, 4 << 20, Some(Filter::None)), "zstd:-7, 4 MiB blocks, no filter");
        assert_eq!(text(3, 12288, None), "zstd:3, 12 KiB blocks, a filter that fits");
    }
}
