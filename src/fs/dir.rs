//! The folders of a mount: made of the arrays' names, and kept in step with them one change at a time.
//!
//! A folder exists as long as an array or a pending file is in it or below it, or until it is removed, if it was made or
//! emptied through the mount. A pending file hides what the store has under its name. Placing or taking away an array costs the depth of its
//! name, finding a name is a hash lookup or two per folder. The tree holds names and inode numbers, no arrays.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::names;
use super::{FileKind, Ino, SetAttr};

/// How many cut names of one hash a folder can show.
const MAX_PROBES: u64 = 16;

/// All folders.
#[derive(Debug)]
pub(super) struct Tree {
    directories: HashMap<Ino, Directory>,
    /// How many numbers of a path are used up, by the first of them. A folder that is made anew is another one: a kernel
    /// that meets the number of a removed folder takes it for that, and lets nothing be made in it.
    n_used_up: HashMap<Ino, u64>,
}

/// A folder.
#[derive(Debug)]
pub(super) struct Directory {
    /// The folder that this one is in; the root is in itself.
    pub(super) parent: Ino,
    /// What the names of the arrays in it start with: nothing, or ending in a slash.
    pub(super) prefix: Arc<str>,
    /// When an array or folder was last added, taken away or replaced here, or what was set since.
    pub(super) mtime: SystemTime,
    /// What was set here, and is not as of the store's folder.
    pub(super) own: OwnAttr,
    pub(super) n_subdirectories: u32,
    /// Its own name in `parent`.
    name: Arc<str>,
    /// What the store has here.
    children: HashMap<Arc<str>, Child>,
    /// The pending files here.
    pending: HashMap<Arc<str>, Child>,
    /// Whether it stays when it is empty, until it is removed: programs remove a folder after what is in it.
    kept: bool,
    /// The first of the numbers that a folder of the path has that it was made under.
    first_ino: Ino,
}

/// Attributes that a folder has been given.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OwnAttr {
    pub(super) perm: Option<u16>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) atime: Option<SystemTime>,
    /// When any of them was set.
    pub(super) ctime: Option<SystemTime>,
}

impl Directory {
    fn new(parent: Ino, prefix: &str, name: Arc<str>, now: SystemTime) -> Self {
        Self {
            parent,
            prefix: prefix.into(),
            mtime: now,
            own: OwnAttr::default(),
            n_subdirectories: 0,
            name,
            children: HashMap::new(),
            pending: HashMap::new(),
            kept: false,
            first_ino: Ino::of_directory(prefix, 0),
        }
    }

    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.pending.is_empty()
    }
}

/// What a name in a folder leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Child {
    /// An array.
    File { array: Arc<str>, ino: Ino },
    /// A folder.
    Directory(Ino),
    /// A file that is no array, or not yet.
    Pending(Ino),
}

impl Child {
    pub(super) fn ino(&self) -> Ino {
        match self {
            Self::File { ino, .. } | Self::Directory(ino) | Self::Pending(ino) => *ino,
        }
    }

