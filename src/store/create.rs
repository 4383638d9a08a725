//! Arrays that are made within the store: of zeros, and as copies of others.

use std::sync::Arc;

use super::Store;
use super::error::StoreError;
use super::stage::Stage;
use super::writer::Commit;
use crate::format::{Compression, Dtype, Layout, names, npy};

impl Store {
    /// Adds an array of zeros, in C order, that takes no space before something is written to it, as by
    /// [`Store::write_rows`].
    ///
    /// # Errors
    /// `Exists`; `Refused` for a name, shape or compression that cannot be; `ReadOnly`; `Locked`; `Io`.
    pub fn create_zeros(
        &self,
        name: &str,
        dtype: &Dtype,
        shape: &[u64],
        compression: Option<&Compression>,
    ) -> Result<(), StoreError> {
        self.shared.check_writable()?;
        names::check(name)?;
        self.refresh_quietly()?;
        self.shared.check_free(name, false)?;
        let layout = Layout::new(dtype, shape, false)?;
        let header = npy::encode(dtype, &layout)?;
        let staged = Stage::zeros(&self.shared, &name.into(), dtype, layout, header, compression)?;
        let _guard = self.shared.lock_writers()?;
        self.shared.check_free(name, false)?;
        self.shared.commit(Commit { staged: vec![staged], ..Commit::default() })
    }

    /// Adds a copy of an array, without its dropped rows, compressed and with attributes like it. What others write in
    /// place meanwhile may be in the copy or not.
    ///
    /// # Errors
    /// `NotFound`; `Exists`; `Refused`; `ReadOnly`; `Locked`; `Block`; `DataFile`; `Io`.
    pub fn copy_array(&self, source: &str, target: &str) -> Result<(), StoreError> {
        self.shared.check_writable()?;
        let array = self.array(source)?;
        names::check(target)?;
        self.shared.check_free(target, false)?;
        let compression = array.compression();
        let mut staged = self.shared.stage_copy(&array, &target.into(), compression.as_ref(), &mut |_| ())?;
        staged.attrs = Some(Arc::clone(&array.record().attrs));
        let _guard = self.shared.lock_writers()?;
        self.shared.check_free(target, false)?;
        self.shared.commit(Commit { staged: vec![staged], ..Commit::default() })
    }
}
