//! Which arrays a command line means: a name stands for the array of that name, and for the group of that name with
//! all that is in it.

use std::ops::Range;
use std::path::PathBuf;

use crate::store::{Array, Store, StoreError};

use super::error::CliError;

/// All arrays of a store, in the order of their names.
pub struct Catalog {
    store: PathBuf,
    arrays: Vec<Array>,
}

impl Catalog {
    pub fn read(store: &Store) -> Result<Catalog, StoreError> {
        let mut arrays = store.arrays()?;
        arrays.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(Catalog { store: store.path().to_owned(), arrays })
    }

    /// The array of this name.
    pub fn array(&self, name: &str) -> Option<&Array> {
        self.arrays.binary_search_by(|array| (**array.name()).cmp(name)).ok().map(|at| &self.arrays[at])
    }

    /// The arrays in the group of this name, and in the groups within it. The name may end with `/`.
    pub fn group(&self, name: &str) -> &[Array] {
        &self.arrays[group(&self.arrays, name, |array| array.name())]
    }

    /// The arrays that the names stand for, in the order of their names, each once; no names stand for all.
    pub fn chosen(self, names: &[impl AsRef<str>]) -> Result<Vec<Array>, CliError> {
        if names.is_empty() {
            return Ok(self.arrays);
        }
        let mut chosen = Vec::new();
        for name in names.iter().map(AsRef::as_ref) {
            let before = chosen.len();
            chosen.extend(self.array(name).cloned());
            chosen.extend_from_slice(self.group(name));
            if chosen.len() == before {
                return Err(self.nothing_named(name));
            }
        }
        chosen.sort_by(|a, b| a.name().cmp(b.name()));
        chosen.dedup_by(|a, b| a.name() == b.name());
        Ok(chosen)
    }

    pub fn nothing_named(&self, name: &str) -> CliError {
        CliError::NothingNamed { store: self.store.clone(), name: name.to_owned() }
    }
}

/// Where the members of a group are in a sorted list.
fn group<T>(sorted: &[T], group: &str, name: impl Fn(&T) -> &str) -> Range<usize> {
    let prefix = format!("{}/", group.strip_suffix('/').unwrap_or(group));
    let start = sorted.partition_point(|item| name(item) < &*prefix);
    let len = sorted[start..].partition_point(|item| name(item).starts_with(&prefix));
    start..start + len
}

#[cfg(test)]
mod tests {
    use super::group;

    #[test]
    fn groups_end_at_a_slash() {
        let names = ["", "/x", "a", "a!", "a-b/c", "a/", "a/b", "a/b/c", "ab", "ab/c", "b"];
        let members = |name: &str| &names[group(&names, name, |name| name)];
        assert_eq!(members("a"), ["a/", "a/b", "a/b/c"]);
        assert_eq!(members("a/"), ["a/", "a/b", "a/b/c"]);
        assert_eq!(members("a/b"), ["a/b/c"]);
        assert_eq!(members(""), ["/x"]);
        assert!(members("b").is_empty() && members("c").is_empty());
    }
}