    pub(super) fn kind(&self) -> FileKind {
        match self {
            Self::File { .. } | Self::Pending(_) => FileKind::File,
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
        let root = Directory::new(Ino::ROOT, "", "".into(), now);
        Self { directories: HashMap::from([(Ino::ROOT, root)]), n_used_up: HashMap::new() }
    }

    pub(super) fn directory(&self, ino: Ino) -> Option<&Directory> {
        self.directories.get(&ino)
    }

    /// What `name` in a folder leads to.
    pub(super) fn child(&self, parent: Ino, name: &str) -> Option<&Child> {
        let directory = self.directories.get(&parent)?;
        directory.pending.get(name).or_else(|| directory.children.get(name))
    }

    /// The names in a folder, in no order.
    pub(super) fn children(&self, ino: Ino) -> Option<impl Iterator<Item = (&Arc<str>, &Child)>> {
        let directory = self.directories.get(&ino)?;
        let shown = directory.children.iter().filter(|(name, _)| !directory.pending.contains_key(*name));
        Some(directory.pending.iter().chain(shown))
    }

    /// What the store has in a folder, be it shown or hidden by pending files, in no order.
    pub(super) fn stored(&self, ino: Ino) -> Option<impl Iterator<Item = (&Arc<str>, &Child)>> {
        Some(self.directories.get(&ino)?.children.iter())
    }

    /// The path under which an array is shown; `None` if it is not.
    pub(super) fn path_of(&self, array: &str) -> Option<String> {
        let (mut ino, name) = self.find(array)?;
        let mut parts = vec![name];
        while ino != Ino::ROOT {
            let directory = self.directories.get(&ino)?;
            parts.push(Arc::clone(&directory.name));
            ino = directory.parent;
        }
        parts.reverse();
        Some(parts.join("/"))
    }

    /// The array that the store has under a name, be it shown or hidden by a pending file.
    pub(super) fn array_at(&self, parent: Ino, name: &str) -> Option<(&Arc<str>, Ino)> {
        match self.directories.get(&parent)?.children.get(name)? {
            Child::File { array, ino } => Some((array, *ino)),
            Child::Directory(_) | Child::Pending(_) => None,
        }
    }

    /// The folder and name under which an array is shown, or would be, were it there and not hidden.
    pub(super) fn place_for(&self, array: &str) -> Option<(Ino, Arc<str>)> {
        let (parent, component) = self.folder_of(array)?;
        let name = match self.find_file(parent, component, array) {
            Ok(name) => name,
            Err(free) => free?.into(),
        };
        Some((parent, name))
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
        let Some((parent, name)) = self.find(array) else { return places };
        let Some(directory) = self.directories.get_mut(&parent) else { return places };
        let Some(child) = directory.children.remove(&name) else { return places };
        directory.mtime = now;
        places.push(Place { parent, name, before: Some(child.ino()) });
        self.take_empty(parent, now, &mut places);
        places
    }

    /// Takes a folder away if nothing is in it and it is not kept, and then those that it is in.
    fn take_empty(&mut self, ino: Ino, now: SystemTime, places: &mut Vec<Place>) {
        let mut ino = ino;
        while let Some(directory) = self.directories.get(&ino)
            && directory.is_empty()
            && !directory.kept
            && ino != Ino::ROOT
        {
            let (parent, name) = (directory.parent, Arc::clone(&directory.name));
            let n_used_up = self.n_used_up.entry(directory.first_ino).or_default();
            *n_used_up = (*n_used_up).max(ino.0.wrapping_sub(directory.first_ino.0).wrapping_add(1));
            self.directories.remove(&ino);
            if let Some(above) = self.directories.get_mut(&parent) {
                above.children.remove(&name);
                above.n_subdirectories = above.n_subdirectories.saturating_sub(1);
                above.mtime = now;
            }
            places.push(Place { parent, name, before: Some(ino) });
            ino = parent;
        }
    }

    /// Makes a folder under a name that is free; `None` if its parent is gone.
    pub(super) fn make_directory(&mut self, parent: Ino, component: &str, now: SystemTime) -> Option<Ino> {
        let prefix = format!("{}{component}/", self.directories.get(&parent)?.prefix);
        let ino = self.subdirectory(parent, component, &prefix, now)?;
        self.keep(ino);
        Some(ino)
    }

    /// Lets a folder stay when it is empty.
    pub(super) fn keep(&mut self, ino: Ino) {
        if let Some(directory) = self.directories.get_mut(&ino) {
            directory.kept = true;
        }
    }

    /// Removes a folder. Returns its place, or `None` if something is in it. The folder that it is in is kept.
    pub(super) fn remove_directory(&mut self, ino: Ino, now: SystemTime) -> Option<Vec<Place>> {
        let directory = self.directories.get_mut(&ino)?;
        if !directory.is_empty() {
            return None;
        }
        directory.kept = false;
        let parent = directory.parent;
        self.keep(parent);
        let mut places = Vec::new();
        self.take_empty(ino, now, &mut places);
        Some(places)
    }

    /// All folders below one, itself first.
    pub(super) fn subtree(&self, ino: Ino) -> Vec<Ino> {
        let mut found = vec![ino];
        let mut n_done = 0;
        while let Some(next) = found.get(n_done).copied() {
            n_done += 1;
            let children = self.directories.get(&next).into_iter().flat_map(|next| next.children.values());
            found.extend(children.filter(|child| child.kind() == FileKind::Directory).map(Child::ino));
        }
        found
    }

    /// The arrays in a folder itself.
    pub(super) fn arrays_in(&self, ino: Ino) -> impl Iterator<Item = &Arc<str>> {
        let children =
            self.directories.get(&ino).into_iter().flat_map(|directory| directory.children.values());
        children.filter_map(|child| match child {
            Child::File { array, .. } => Some(array),
            Child::Directory(_) | Child::Pending(_) => None,
        })
    }

    /// Whether nothing is in a folder.
    pub(super) fn is_empty(&self, ino: Ino) -> bool {
        self.directories.get(&ino).is_none_or(Directory::is_empty)
    }

    /// Gives a folder another name, that of `component`, in another folder, where nothing has it. What is in it goes
    /// with it: arrays have the names that follow. All inodes stay the same, and both folders that it is in are kept.
    pub(super) fn move_directory(&mut self, ino: Ino, new_parent: Ino, component: &str, now: SystemTime) {
        let Some(above) = self.directories.get(&new_parent) else { return };
        let new_prefix = format!("{}{component}/", above.prefix);
        let new_name: Arc<str> = names::encode(component, FileKind::Directory, 0).into();
        let Some(directory) = self.directories.get_mut(&ino) else { return };
        let old_parent = std::mem::replace(&mut directory.parent, new_parent);
        let old_name = std::mem::replace(&mut directory.name, Arc::clone(&new_name));
        let old_prefix = Arc::clone(&directory.prefix);
        directory.kept = true;
        if let Some(above) = self.directories.get_mut(&old_parent) {
            above.children.remove(&old_name);
            above.n_subdirectories = above.n_subdirectories.saturating_sub(1);
            above.mtime = now;
            above.kept = true;
        }
        if let Some(above) = self.directories.get_mut(&new_parent) {
            above.children.insert(new_name, Child::Directory(ino));
            above.n_subdirectories = above.n_subdirectories.saturating_add(1);
            above.mtime = now;
        }
        let moved =
            |name: &str| format!("{new_prefix}{}", name.strip_prefix(&*old_prefix).unwrap_or_default());
        for ino in self.subtree(ino) {
            let Some(directory) = self.directories.get_mut(&ino) else { continue };
            directory.prefix = moved(&directory.prefix).into();
            for child in directory.children.values_mut() {
                if let Child::File { array, .. } = child {
                    *array = moved(array).into();
                }
            }
        }
    }

    /// What was set of folders, for each where anything was.
    pub(super) fn own_attrs(&self) -> impl Iterator<Item = OwnAttr> {
        let all = self.directories.values().map(|directory| directory.own);
        all.filter(|own| own.perm.is_some() || own.uid.is_some() || own.gid.is_some())
    }

    /// Sets the owner, the permissions and the times that a folder shows, as far as they are given.
    pub(super) fn set_attr(&mut self, ino: Ino, set: SetAttr, now: SystemTime) {
        if let Some(directory) = self.directories.get_mut(&ino) {
            directory.mtime = set.mtime.unwrap_or(directory.mtime);
            let own = &mut directory.own;
            *own = OwnAttr {
                perm: set.perm.or(own.perm),
                uid: set.uid.or(own.uid),
                gid: set.gid.or(own.gid),
                atime: set.atime.or(own.atime),
                ctime: Some(now),
            };
        }
    }

    /// Lets a name lead to a pending file. Returns the one that it led to before; `Err` if the folder is gone.
    pub(super) fn add_pending(
        &mut self,
        parent: Ino,
        name: &Arc<str>,
        ino: Ino,
        now: SystemTime,
    ) -> Result<Option<Ino>, ()> {
        let directory = self.directories.get_mut(&parent).ok_or(())?;
        let before = directory.pending.insert(Arc::clone(name), Child::Pending(ino));
        directory.mtime = now;
        Ok(before.map(|child| child.ino()))
    }

    /// Takes a name away from the pending file `ino`, and the folders that are empty then. Returns those folders'
    /// places, or `None` if the name led elsewhere.
    pub(super) fn remove_pending(
        &mut self,
        parent: Ino,
        name: &str,
        ino: Ino,
        now: SystemTime,
    ) -> Option<Vec<Place>> {
        let directory = self.directories.get_mut(&parent)?;
        if directory.pending.get(name)?.ino() != ino {
            return None;
        }
        directory.pending.remove(name);
        directory.mtime = now;
        let mut places = Vec::new();
        self.take_empty(parent, now, &mut places);
        Some(places)
    }

    /// The inode that an array's name leads to.
    pub(super) fn ino_of_array(&self, array: &str) -> Option<Ino> {
        let (parent, name) = self.find(array)?;
        self.directories.get(&parent)?.children.get(&name).map(Child::ino)
    }

    /// The folder and name of an array that has a place.
    fn find(&self, array: &str) -> Option<(Ino, Arc<str>)> {
        let (parent, component) = self.folder_of(array)?;
        Some((parent, self.find_file(parent, component, array).ok()?))
    }

    /// The folder that an array belongs into, if it is there, and the last component of its name.
    fn folder_of<'a>(&self, array: &'a str) -> Option<(Ino, &'a str)> {
        let mut parent = Ino::ROOT;
        let mut start = 0;
        while let Some(len) = array[start..].find('/') {
            let end = start + len + 1;
            parent = self.find_directory(parent, &array[start..end - 1], &array[..end]).ok()?;
            start = end;
        }
        Some((parent, &array[start..]))
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
        let n_used_up = self.n_used_up.get(&Ino::of_directory(prefix, 0)).copied().unwrap_or_default();
        let ino = (n_used_up..)
            .map(|probe| Ino::of_directory(prefix, probe))
            .find(|ino| !self.directories.contains_key(ino))?;
        self.directories.insert(ino, Directory::new(parent, prefix, Arc::clone(&name), now));
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
                Child::File { .. } | Child::Pending(_) => assert!(out.insert(format!("{prefix}{name}"))),
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
        assert_eq!(tree.path_of("g/a").unwrap(), "g/a.npy");
        assert_eq!(tree.path_of("g/b"), None);
        assert_eq!(tree.ino_of_array("g/a/b"), None);
    }

