//! What changed in a compressed array: for those who keep its elements decoded. Found by comparing two indexes, which
//! costs as much as what changed, because pages that two states share have one pointer.

use std::ops::Range;
use std::sync::Arc;

use super::Array;
use super::blocks::View;
use super::data::DataFile;
use super::error::StoreError;
use crate::format::block_index::{self, Pointer};

/// One state of the blocks of a compressed array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlocksState {
    view: View,
    /// Bytes of the elements that the array had, of those that the view has.
    nbytes: u64,
}

impl Array {
    /// The state that the elements are in now, or an earlier one if somebody is changing them; `None` if the array is
    /// not compressed.
    ///
    /// # Errors
    /// `DataFile`; `Io`.
    pub fn blocks_state(&self) -> Result<Option<BlocksState>, StoreError> {
        let view = self.shared().newest_view(self.record(), self.data()?, false);
        Ok(view.map(|view| BlocksState { view, nbytes: self.record().layout.nbytes() }))
    }

    /// Where elements may differ between two states of this version: ranges of the stored elements, in bytes, in order,
    /// none beyond the later state's end. They begin and end with blocks, and contain what follows the last full block
    /// that both have, if that is not the same.
    ///
    /// # Errors
    /// `DataFile`; `Io`.
    pub fn changed_between(
        &self,
        earlier: &BlocksState,
        later: &BlocksState,
    ) -> Result<Vec<Range<u64>>, StoreError> {
        let (old, new) = (&earlier.view, &later.view);
        let block_len = new.block_len();
        let n_both = earlier.nbytes.min(later.nbytes) / block_len;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut add = |blocks: Range<u64>| {
            let bytes = blocks.start * block_len..blocks.end.saturating_mul(block_len).min(later.nbytes);
            match ranges.last_mut() {
                Some(last) if last.end == bytes.start => last.end = bytes.end,
                _ if bytes.start < bytes.end => ranges.push(bytes),
                _ => {}
            }
        };
        Changes { data: self.data()?, old, new, n_both }.in_trees(&mut add);
        // The record may be behind the view: then blocks that are full by now are not in `n_both`.
        let is_end_same = earlier.nbytes == later.nbytes
            && old.index.tail == new.index.tail
            && old.n_full() == n_both
            && new.n_full() == n_both;
        if !is_end_same {
            add(n_both..later.nbytes.div_ceil(block_len));
        }
        Ok(ranges)
    }
}

/// What differs in the blocks that two states have both. A page that cannot be read any more, as it may have been
/// overwritten when its state was the newest no longer, counts as changed.
struct Changes<'a> {
    data: &'a DataFile,
    old: &'a View,
    new: &'a View,
    /// Full blocks that both have.
    n_both: u64,
}

impl Changes<'_> {
    /// Compares the trees. The lower one is the first branch of the higher one.
    fn in_trees(&self, add: &mut impl FnMut(Range<u64>)) {
        let heights = [self.old, self.new].map(|view| block_index::height(view.n_full()));
        let level = heights[0].min(heights[1]);
        let branches = [(self.old, heights[0]), (self.new, heights[1])].map(|(view, height)| {
            let mut pointer = view.index.root;
            for level in (level + 1..=height).rev() {
                pointer = *self.children(view, &pointer, level)?.first()?;
            }
            Some(pointer)
        });
        match branches {
            [Some(old), Some(new)] => self.below(old, new, level, 0, add),
            _ => add(0..self.n_both),
        }
    }

    fn below(&self, old: Pointer, new: Pointer, level: u32, first: u64, add: &mut impl FnMut(Range<u64>)) {
        if old == new || first >= self.n_both {
            return;
        }
        let end = self.n_both.min(first.saturating_add(block_index::blocks_below(level)));
        if level == 0 {
            return add(first..end);
        }
        match (self.children(self.old, &old, level), self.children(self.new, &new, level)) {
            (Some(old), Some(new)) => {
                let firsts = (first..end).step_by(block_index::blocks_below(level - 1) as usize);
                for (first, (old, new)) in firsts.zip(old.iter().zip(new.iter())) {
                    self.below(*old, *new, level - 1, first, add);
                }
            }
            _ => add(first..end),
        }
    }

    /// The pointers of a page.
    fn children(&self, view: &View, pointer: &Pointer, level: u32) -> Option<Arc<[Pointer]>> {
        if pointer.is_absent() {
            return Some([Pointer::ABSENT; block_index::PAGE_FANOUT].into());
        }
        self.data.page(view, pointer, level).ok()
    }
}
