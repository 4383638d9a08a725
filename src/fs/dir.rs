//! The folders of a mount: made of the arrays' names, and kept in step with them one change at a time.
//!
//! A folder exists as long as an array is in it or below it. Placing or taking away an array costs the depth of its
//! name, finding a name is one hash lookup per folder. The tree holds names and inode numbers, no arrays.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::names;
use super::{FileKind, Ino};

/// How many cut names of one hash a folder can show.
const MAX_PROBES: u64 = 16;

/// All folders.
#[derive(Debug)]
pub(super) struct Tree {
    directories: HashMap<Ino, Directory>,
}

/// A folder.
#[derive(Debug)]
pub(super) struct Directory {
    /// The folder that this one is in; the root is in itself.
    pub(super) parent: Ino,
    /// What the names of the arrays in it start with: nothing, or ending in a slash.
    pub(super) prefix: Arc<str>,
    /// When an array or folder was last added, taken away or replaced here.
    pub(super) mtime: SystemTime,
    pub(super) n_subdirectories: u32,
    /// Its own name in `parent`.
    name: Arc<str>,
    children: HashMap<Arc<str>, Child>,
}

/// What a name in a folder leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Child {
    /// An array.
    File { array: Arc<str>, ino: Ino },
    /// A folder.
    Directory(Ino),
}

impl Child {
    pub(super) fn ino(&self) -> Ino {
        match self {
            Self::File { ino, .. } | Self::Directory(ino) => *ino,
        }
    }

    pub(super) fn kind(&self) -> FileKind {
        match self {
            Self::File { .. } => FileKind::File,
            Self::Directory(_) => FileKind::Directory,
        }
    }
}

/// A name that an array was given, or that was taken from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) parent: Ino,
    pub(super) name: Arc<str>,
    /// The inode that the name led to before.
    pub(super) before: Option<Ino>,
}

impl Tree {
    /// A tree of an empty root.
    pub(super) fn new(now: SystemTime) -> Self {
        let root = Directory {
            parent: Ino::ROOT,
            prefix: "".into(),
            mtime: now,
            n_subdirectories: 0,
            name: "".into(),
            children: HashMap::new(),
        };
        Self { directories: HashMap::from([(Ino::ROOT, root)]) }
    }

    pub(super) fn directory(&self, ino: Ino) -> Option<&Directory> {
        self.directories.get(&ino)
    }

    /// What `name` in a folder leads to.
    pub(super) fn child(&self, parent: Ino, name: &str) -> Option<&Child> {
        self.directories.get(&parent)?.children.get(name)
    }

    /// The names in a folder, in no order.
    pub(super) fn children(&self, ino: Ino) -> Option<impl ExactSizeIterator<Item = (&Arc<str>, &Child)>> {
        Some(self.directories.get(&ino)?.children.iter())
    }

    /// Lets the name of `array` lead to `ino`, making the folders on the way.
    ///
    /// `None` if over [`MAX_PROBES`] long names of one folder have one hash, as only made-up ones do: the array is
    /// not shown then.
    pub(super) fn place(&mut self, array: &Arc<str>, ino: Ino, now: SystemTime) -> Option<Place> {
        let mut parent = Ino::ROOT;
        let mut start = 0;
        while let Some(len) = array[start..].find('/') {
            let end = start + len + 1;
            parent = self.subdirectory(parent, &array[start..end - 1], &array[..end], now)?;
            start = end;
        }
        let name = match self.find_file(parent, &array[start..], array) {
            Ok(name) => name,
            Err(free) => free?.into(),
        };
        let directory = self.directories.get_mut(&parent)?;
        let child = Child::File { array: Arc::clone(array), ino };
        let before = directory.children.insert(Arc::clone(&name), child).map(|child| child.ino());
        if before != Some(ino) {
            directory.mtime = now;
        }
        Some(Place { parent, name, before })
    }

