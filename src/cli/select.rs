//! Which arrays a command line means: a name stands for the array of that name, and for the group of that name with
//! all that is in it.

use crate::store::{Array, Store};

use super::error::CliError;

/// The arrays that the names stand for, in the order of their names, each once; no names stand for all.
pub fn arrays(store: &Store, names: &[impl AsRef<str>]) -> Result<Vec<Array>, CliError> {
    let mut all = store.arrays()?;
    all.sort_by(|a, b| a.name().cmp(b.name()));
    if names.is_empty() {
        return Ok(all);
    }
    let mut chosen = vec![false; all.len()];
    for name in names.iter().map(AsRef::as_ref) {
        let mut found = false;
        for (array, chosen) in all.iter().zip(&mut chosen) {
            if **array.name() == *name || is_in_group(array.name(), name) {
                (*chosen, found) = (true, true);
            }
        }
        if !found {
            return Err(CliError::NothingNamed { store: store.path().to_owned(), name: name.to_owned() });
        }
    }
    Ok(all.into_iter().zip(chosen).filter_map(|(array, chosen)| chosen.then_some(array)).collect())
}

/// Whether the array `name` is in `group`, or in a group within it. `group` may end with `/`.
pub fn is_in_group(name: &str, group: &str) -> bool {
    let group = group.strip_suffix('/').unwrap_or(group);
    name.strip_prefix(group).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::is_in_group;

    #[test]
    fn groups_end_at_a_slash() {
        assert!(is_in_group("a/b", "a") && is_in_group("a/b", "a/") && is_in_group("a/b/c", "a/b"));
        assert!(!is_in_group("ab", "a") && !is_in_group("a", "a") && !is_in_group("ab/c", "a"));
    }
}
