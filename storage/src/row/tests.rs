use super::*;
use crate::testing::{TYPES, assert_same, batch, check_golden, field, hex};
use arrow_array::{Array, ArrayRef, Float64Array, Int32Array, Int64Array, StringArray};
use proptest::prelude::*;

fn pack(schema: &RowSchema, columns: &[ArrayRef]) -> Vec<Vec<u8>> {
    let encoder = RowEncoder::new(schema, columns).unwrap();
    let rows = columns[0].len();
    let packed = |row| {
        let mut out = b"kept".to_vec();
        encoder.encode(row, &mut out).unwrap();
        assert_eq!(&out[..4], b"kept");
        out.split_off(4)
    };
    (0..rows).map(packed).collect()
}

fn unpack(schema: &RowSchema, projection: &[usize], rows: &[Vec<u8>]) -> Vec<ArrayRef> {
    let mut decoder = RowDecoder::new(schema, projection, rows.len());
    rows.iter().for_each(|row| decoder.push(row).unwrap());
    assert_eq!(decoder.len(), rows.len());
    decoder.finish().unwrap()
}

proptest! {
    #[test]
    fn rows_decode_to_their_columns((fields, columns) in batch(&TYPES, 1..20, 1..8), picks: Vec<prop::sample::Index>) {
        let schema = RowSchema::new(&fields).unwrap();
        let rows = pack(&schema, &columns);
        let all: Vec<usize> = (0..fields.len()).collect();
        for (found, expected) in unpack(&schema, &all, &rows).iter().zip(&columns) {
            assert_same(found, expected, "all features");
        }
        let some: Vec<usize> = picks.iter().map(|pick| pick.index(fields.len())).collect();
        let found = unpack(&schema, &some, &rows);
        prop_assert_eq!(found.len(), some.len());
        for (found, feature) in found.iter().zip(some) {
            assert_same(found, &columns[feature], "a projection");
        }
        for (index, row) in rows.iter().enumerate() {
            for (feature, column) in columns.iter().enumerate() {
                prop_assert_eq!(schema.is_null_in(row, feature), column.is_null(index));
            }
        }
    }

    /// A slice of a batch packs like the batch.
    #[test]
    fn slices_pack_alike((fields, columns) in batch(&TYPES, 1..8, 3..8)) {
        let schema = RowSchema::new(&fields).unwrap();
        let sliced: Vec<ArrayRef> = columns.iter().map(|column| column.slice(1, column.len() - 2)).collect();
        let whole = pack(&schema, &columns);
        prop_assert_eq!(&pack(&schema, &sliced)[..], &whole[1..whole.len() - 1]);
    }

    #[test]
    fn broken_rows_are_errors_not_panics(
        (fields, columns) in batch(&TYPES, 1..8, 1..2),
        at: prop::sample::Index,
        flip in 1..=255_u8,
        keep: prop::sample::Index,
    ) {
        let schema = RowSchema::new(&fields).unwrap();
        let row = pack(&schema, &columns).remove(0);
        let all: Vec<usize> = (0..fields.len()).collect();
        let mut flipped = row.clone();
        flipped[at.index(row.len())] ^= flip;
        let cut = row[..keep.index(row.len())].to_vec();
        for broken in [flipped, cut] {
            let mut decoder = RowDecoder::new(&schema, &all, 1);
            schema.is_null_in(&broken, 0);
            let result = decoder.push(&broken);
            let finished = decoder.finish();
            if let Err(error) = &result {
                prop_assert!(matches!(error, Error::Corrupt(_)), "{}", error);
                prop_assert!(finished.is_err());
            }
        }
    }
}

#[test]
fn rows_of_another_schema_are_refused() {
    let one = RowSchema::new(&[field("a", "int64")]).unwrap();
    let column: ArrayRef = std::sync::Arc::new(Int64Array::from(vec![7]));
    let row = pack(&one, &[column]).remove(0);
    for other in [field("b", "int64"), field("a", "timestamp"), field("a", "list<int32>[2]")] {
        let other = RowSchema::new(&[other]).unwrap();
        let error = other.check(&row).unwrap_err().to_string();
        assert!(error.contains("another feature view"), "{error}");
    }
    let mut newer = row.clone();
    newer[0] = 2;
    assert!(one.check(&newer).unwrap_err().to_string().contains("version 2"));
    one.check(&row).unwrap();
}