    #[test]
    fn pending_files_hide_arrays_and_keep_folders() {
        let mut tree = Tree::new(NOW);
        place(&mut tree, "g/a", 3);
        let g = tree.place_for("g/a").unwrap().0;
        let name: Arc<str> = "a.npy".into();
        assert_eq!(tree.add_pending(g, &name, Ino(9), NOW), Ok(None));
        assert_eq!(tree.child(g, &name), Some(&Child::Pending(Ino(9))));
        assert_eq!(tree.children(g).unwrap().count(), 1);
        assert_eq!(tree.array_at(g, &name).unwrap().1, Ino(3));
        assert_eq!(place(&mut tree, "g/a", 4).before, Some(Ino(3)));
        assert_eq!(tree.take("g/a", NOW).len(), 1);
        assert_eq!(tree.add_pending(g, &name, Ino(10), NOW), Ok(Some(Ino(9))));
        assert_eq!(tree.remove_pending(g, &name, Ino(9), NOW), None);
        assert_eq!(tree.remove_pending(g, &name, Ino(10), NOW).unwrap().len(), 1);
        assert!(all(&tree).is_empty());
        assert_eq!(tree.add_pending(g, &name, Ino(9), NOW), Err(()));
    }

    #[test]
    fn folders_that_were_made_stay_until_they_are_removed() {
        let mut tree = Tree::new(NOW);
        let g = tree.make_directory(Ino::ROOT, "g", NOW).unwrap();
        place(&mut tree, "g/h/a", 3);
        assert_eq!(tree.directory(Ino::ROOT).unwrap().n_subdirectories, 1);
        assert_eq!(tree.remove_directory(g, NOW), None);
        assert_eq!(tree.take("g/h/a", NOW).len(), 2);
        assert_eq!(all(&tree), ["g/"]);
        assert_eq!(tree.remove_directory(g, NOW).unwrap().len(), 1);
        assert!(all(&tree).is_empty());
        // One that is implied is kept when what was made in it is removed.
        place(&mut tree, "g/a", 3);
        let g = tree.place_for("g/a").unwrap().0;
        let h = tree.make_directory(g, "h", NOW).unwrap();
        tree.take("g/a", NOW);
        assert_eq!(all(&tree), ["g/", "g/h/"]);
        assert_eq!(tree.remove_directory(h, NOW).unwrap().len(), 1);
        assert_eq!(tree.remove_directory(g, NOW).unwrap().len(), 1);
        assert!(all(&tree).is_empty());
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
