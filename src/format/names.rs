//! Names: which ones an array can have, and the data file that a name leads to.

use super::{ArrayId, FormatError};

/// The manifest: what exists in the store.
pub const MANIFEST: &str = "metadata.npkm";
/// A second name of the newest snapshot's file.
pub const MANIFEST_BACKUP: &str = "metadata.npkm.bak";
/// The folder for files that a mount was given, that were to be arrays, and are none. Nothing here reads it.
pub const LOST_AND_FOUND: &str = "lost+found";
/// The folder for files of other names that a mount was given: plain files, which mounts show.
pub const PLAIN_FILES: &str = "files";
/// The file that writers lock.
pub const LOCK: &str = "metadata.npkm.lock";

const DATA_PREFIX: &str = "data_";
const DATA_SUFFIX: &str = ".npkd";

/// Longest array name, in bytes of UTF-8.
pub const MAX_NAME_LEN: usize = 4096;

/// Bytes of the escaped name that go into a file name; file systems allow 255 in all.
const MAX_ESCAPED_LEN: usize = 200;

/// Longest name of a file, in bytes.
const MAX_FILE_NAME_LEN: usize = 255;

/// Checks that an array may have this name.
///
/// # Errors
/// `Name` if it holds a NUL or is over [`MAX_NAME_LEN`].
pub fn check(name: &str) -> Result<(), FormatError> {
    let refused = |what| FormatError::Name { name: name.to_owned(), what };
    if name.contains('\0') {
        Err(refused("holds a NUL character"))
    } else if name.len() > MAX_NAME_LEN {
        Err(refused("is longer than 4096 bytes"))
    } else {
        Ok(())
    }
}

/// The data file of a name's first version, if the name is short enough to have one without its id.
pub fn first_data_file(name: &str) -> Option<String> {
    let escaped = escape(name);
    (escaped.len() <= MAX_ESCAPED_LEN).then(|| format!("{DATA_PREFIX}{escaped}{DATA_SUFFIX}"))
}

/// The data file of version `id` of an array. No two versions share it.
pub fn data_file(name: &str, id: ArrayId) -> String {
    let mut escaped = escape(name);
    if escaped.len() > MAX_ESCAPED_LEN {
        // An escape is cut nowhere: at most two of its three bytes would remain.
        let cut = (MAX_ESCAPED_LEN.saturating_sub(2)..=MAX_ESCAPED_LEN)
            .find(|cut| escaped.get(*cut..).is_some_and(|rest| rest.starts_with('%')))
            .unwrap_or(MAX_ESCAPED_LEN);
        escaped.truncate(cut);
    }
    format!("{DATA_PREFIX}{escaped}~{}{DATA_SUFFIX}", id.0)
}

/// Whether `file` is a name that data files have: within the store's folder, and nothing else's.
pub fn is_data_file(file: &str) -> bool {
    file.len() <= MAX_FILE_NAME_LEN
        && file.starts_with(DATA_PREFIX)
        && file.ends_with(DATA_SUFFIX)
        && !file.bytes().any(|byte| byte == b'/' || byte == 0)
}

/// What the name of a data file tells of the array that it was made for. Renamed arrays keep their files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileName {
    /// The array's name, or the first part of it.
    pub name: String,
    /// The identity of the version, if it is not the first of its name.
    pub id: Option<ArrayId>,
    /// The array's name may go on: it was too long for a file's.
    pub is_cut: bool,
}

/// Reads what [`first_data_file`] and [`data_file`] have written; `None` if it is not from them.
pub fn parse_data_file(file: &str) -> Option<FileName> {
    let text = file.strip_prefix(DATA_PREFIX)?.strip_suffix(DATA_SUFFIX)?;
    // A `~` in the array's name is escaped.
    let (escaped, id) = match text.rsplit_once('~') {
        Some((escaped, id)) => (escaped, Some(ArrayId(id.parse().ok()?))),
        None => (text, None),
    };
    let name = unescape(escaped)?;
    let is_cut = id.is_some() && escaped.len() >= MAX_ESCAPED_LEN.saturating_sub(2);
    // Escapes are not cut, but a character of several may be: what is left of it is in no name.
    let own = escape(&name);
    let is_own = if is_cut { escaped.starts_with(&own) } else { own == escaped };
    (is_own && check(&name).is_ok()).then_some(FileName { name, id, is_cut })
}

