//! Which stored rows the rows that users count are: deleted rows lie between them until they are compacted away.

use std::ops::Range;

use roaring::RoaringTreemap;

/// The rows that are not deleted, as runs of stored rows.
///
/// Run `i` begins at logical row `logical[i]`, which is stored row `stored[i]`. The last run has no end: rows that
/// are appended later belong to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LiveRows {
    logical: Vec<u64>,
    stored: Vec<u64>,
    /// The run that holds logical row `i << bucket_shift`, for each `i` up to the last run's first row. There are about
    /// as many as runs, so that the run of a row is found in one or two steps, unless the runs are crowded together.
    buckets: Vec<usize>,
    bucket_shift: u32,
}

impl LiveRows {
    pub(super) fn new(deleted: &RoaringTreemap) -> Self {
        let (mut logical, mut stored) = (Vec::new(), Vec::new());
        let (mut n_live, mut next) = (0, 0);
        for range in ranges(deleted) {
            if range.start > next {
                logical.push(n_live);
                stored.push(next);
                n_live += range.start - next;
            }
            next = range.end;
        }
        logical.push(n_live);
        stored.push(next);
        let bucket_shift = (n_live / logical.len() as u64).checked_ilog2().unwrap_or(0);
        let mut run = 0;
        let buckets = (0..=n_live >> bucket_shift).map(|bucket| {
            while logical.get(run + 1).is_some_and(|start| *start <= bucket << bucket_shift) {
                run += 1;
            }
            run
        });
        Self { buckets: buckets.collect(), logical, stored, bucket_shift }
    }

    /// The stored rows of the logical rows `rows`, in order, as contiguous ranges.
    pub(super) fn stored_runs(&self, rows: Range<u64>) -> impl Iterator<Item = Range<u64>> + use<'_> {
        let mut run = self.run_of(rows.start);
        let mut row = rows.start;
        std::iter::from_fn(move || {
            if row >= rows.end {
                return None;
            }
            let end = self.logical.get(run + 1).map_or(rows.end, |next| rows.end.min(*next));
            let start = self.stored[run] + (row - self.logical[run]);
            let found = start..start + (end - row);
            row = end;
            run += 1;
            Some(found)
        })
    }

    /// The stored row of a logical row.
    pub(super) fn stored(&self, row: u64) -> u64 {
        let run = self.run_of(row);
        self.stored[run] + (row - self.logical[run])
    }

    /// The run that holds a logical row.
    fn run_of(&self, row: u64) -> usize {
        let bucket = usize::try_from(row >> self.bucket_shift).unwrap_or(usize::MAX);
        let last = self.logical.len() - 1;
        let first = self.buckets.get(bucket).copied().unwrap_or(last);
        let end = bucket.checked_add(1).and_then(|next| self.buckets.get(next)).map_or(last, |run| *run);
        // The first of these runs begins at or before `row`.
        first + self.logical[first + 1..=end].partition_point(|start| *start <= row)
    }
}

/// The numbers in `rows` as ranges, in order: dropping a billion rows at once makes one.
fn ranges(rows: &RoaringTreemap) -> impl Iterator<Item = Range<u64>> {
    rows.bitmaps().flat_map(|(high, bitmap)| {
        let base = u64::from(high) << 32;
        let mut rows = bitmap.iter();
        std::iter::from_fn(move || {
            let range = rows.next_range()?;
            Some(base + u64::from(*range.start())..base + u64::from(*range.end()) + 1)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_go_on_where_bitmaps_end() {
        let mut deleted = RoaringTreemap::new();
        for range in [3..5, 65_530..65_540, 200_000..5 << 32, 6 << 32..(6 << 32) + 1] {
            deleted.insert_range(range);
        }
        let rows = LiveRows::new(&deleted);
        assert_eq!((rows.stored(2), rows.stored(3), rows.stored(65_528)), (2, 5, 65_540));
        let live = 3 + (65_530 - 5) + (200_000 - 65_540);
        assert_eq!((rows.stored(live - 1), rows.stored(live)), (199_999, 5 << 32));
        assert_eq!(rows.stored(live + (1 << 32)), (6 << 32) + 1);
        assert_eq!(rows.stored.len(), 5);
    }

    proptest! {
        #[test]
        fn live_rows_are_those_not_deleted(deleted in prop::collection::btree_set(0_u64..60, 0..60)) {
            let live: Vec<u64> = (0..80).filter(|row| !deleted.contains(row)).collect();
            let rows = LiveRows::new(&deleted.iter().copied().collect());
            for (logical, stored) in live.iter().enumerate() {
                prop_assert_eq!(rows.stored(logical as u64), *stored);
            }
            for start in 0..=live.len() {
                for end in start..=live.len() {
                    let runs: Vec<u64> = rows.stored_runs(start as u64..end as u64).flatten().collect();
                    prop_assert_eq!(&runs, &live[start..end]);
                }
            }
        }
    }
}
