//! The intent of a writer: which files come and go with its commit, stated in the lock file before it touches them, so
//! that whoever comes after a crash removes just those that no record refers to.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::Ordering;

use super::Shared;
use super::error::StoreError;
use super::log::ManifestLog;
use crate::bytes::u32_at;
use crate::format::names;
use crate::sys::{FileAccess, Storage};

impl Shared {
    /// Says in the lock file which data files come and go, or that the manifest is replaced, so that a crash leaves
    /// nothing that nobody knows of.
    pub(super) fn write_intent(&self, files: &str) -> Result<(), StoreError> {
        write_intent(&*self.storage, files)
    }

    /// Finishes what a writer that died had begun: removes the files of its intent that no record refers to.
    pub(super) fn finish_intent(&self, manifest: &ManifestLog) {
        let files = self.storage.open(names::LOCK, FileAccess::Read).and_then(|file| {
            let len = usize::try_from(file.stat()?.len).unwrap_or(0).min(MAX_INTENT_LEN);
            let mut bytes = vec![0; len];
            let read = file.read_at(&mut bytes, 0)?;
            Ok(decode_intent(bytes.get(..read).unwrap_or(&[])))
        });
        let files = match files {
            Ok(Some(files)) => files,
            Ok(None) => return,
            Err(error) => return log::warn!("{}: {error}", self.storage.path().join(names::LOCK).display()),
        };
        let records = match manifest.table.records() {
            Ok(records) => records,
            // Nobody knows which files it needs.
            Err(error) => return log::warn!("{}: {error}", self.storage.path().display()),
        };
        let live: HashSet<&str> = records.iter().map(|record| &*record.file).collect();
        if let Err(error) = self.storage.sweep_temporaries() {
            log::warn!("{}: {error}", self.storage.path().display());
        }
        self.end_intent(files.iter().map(String::as_str).filter(|file| !live.contains(file)));
    }

    /// Removes the files that nobody needs any more, and then the intent that names them.
    pub(super) fn end_intent<'a>(&self, files: impl Iterator<Item = &'a str>) {
        let mut all_gone = true;
        for file in files {
            match self.storage.remove(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    log::warn!("cannot remove {}: {error}", self.storage.path().join(file).display());
                    all_gone = false;
                }
                _ => {}
            }
        }
        // What could not be removed stays in the intent, and is tried again with the next write.
        self.swept.store(all_gone, Ordering::Relaxed);
        if all_gone && let Err(error) = self.write_intent("") {
            log::warn!("{error}");
        }
    }
}

/// See [`Shared::write_intent`].
pub(super) fn write_intent(storage: &dyn Storage, files: &str) -> Result<(), StoreError> {
    let failed = |action, source| StoreError::io(action, storage.path(), names::LOCK, source);
    let bytes = encode_intent(files);
    let file = storage.open(names::LOCK, FileAccess::Write).map_err(|e| failed("open", e))?;
    file.write_at(&bytes, 0).map_err(|e| failed("write", e))
}

const MAX_INTENT_LEN: usize = 64 << 20;
const INTENT_HEADER_LEN: usize = 2 * size_of::<u32>();

/// An intent on disk: length, crc32, and the files' names, one a line.
fn encode_intent(files: &str) -> Vec<u8> {
    let files = if files.len() > MAX_INTENT_LEN - INTENT_HEADER_LEN { "" } else { files };
    let mut bytes = Vec::with_capacity(INTENT_HEADER_LEN + files.len());
    bytes.extend_from_slice(&(files.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(files.as_bytes()).to_le_bytes());
    bytes.extend_from_slice(files.as_bytes());
    bytes
}

/// The data files that an intent names; `None` if there is no intent, or it is torn, and so was never acted upon.
fn decode_intent(bytes: &[u8]) -> Option<Vec<String>> {
    let len = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let files = bytes.get(INTENT_HEADER_LEN..INTENT_HEADER_LEN.checked_add(len)?)?;
    if crc32fast::hash(files) != u32_at(bytes, size_of::<u32>())? {
        return None;
    }
    let files = std::str::from_utf8(files).ok().filter(|files| !files.is_empty())?;
    Some(files.lines().filter(|file| names::is_data_file(file)).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intents_survive_and_torn_ones_do_not_count() {
        let bytes = encode_intent("data_a.npkd\ndata_b~7.npkd");
        assert_eq!(decode_intent(&bytes).unwrap(), ["data_a.npkd", "data_b~7.npkd"]);
        for len in 0..bytes.len() {
            assert_eq!(decode_intent(&bytes[..len]), None);
        }
        assert_eq!(decode_intent(&encode_intent("")), None);
        assert_eq!(decode_intent(&encode_intent("../x\nmetadata.npkm")).unwrap(), Vec::<String>::new());
    }
}