#[test]
fn bad_columns_are_named() {
    let schema = RowSchema::new(&[field("rating", "float32"), field("trips", "int64")]).unwrap();
    let floats = |values: Vec<f64>| -> ArrayRef { std::sync::Arc::new(Float64Array::from(values)) };
    let text: ArrayRef = std::sync::Arc::new(StringArray::from(vec!["7"]));
    let check = |columns: &[ArrayRef], expected: &str| {
        let error = RowEncoder::new(&schema, columns).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&[floats(vec![1.0])], "1 feature columns given, 2 needed");
    check(&[floats(vec![1.0]), text], "column `trips` is Utf8, which does not fit its declared type int64");
    check(&[floats(vec![1.0, 2.0]), floats(vec![1.0])], "column `trips` has 1 rows and others 2");
    let widened: ArrayRef = std::sync::Arc::new(Int32Array::from(vec![3]));
    RowEncoder::new(&schema, &[floats(vec![0.1]), widened]).unwrap();
}

#[test]
fn limits_hold() {
    let schema = RowSchema::new(&[field("text", "string")]).unwrap();
    let text: ArrayRef = std::sync::Arc::new(StringArray::from(vec!["x".repeat(PACKED_BYTES_MAX), "fits".to_owned()]));
    let encoder = RowEncoder::new(&schema, &[text]).unwrap();
    let mut out = Vec::new();
    let error = encoder.encode(0, &mut out).unwrap_err();
    assert!(matches!(&error, Error::TooLarge(message) if message.contains("row 0")), "{error}");
    assert!(out.is_empty());
    encoder.encode(1, &mut out).unwrap();
    assert!(encoder.encode(2, &mut out).is_err());
    let wide: Vec<_> = (0..5).map(|index| field(&format!("e{index}"), "list<float64>[65536]")).collect();
    assert!(matches!(RowSchema::new(&wide), Err(Error::TooLarge(_))));
    assert!(RowDecoder::new(&schema, &[3], 0).finish().is_err());
}

#[test]
fn nulls_and_no_features() {
    let schema = RowSchema::new(&[field("a", "string"), field("b", "list<float32>[3]")]).unwrap();
    let mut decoder = RowDecoder::new(&schema, &[1, 0], 4);
    decoder.push_null();
    decoder.push_null();
    let columns = decoder.finish().unwrap();
    assert!(columns.iter().all(|column| column.len() == 2 && column.null_count() == 2));
    let none = RowSchema::new(&[]).unwrap();
    let mut out = Vec::new();
    RowEncoder::new(&none, &[]).unwrap().encode(0, &mut out).unwrap();
    none.check(&out).unwrap();
}

#[test]
fn packed_bytes_never_change() {
    use arrow_array::types::Float32Type;
    use arrow_array::{
        BinaryArray, BooleanArray, Date32Array, FixedSizeListArray, Float32Array, ListArray, TimestampMicrosecondArray,
    };
    let lists = || vec![Some(vec![Some(1.5_f32), Some(-2.0)]), None];
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("bool", std::sync::Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("int32", std::sync::Arc::new(Int32Array::from(vec![Some(-2), None]))),
        ("int64", std::sync::Arc::new(Int64Array::from(vec![Some(1 << 40), None]))),
        ("float32", std::sync::Arc::new(Float32Array::from(vec![Some(0.5), None]))),
        ("float64", std::sync::Arc::new(Float64Array::from(vec![Some(-0.25), None]))),
        ("string", std::sync::Arc::new(StringArray::from(vec![Some("é"), None]))),
        ("bytes", std::sync::Arc::new(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), None]))),
        ("timestamp", std::sync::Arc::new(TimestampMicrosecondArray::from(vec![Some(1_700_000_000_000_000), None]))),
        ("date", std::sync::Arc::new(Date32Array::from(vec![Some(20_000), None]))),
        ("list<float32>", std::sync::Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(lists()))),
        (
            "list<float32>[2]",
            std::sync::Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(lists(), 2)),
        ),
    ];
    let mut text = String::new();
    for (name, column) in &columns {
        let schema = RowSchema::new(&[field("f", name)]).unwrap();
        for row in pack(&schema, std::slice::from_ref(column)) {
            text += &format!("{name} {}\n", hex(&row));
        }
    }
    let fields: Vec<_> = columns.iter().enumerate().map(|(at, (name, _))| field(&format!("f{at}"), name)).collect();
    let all: Vec<ArrayRef> = columns.into_iter().map(|(_, column)| column).collect();
    for row in pack(&RowSchema::new(&fields).unwrap(), &all) {
        text += &format!("all {}\n", hex(&row));
    }
    check_golden("row.v1.txt", &text);
}
