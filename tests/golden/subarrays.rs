//! The same of a dtype with arrays within arrays: `tests/data/v1-subarrays`, written by
//! `write_the_golden_store_of_subarrays`.

use std::path::{Path, PathBuf};

use numpack::format::{Descr, Dtype};
use numpack::store::{Access, NewArray, Store};

use crate::{assert_manifest_comes_back, elements, pattern};

const DTYPE: &str = "[('a', '<i4'), ('c', ('<u2', (3,)), (2,)), ('d', ([('e', '|i1')], (2,)), (1,))]";

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1-subarrays")
}

#[test]
#[ignore = "writes tests/data/v1-subarrays, which is there for good"]
fn write_the_golden_store_of_subarrays() {
    assert!(!golden().exists(), "{} is there already, and must not change", golden().display());
    let dtype = Dtype::parse_python(DTYPE).unwrap();
    let (data, shape) = (pattern(36), vec![2]);
    let array = NewArray { dtype, shape, fortran_order: false, data: &data };
    Store::create(&golden()).unwrap().save(&[("a", array)]).unwrap();
}

#[test]
fn arrays_within_arrays_are_read_as_they_were() {
    let array = Store::open(&golden(), Access::Read).unwrap().array("a").unwrap();
    assert_eq!(array.dtype(), &Dtype::parse_python(DTYPE).unwrap());
    assert_eq!((array.dtype().itemsize(), array.dtype().to_python().as_str()), (18, DTYPE));
    assert_eq!((array.shape(), elements(&array)), (&[2][..], pattern(36)));
    let Descr::Fields(fields) = array.dtype().descr() else { panic!("no fields") };
    assert!(matches!(&fields[1].descr, Descr::Subarray(array) if array.shape == [3]));
    assert_manifest_comes_back(&golden());
}
