//! Extended attributes: what describes an array, and its user attributes as JSON.
//!
//! Those that describe are found by name only and are not listed, so that programs which copy all that is listed do not
//! try to set on another array what follows from its bytes.

use std::ffi::OsStr;
use std::fmt::Write as _;

use log::warn;
use rmpv::Value;

use super::{Fs, FsError, Ino};
use crate::store::{Array, Attrs};

/// Before the name of each attribute that a mount has.
const PREFIX: &str = "user.npk.";
/// Before the name of a user attribute.
const USER_PREFIX: &str = "user.npk.attrs.";
/// What the kernel takes for a name, for a value, and for all names of an inode.
const MAX_NAME_LEN: usize = 255;
const MAX_VALUE_LEN: usize = 65536;
const MAX_LIST_LEN: usize = 65536;

/// How `setxattr` is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetMode {
    /// Whether there is such an attribute or not.
    Any,
    /// A new one.
    Create,
    /// One that exists.
    Replace,
}

/// What becomes of the attributes of the array that a pending file becomes.
#[derive(Debug, Default)]
pub(super) struct AttrChanges {
    set: Attrs,
    remove: Vec<String>,
}

impl AttrChanges {
    /// Those by which the file of an array takes its attributes along.
    pub(super) fn of(attrs: &Attrs) -> Self {
        Self { set: attrs.clone(), remove: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }

    fn set(&mut self, name: &str, value: Value) {
        self.remove.retain(|removed| removed != name);
        self.set.insert(name.to_owned(), value);
    }

    fn remove(&mut self, name: &str) {
        self.set.remove(name);
        self.remove.push(name.to_owned());
    }

    pub(super) fn apply(&self, attrs: &mut Attrs) {
        for name in &self.remove {
            attrs.remove(name);
        }
        attrs.extend(self.set.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
}

/// Whose attributes an inode shows.
enum Owner {
    Store,
    Folder,
    Array(Array),
    /// The changes are the file's, which is no array yet.
    Pending(Attrs),
}

impl Fs {
    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`; `Unsupported` for names outside of `user.npk.`; `Stale`.
    pub fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>, FsError> {
        let name = known(name)?;
        let _ = self.sync();
        let owner = self.attr_owner(ino)?;
        let value = match (name.strip_prefix(USER_PREFIX), &owner) {
            (Some(attr), owner) => self.attrs_of(owner).get(attr).and_then(to_json),
            (None, Owner::Array(array)) => described(array, name),
            (None, _) => None,
        };
        value.map(String::into_bytes).ok_or(FsError::NoAttribute)
    }

    /// The names of the user attributes, each with a NUL behind it.
    ///
    /// # Errors
    /// `Stale`.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let _ = self.sync();
        Ok(listed(&self.attrs_of(&self.attr_owner(ino)?)))
    }

    /// Sets a user attribute, in one commit: to the JSON value, or, if it is none, to the text. May wait for other writers.
    ///
    /// # Errors
    /// `ReadOnly`; `NotPermitted` for attributes that describe, and for folders in the store; `Exists` and `NoAttribute` as
    /// `mode` asks for; `Unsupported` for other names; `Invalid` for what is no text; `AttributeTooLong`;
    /// `TooManyAttributes`; `Stale`; `Store`.
    pub fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: SetMode) -> Result<(), FsError> {
        let (attr, owner) = self.changeable(ino, name)?;
        let mut attrs = self.attrs_of(&owner);
        let exists = attrs.contains_key(attr);
        match mode {
            SetMode::Create if exists => return Err(FsError::Exists),
            SetMode::Replace if !exists => return Err(FsError::NoAttribute),
            _ => {}
        }
        let text =
            str::from_utf8(value).map_err(|_| FsError::Invalid { what: "attributes that are no text" })?;
        let value = from_json(text);
        // Whatever is set can be read and listed.
        if to_json(&value).is_none() {
            return Err(FsError::AttributeTooLong);
        }
        if !exists {
            attrs.insert(attr.to_owned(), value.clone());
            if listed(&attrs).len() > MAX_LIST_LEN {
                return Err(FsError::TooManyAttributes);
            }
        }
        if matches!(owner, Owner::Pending(_)) {
            self.change_pending(ino, |changes| changes.set(attr, value))
        } else {
            self.change_attrs(&owner, Attrs::from([(attr.to_owned(), value)]), &[])
        }
    }

    /// Removes a user attribute, in one commit. May wait for other writers.
    ///
    /// # Errors
    /// As [`Fs::setxattr`], and `NoAttribute`.
    pub fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<(), FsError> {
        let (attr, owner) = self.changeable(ino, name)?;
        if !self.attrs_of(&owner).contains_key(attr) {
            return Err(FsError::NoAttribute);
        }
        if matches!(owner, Owner::Pending(_)) {
            self.change_pending(ino, |changes| changes.remove(attr))
        } else {
            self.change_attrs(&owner, Attrs::new(), &[attr])
        }
    }

    fn changeable<'a>(&self, ino: Ino, name: &'a OsStr) -> Result<(&'a str, Owner), FsError> {
        let name = known(name)?;
        if self.read_only || ino.is_view() || ino.viewed().is_some() {
            return Err(FsError::ReadOnly);
        }
        let attr = name.strip_prefix(USER_PREFIX).filter(|attr| !attr.is_empty());
        let attr =
            attr.ok_or(FsError::NotPermitted { what: "changing attributes that describe an array" })?;
        self.sync()?;
        match self.attr_owner(ino)? {
            Owner::Folder => Err(FsError::NotPermitted { what: "attributes of folders in a store" }),
            owner => Ok((attr, owner)),
        }
    }

    fn change_attrs(&self, owner: &Owner, set: Attrs, remove: &[&str]) -> Result<(), FsError> {
        let name = match owner {
            Owner::Array(array) => Some(&**array.name()),
            _ => None,
        };
        Ok(self.store.set_attrs(name, set, remove)?)
    }

    fn change_pending(&self, ino: Ino, change: impl FnOnce(&mut AttrChanges)) -> Result<(), FsError> {
        let file = self.pending.get(ino).ok_or(FsError::Stale { ino })?;
        file.with_attr_changes(change);
        Ok(())
    }

    /// Gives an array the attributes that were set before it was one. What fails is logged.
    pub(super) fn set_pending_attrs(&self, name: &str, changes: AttrChanges) {
        if changes.is_empty() {
            return;
        }
        let remove: Vec<&str> = changes.remove.iter().map(String::as_str).collect();
        if let Err(error) = self.store.set_attrs(Some(name), changes.set, &remove) {
            warn!("array {name:?}: the attributes that were set on its file are lost: {error}");
        }
    }

    fn attr_owner(&self, ino: Ino) -> Result<Owner, FsError> {
        if ino == Ino::ROOT {
            return Ok(Owner::Store);
        }
        if ino.is_directory() {
            return self.directory_attr(ino).map(|_| Owner::Folder);
        }
        if ino.is_pending() {
            let file = self.pending.get(ino).ok_or(FsError::Stale { ino })?;
            let (array, name) = file.attr_source();
            if let Some(array) = array {
                return Ok(Owner::Array(self.latest(array)));
            }
            let mut attrs = Attrs::new();
            if let Some(old) = name.and_then(|name| self.store.record(&name).ok()) {
                attrs.clone_from(old.attrs());
            }
            file.with_attr_changes(|changes| changes.apply(&mut attrs));
            return Ok(Owner::Pending(attrs));
        }
        if ino.is_view() {
            return Ok(self.viewed_array(ino)?.map_or(Owner::Folder, Owner::Array));
        }
        let inode = self.inodes.get(ino).ok_or(FsError::Stale { ino })?;
        Ok(Owner::Array(self.latest(inode.array().0)))
    }

    /// The array as its record is now, if the name still leads to this version.
    fn latest(&self, array: Array) -> Array {
        match self.store.record(array.name()) {
            Ok(now) if now.id() == array.id() => now,
            _ => array,
        }
    }

    fn attrs_of(&self, owner: &Owner) -> Attrs {
        match owner {
            Owner::Store => self.store.attrs(),
            Owner::Folder => Attrs::new(),
            Owner::Array(array) => array.attrs().clone(),
            Owner::Pending(attrs) => attrs.clone(),
        }
    }
}

/// The names of the attributes that are shown, each with a NUL behind it.
fn listed(attrs: &Attrs) -> Vec<u8> {
    let mut names = Vec::new();
    for (name, value) in attrs {
        let is_showable = USER_PREFIX.len() + name.len() <= MAX_NAME_LEN && !name.contains('\0');
        if is_showable && !name.is_empty() && to_json(value).is_some() {
            names.extend_from_slice(USER_PREFIX.as_bytes());
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
    }
    names
}

/// A name that a mount may have.
fn known(name: &OsStr) -> Result<&str, FsError> {
    // Of the others, the kernel asks for `security.capability` before each first write.
    let name = name.to_str().filter(|name| name.starts_with(PREFIX));
    name.ok_or(FsError::Unsupported { what: "attributes other than user.npk.*" })
}

/// What describes an array, as text.
fn described(array: &Array, name: &str) -> Option<String> {
    match name.strip_prefix(PREFIX)? {
        "codec" => {
            Some(array.codec().map_or_else(|| "none".to_owned(), |codec| format!("zstd:{}", codec.level)))
        }
        "ratio" => {
            let stored = array.stored_len();
            let ratio = if stored == 0 { 1.0 } else { array.raw_len() as f64 / stored as f64 };
            Some(format!("{ratio:.2}"))
        }
        "dtype" => Some(array.dtype().to_string()),
        "shape" => {
            let mut text = String::from("[");
            for (i, len) in array.shape().iter().enumerate() {
                let comma = if i == 0 { "" } else { ", " };
                let _ = write!(text, "{comma}{len}");
            }
            Some(text + "]")
        }
        _ => None,
    }
}

/// A value as JSON; `None` where JSON has none like it, or it is too long for the kernel.
fn to_json(value: &Value) -> Option<String> {
    let text = json_value(value)?.to_string();
    (text.len() <= MAX_VALUE_LEN).then_some(text)
}

fn json_value(value: &Value) -> Option<serde_json::Value> {
    Some(match value {
        Value::Nil => serde_json::Value::Null,
        Value::Boolean(value) => (*value).into(),
        Value::Integer(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => return None,
        },
        Value::F32(number) => serde_json::Number::from_f64(f64::from(*number))?.into(),
        Value::F64(number) => serde_json::Number::from_f64(*number)?.into(),
        Value::String(text) => text.as_str()?.into(),
        Value::Array(items) => items.iter().map(json_value).collect::<Option<Vec<_>>>()?.into(),
        Value::Map(entries) => {
            let entry = |(key, value): &(Value, Value)| Some((key.as_str()?.to_owned(), json_value(value)?));
            entries.iter().map(entry).collect::<Option<serde_json::Map<_, _>>>()?.into()
        }
        Value::Binary(_) | Value::Ext(..) => return None,
    })
}

/// The value of JSON text; other text stands for itself.
fn from_json(text: &str) -> Value {
    serde_json::from_str(text).map_or_else(|_| Value::from(text), |value| msgpack_value(&value))
}

fn msgpack_value(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or_default()),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => Value::Array(items.iter().map(msgpack_value).collect()),
        serde_json::Value::Object(entries) => Value::Map(
            entries.iter().map(|(key, value)| (Value::from(key.as_str()), msgpack_value(value))).collect(),
        ),
    }
}