/// The name in [`LOST_AND_FOUND`] for a file of the store that is kept there; `n` counts up while it is taken.
pub fn kept_file(file: &str, n: u32) -> String {
    let suffix = if n > 0 { format!("~{n}") } else { String::new() };
    let room = MAX_FILE_NAME_LEN.saturating_sub(suffix.len());
    let cut = (0..=room.min(file.len())).rfind(|cut| file.is_char_boundary(*cut)).unwrap_or(0);
    format!("{}{suffix}", file.get(..cut).unwrap_or(""))
}

/// The name in [`LOST_AND_FOUND`] for a file that had the path `path` in a mount; `n` counts up while it is taken.
pub fn lost_file(path: &str, n: u32) -> String {
    let mut name = escape(path);
    name.truncate(MAX_ESCAPED_LEN);
    if n > 0 {
        name.push_str(&format!("~{n}"));
    }
    name
}

/// The name in [`PLAIN_FILES`] of the `n`-th file there, which has the path `path` in a mount, and is the data file of
/// version `of` as well, or was. `None` if the path is too long.
pub fn plain_file(path: &str, n: u64, of: Option<ArrayId>) -> Option<String> {
    let escaped = escape(path);
    if escaped.len() > MAX_ESCAPED_LEN {
        return None;
    }
    let of = of.map(|of| format!("~{}", of.0)).unwrap_or_default();
    Some(format!("{escaped}~{n}{of}"))
}

/// What [`plain_file`] has written; `None` if it is not from there.
pub fn parse_plain_file(file: &str) -> Option<(String, u64, Option<ArrayId>)> {
    // A `~` in the path is escaped.
    let mut parts = file.split('~');
    let (escaped, n, of) = (parts.next()?, parts.next()?.parse().ok()?, parts.next());
    let of = of.map(|of| of.parse().map(ArrayId)).transpose().ok()?;
    let path = unescape(escaped)?;
    (plain_file(&path, n, of)? == file).then_some((path, n, of))
}