    /// Takes an array's name away, and the folders that are empty then. The array's own place comes first.
    pub(super) fn take(&mut self, array: &str, now: SystemTime) -> Vec<Place> {
        let mut places = Vec::new();
        let Some((mut parent, mut name)) = self.find(array) else { return places };
        loop {
            let Some(directory) = self.directories.get_mut(&parent) else { return places };
            let Some(child) = directory.children.remove(&name) else { return places };
            directory.mtime = now;
            if child.kind() == FileKind::Directory {
                directory.n_subdirectories = directory.n_subdirectories.saturating_sub(1);
                self.directories.remove(&child.ino());
            }
            places.push(Place { parent, name, before: Some(child.ino()) });
            match self.directories.get(&parent) {
                Some(directory) if directory.children.is_empty() && parent != Ino::ROOT => {
                    (parent, name) = (directory.parent, Arc::clone(&directory.name));
                }
                _ => return places,
            }
        }
    }

    /// The inode that an array's name leads to.
    pub(super) fn ino_of_array(&self, array: &str) -> Option<Ino> {
        let (parent, name) = self.find(array)?;
        self.child(parent, &name).map(Child::ino)
    }

    /// The folder and name of an array that has a place.
    fn find(&self, array: &str) -> Option<(Ino, Arc<str>)> {
        let mut parent = Ino::ROOT;
        let mut start = 0;
        while let Some(len) = array[start..].find('/') {
            let end = start + len + 1;
            parent = self.find_directory(parent, &array[start..end - 1], &array[..end]).ok()?;
            start = end;
        }
        Some((parent, self.find_file(parent, &array[start..], array).ok()?))
    }

    /// The name that `array` has in a folder, or else one that it can have.
    fn find_file(&self, parent: Ino, component: &str, array: &str) -> Result<Arc<str>, Option<String>> {
        self.probe(parent, component, FileKind::File, |name, child| match child {
            Child::File { array: found, .. } if &**found == array => Some(Arc::clone(name)),
            _ => None,
        })
    }

    /// The folder that shows the arrays whose names start with `prefix`, or else a name that it can have.
    fn find_directory(&self, parent: Ino, component: &str, prefix: &str) -> Result<Ino, Option<String>> {
        self.probe(parent, component, FileKind::Directory, |_, child| match child {
            Child::Directory(ino) if &*self.directories.get(ino)?.prefix == prefix => Some(*ino),
            _ => None,
        })
    }

    /// Goes through the names that a component can have in a folder, for the first child that is `wanted`.
    fn probe<T>(
        &self,
        parent: Ino,
        component: &str,
        kind: FileKind,
        wanted: impl Fn(&Arc<str>, &Child) -> Option<T>,
    ) -> Result<T, Option<String>> {
        let Some(directory) = self.directories.get(&parent) else { return Err(None) };
        let mut free = None;
        for probe in 0..MAX_PROBES {
            let name = names::encode(component, kind, probe);
            match directory.children.get_key_value(&*name) {
                Some((name, child)) => {
                    if let Some(found) = wanted(name, child) {
                        return Ok(found);
                    }
                }
                None => {
                    let is_cut = names::is_cut(&name, kind);
                    free.get_or_insert(name);
                    // Of a name that is not cut there is one form. A cut one may stand after a gap.
                    if !is_cut {
                        break;
                    }
                }
            }
        }
        Err(free)
    }

