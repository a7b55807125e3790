//! What the unit tests of this crate share: columns of every type, a small engine, golden files.

use crate::engine::{Engine, EngineOptions};
use crate::types::parse_type;
use arrow_array::types::{Float32Type, Float64Type, Int32Type, Int64Type};
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, FixedSizeListArray, Float32Array, Float64Array, Int32Array,
    Int64Array, ListArray, StringArray, TimestampMicrosecondArray,
};
use cairn_proto::record::v1::Field;
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;

/// Every shape of feature type.
pub const TYPES: [&str; 15] = [
    "bool",
    "int32",
    "int64",
    "float32",
    "float64",
    "string",
    "bytes",
    "timestamp",
    "date",
    "list<int32>",
    "list<int64>",
    "list<float32>",
    "list<float64>",
    "list<float32>[3]",
    "list<int64>[2]",
];

/// Every type a join key may have.
pub const KEY_TYPES: [&str; 7] = ["bool", "int32", "int64", "string", "bytes", "timestamp", "date"];

pub fn field(name: &str, type_name: &str) -> Field {
    let feature_type = parse_type(type_name).expect("a type in a test");
    Field { name: name.to_owned(), r#type: Some(feature_type), description: String::new() }
}

pub fn small_engine() -> Arc<Engine> {
    Engine::new(EngineOptions { cache_bytes: 16 << 20, write_buffer_bytes: 8 << 20, background_jobs: 2 })
}

/// A column of `rows` values of a type, extremes and nulls among them.
pub fn column(type_name: &'static str, rows: usize) -> BoxedStrategy<ArrayRef> {
    fn cells<T: std::fmt::Debug + Clone>(
        rows: usize,
        cell: impl Strategy<Value = T>,
    ) -> impl Strategy<Value = Vec<Option<T>>> {
        vec(weighted(0.8, cell), rows)
    }
    fn boxed<T: std::fmt::Debug + Clone + 'static>(
        rows: usize,
        cell: impl Strategy<Value = T> + 'static,
        build: impl Fn(Vec<Option<T>>) -> ArrayRef + 'static,
    ) -> BoxedStrategy<ArrayRef> {
        cells(rows, cell).prop_map(build).boxed()
    }
    let i32s = || prop_oneof![any::<i32>(), Just(i32::MIN), Just(i32::MAX), -2..3_i32];
    let i64s = || prop_oneof![any::<i64>(), Just(i64::MIN), Just(i64::MAX), -2..3_i64];
    let bytes = || prop_oneof![vec(any::<u8>(), 0..20), vec(prop_oneof![Just(0_u8), Just(1), Just(0xff)], 0..6)];
    match type_name {
        "bool" => boxed(rows, any::<bool>(), |cells| Arc::new(BooleanArray::from(cells))),
        "int32" => boxed(rows, i32s(), |cells| Arc::new(Int32Array::from(cells))),
        "date" => boxed(rows, i32s(), |cells| Arc::new(Date32Array::from(cells))),
        "int64" => boxed(rows, i64s(), |cells| Arc::new(Int64Array::from(cells))),
        "timestamp" => {
            boxed(rows, i64s(), |cells| Arc::new(TimestampMicrosecondArray::from(cells).with_timezone("UTC")))
        }
        "float32" => boxed(rows, any::<f32>(), |cells| Arc::new(Float32Array::from(cells))),
        "float64" => boxed(rows, any::<f64>(), |cells| Arc::new(Float64Array::from(cells))),
        "string" => boxed(rows, prop_oneof!["\\PC{0,12}", "[\\x00a]{0,4}"], |cells| Arc::new(StringArray::from(cells))),
        "bytes" => boxed(rows, bytes(), |cells| Arc::new(cells.into_iter().collect::<BinaryArray>())),
        "list<int32>" => boxed(rows, vec(i32s(), 0..5), |cells| lists::<Int32Type>(cells)),
        "list<int64>" => boxed(rows, vec(i64s(), 0..5), |cells| lists::<Int64Type>(cells)),
        "list<float32>" => boxed(rows, vec(any::<f32>(), 0..5), |cells| lists::<Float32Type>(cells)),
        "list<float64>" => boxed(rows, vec(any::<f64>(), 0..5), |cells| lists::<Float64Type>(cells)),
        "list<float32>[3]" => boxed(rows, vec(any::<f32>(), 3), |cells| fixed_lists::<Float32Type>(3, cells)),
        "list<int64>[2]" => boxed(rows, vec(i64s(), 2), |cells| fixed_lists::<Int64Type>(2, cells)),
        _ => unreachable!("no such type in tests: {type_name}"),
    }
}

type Cells<N> = Vec<Option<Vec<N>>>;

fn some_items<N>(cells: Cells<N>) -> impl Iterator<Item = Option<Vec<Option<N>>>> {
    cells.into_iter().map(|cell| cell.map(|items| items.into_iter().map(Some).collect()))
}

fn lists<T: arrow_array::ArrowPrimitiveType>(cells: Cells<T::Native>) -> ArrayRef {
    Arc::new(ListArray::from_iter_primitive::<T, _, _>(some_items(cells)))
}

fn fixed_lists<T: arrow_array::ArrowPrimitiveType>(length: i32, cells: Cells<T::Native>) -> ArrayRef {
    Arc::new(FixedSizeListArray::from_iter_primitive::<T, _, _>(some_items(cells), length))
}

/// Columns of some of `types` with `rows` rows, and their fields.
pub fn batch(
    types: &'static [&'static str],
    count: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
) -> BoxedStrategy<(Vec<Field>, Vec<ArrayRef>)> {
    (vec(proptest::sample::select(types), count), rows)
        .prop_flat_map(|(types, rows)| {
            let fields: Vec<Field> =
                types.iter().enumerate().map(|(index, name)| field(&format!("f{index}"), name)).collect();
            let columns: Vec<_> = types.iter().map(|name| column(name, rows)).collect();
            (Just(fields), columns)
        })
        .boxed()
}

/// Equal in type, nulls and every bit of every value that is not null.
pub fn assert_same(found: &ArrayRef, expected: &ArrayRef, what: &str) {
    assert_eq!(found.data_type(), expected.data_type(), "{what}");
    assert_eq!(found.len(), expected.len(), "{what}");
    assert!(found.to_data() == expected.to_data(), "{what}: {found:?} and {expected:?}");
}

/// Compares `text` with the golden file `name`. `UPDATE_GOLDEN=1` writes it; a changed file needs a new format version.
pub fn check_golden(name: &str, text: &str) {
    let path =
        PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("golden directory");
        std::fs::write(&path, text).expect("golden file");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    for (number, (found, expected)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(
            found,
            expected,
            "{} line {}: the bytes on disk changed. Old data would not read: make a new version of the format",
            path.display(),
            number + 1
        );
    }
    assert_eq!(text.lines().count(), expected.lines().count(), "{}: lines were added or lost", path.display());
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