/// Percent-escapes every byte that is not an ASCII letter, digit, or one of `_-.+=@,`: the same names then work on
/// file systems that normalise Unicode or forbid characters.
fn escape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_ascii_alphanumeric() || "_-.+=@,".contains(c) {
            out.push(c);
        } else {
            let mut buf = [0; 4];
            for byte in c.encode_utf8(&mut buf).bytes() {
                out.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    out
}

/// Undoes [`escape`]; `None` for what it has not written. Of a character that was cut, what is left is left out.
fn unescape(escaped: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        let digits = std::str::from_utf8(&digits).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
    }
    match String::from_utf8(bytes) {
        Ok(name) => Some(name),
        Err(error) if error.utf8_error().error_len().is_none() => {
            let valid = error.utf8_error().valid_up_to();
            String::from_utf8(error.into_bytes().get(..valid)?.to_vec()).ok()
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_are_readable_in_the_folder() {
        assert_eq!(first_data_file("array1").unwrap(), "data_array1.npkd");
        assert_eq!(data_file("array1", ArrayId(7)), "data_array1~7.npkd");
        assert_eq!(first_data_file("a/b c~d").unwrap(), "data_a%2Fb%20c%7Ed.npkd");
        assert_eq!(first_data_file("").unwrap(), "data_.npkd");
        assert_eq!(first_data_file("..").unwrap(), "data_...npkd");
        assert_eq!(first_data_file("\u{6570}").unwrap(), "data_%E6%95%B0.npkd");
    }

    #[test]
    fn file_names_tell_what_they_were_made_for() {
        for name in ["array1", "a/b c~d", "", "..", "~7", "%41", "\u{6570}\u{7ec4}"] {
            let file = first_data_file(name).unwrap();
            let parsed = FileName { name: name.to_owned(), id: None, is_cut: false };
            assert_eq!(parse_data_file(&file), Some(parsed.clone()), "{file}");
            let file = data_file(name, ArrayId(7));
            assert_eq!(parse_data_file(&file), Some(FileName { id: Some(ArrayId(7)), ..parsed }), "{file}");
        }
        for n in 60..80 {
            let name = "\u{6570}".repeat(n);
            let found = parse_data_file(&data_file(&name, ArrayId(7))).unwrap();
            assert!(name.starts_with(&found.name) && (found.is_cut || found.name == name), "{n}");
        }
        for file in
            ["data_a%2.npkd", "data_a%zz.npkd", "data_a%e6.npkd", "data_a~b.npkd", "data_a b.npkd", "x"]
        {
            assert_eq!(parse_data_file(file), None, "{file}");
        }
        assert_eq!(kept_file("data_a.npkd", 0), "data_a.npkd");
        assert_eq!(kept_file("data_a.npkd", 3), "data_a.npkd~3");
        assert_eq!(kept_file(&"x".repeat(255), 10).len(), 255);
    }

    #[test]
    fn long_names_are_cut_between_escapes() {
        let name = "\u{6570}".repeat(1000);
        assert_eq!(first_data_file(&name), None);
        let file = data_file(&name, ArrayId(u64::MAX));
        assert!(file.len() <= 255 && is_data_file(&file));
        let escaped = &file[5..file.find('~').unwrap()];
        assert_eq!(escaped.len() % 3, 0, "{escaped}");
    }

    #[test]
    fn files_outside_the_store_are_no_data_files() {
        for file in [
            "/etc/passwd",
            "../data_a.npkd",
            "data_../../x.npkd",
            "metadata.npkm",
            "data_a.npy",
            "data_\0.npkd",
            "",
        ] {
            assert!(!is_data_file(file), "{file:?}");
        }
        assert!(is_data_file("data_a.npkd"));
    }

    #[test]
    fn plain_files_are_named_by_path_and_number() {
        for (path, n, of, file) in [
            ("a.bak", 1, None, "a.bak~1"),
            (".git/objects/ab/c", 7, Some(ArrayId(3)), ".git%2Fobjects%2Fab%2Fc~7~3"),
            (
                "a.npy~",
                u64::MAX,
                Some(ArrayId(u64::MAX)),
                "a.npy%7E~18446744073709551615~18446744073709551615",
            ),
        ] {
            assert_eq!(plain_file(path, n, of).as_deref(), Some(file));
            assert_eq!(parse_plain_file(file), Some((path.to_owned(), n, of)));
        }
        assert_eq!(plain_file(&"a".repeat(201), 1, None), None);
        assert!(
            plain_file(&"a".repeat(200), u64::MAX, Some(ArrayId(u64::MAX))).unwrap().len()
                <= MAX_FILE_NAME_LEN
        );
        for file in ["a", "a~", "a~b", "a~1~", "a~01", "a~1~2~3", "a~+1", "a%7e~1", "\u{e4}~1", "~1~x"] {
            assert_eq!(parse_plain_file(file), None, "{file}");
        }
    }

    #[test]
    fn lost_files_are_numbered() {
        assert_eq!(lost_file("g/a.npy", 0), "g%2Fa.npy");
        assert_eq!(lost_file("a~1", 0), "a%7E1");
        assert_eq!(lost_file("a", 12), "a~12");
        assert!(lost_file(&"\u{6570}".repeat(1000), u32::MAX).len() < 255);
    }

    #[test]
    fn names_are_text_without_nul() {
        assert!(check("").is_ok() && check("a/b/../c").is_ok());
        assert!(check("a\0b").is_err());
        assert!(check(&"x".repeat(4097)).is_err());
    }
}