    /// The folder of a component, made if it is not there.
    fn subdirectory(&mut self, parent: Ino, component: &str, prefix: &str, now: SystemTime) -> Option<Ino> {
        let name: Arc<str> = match self.find_directory(parent, component, prefix) {
            Ok(ino) => return Some(ino),
            Err(free) => free?.into(),
        };
        let ino = (0..)
            .map(|probe| Ino::of_directory(prefix, probe))
            .find(|ino| !self.directories.contains_key(ino))?;
        let directory = Directory {
            parent,
            prefix: prefix.into(),
            mtime: now,
            n_subdirectories: 0,
            name: Arc::clone(&name),
            children: HashMap::new(),
        };
        self.directories.insert(ino, directory);
        let parent = self.directories.get_mut(&parent)?;
        parent.children.insert(name, Child::Directory(ino));
        parent.n_subdirectories = parent.n_subdirectories.saturating_add(1);
        parent.mtime = now;
        Some(ino)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn place(tree: &mut Tree, array: &str, ino: u64) -> Place {
        tree.place(&array.into(), Ino(ino), NOW).unwrap()
    }

    /// Every path in the tree, folders with a trailing slash.
    fn paths(tree: &Tree, ino: Ino, prefix: &str, out: &mut BTreeSet<String>) {
        for (name, child) in tree.children(ino).unwrap() {
            match child {
                Child::File { .. } => assert!(out.insert(format!("{prefix}{name}"))),
                Child::Directory(ino) => {
                    assert!(out.insert(format!("{prefix}{name}/")));
                    paths(tree, *ino, &format!("{prefix}{name}/"), out);
                }
            }
        }
    }

    fn all(tree: &Tree) -> Vec<String> {
        let mut out = BTreeSet::new();
        paths(tree, Ino::ROOT, "", &mut out);
        out.into_iter().collect()
    }

    #[test]
    fn slashes_make_folders_and_the_last_array_takes_them_away() {
        let mut tree = Tree::new(NOW);
        place(&mut tree, "a", 2);
        place(&mut tree, "g/a", 3);
        place(&mut tree, "g/h/a", 4);
        assert_eq!(all(&tree), ["a.npy", "g/", "g/a.npy", "g/h/", "g/h/a.npy"]);
        assert_eq!(tree.directory(Ino::ROOT).unwrap().n_subdirectories, 1);

        let places = tree.take("g/h/a", NOW);
        assert_eq!(places.iter().map(|place| &*place.name).collect::<Vec<_>>(), ["a.npy", "h"]);
        assert_eq!(tree.take("g/a", NOW).len(), 2);
        assert_eq!(all(&tree), ["a.npy"]);
        assert_eq!(tree.directories.len(), 1);
        assert_eq!(tree.directory(Ino::ROOT).unwrap().n_subdirectories, 0);
        assert!(tree.take("g/a", NOW).is_empty());
    }

    #[test]
    fn placing_again_tells_the_inode_before() {
        let mut tree = Tree::new(NOW);
        assert_eq!(place(&mut tree, "g/a", 3).before, None);
        assert_eq!(place(&mut tree, "g/a", 7).before, Some(Ino(3)));
        assert_eq!(tree.ino_of_array("g/a"), Some(Ino(7)));
        assert_eq!(tree.ino_of_array("g"), None);
        assert_eq!(tree.ino_of_array("g/a/b"), None);
    }

    #[test]
    fn odd_names_each_have_a_place_of_their_own() {
        let long = "x".repeat(300);
        let odd =
            ["", "/", "//", "a//b", "a/", "/a", ".", "..", "../a", "./a", "x.npy/a", "x", "x.npy", &long]
                .map(str::to_owned);
        let names =
            [&odd[..], &[format!("{long}/a"), format!("{long}y/a"), format!("{long}/b"), format!("{long}y")]]
                .concat();
        let mut tree = Tree::new(NOW);
        for (ino, name) in (2..).zip(&names) {
            assert_eq!(place(&mut tree, name, ino).before, None, "{name}");
        }
        for (ino, name) in (2..).zip(&names) {
            assert_eq!(tree.ino_of_array(name), Some(Ino(ino)), "{name}");
        }
        for path in all(&tree) {
            assert!(
                path.trim_end_matches('/').split('/').all(|part| !["", ".", ".."].contains(&part)),
                "{path}"
            );
            assert!(path.split('/').all(|part| part.len() <= 255));
        }
        for name in &names {
            assert!(!tree.take(name, NOW).is_empty(), "{name}");
        }
        assert!(all(&tree).is_empty());
    }
}
