use super::*;
use crate::blob::{BlobStore, Hash};
use crate::keys::{EntityKeys, push_latest_key, push_version};
use crate::row::{RowEncoder, RowSchema};
use crate::shard::{Lookup, RowRef};
use crate::testing::{KEY_TYPES, TYPES, batch, check_golden, field};
use arrow_array::{
    ArrayRef, BinaryArray, Float32Array, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use cairn_proto::record::v1::Field;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const STORAGE_ID: u32 = 7;

/// History keys with commit time and packed row, as they stand in a database.
type Rows = BTreeMap<Vec<u8>, (i64, Vec<u8>)>;

fn write(layout: &SegmentLayout, rows: &Rows, blobs: &Arc<BlobStore>) -> (Written, Hash) {
    let mut writer = SegmentWriter::new(layout.clone(), Vec::new()).unwrap();
    for (key, (committed_us, packed)) in rows {
        let row = RowRef { event_us: 0, created_us: 0, commit: 0, committed_us: *committed_us, packed };
        writer.push(key, &row).unwrap();
    }
    let (written, bytes) = writer.finish().unwrap();
    let mut blob = blobs.writer().unwrap();
    blob.write(&bytes).unwrap();
    (written, blob.finish().unwrap().root)
}

fn plain(root: &Hash) -> SegmentRef {
    SegmentRef { root: *root, stamp: None }
}

/// Every row of a segment from `from` on.
fn read(store: &SegmentStore, root: &Hash, from: &[u8]) -> Rows {
    let mut cursor = SegmentCursor::new(store.open(&plain(root)).unwrap());
    cursor.seek(from).unwrap();
    let mut rows = Rows::new();
    while let Some((group, row)) = cursor.entry() {
        let mut packed = Vec::new();
        group.packed(row, &mut packed).unwrap();
        let before = rows.insert(group.key(row).to_vec(), (group.version(row).unwrap().committed_us, packed));
        assert!(before.is_none(), "twice the same row");
        cursor.advance().unwrap();
    }
    rows
}

struct Place {
    _dir: tempfile::TempDir,
    blobs: Arc<BlobStore>,
    store: Arc<SegmentStore>,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let blobs = BlobStore::open(dir.path()).unwrap();
    // Room for one or two groups: what is not there any more is read again.
    let store = SegmentStore::new(Arc::clone(&blobs), 4 << 10);
    Place { _dir: dir, blobs, store }
}

/// Keys and rows of every type, with times and deletions that depend on the row's number.
fn rows_of(join_keys: &[Field], keys: &[ArrayRef], schema: &RowSchema, columns: &[ArrayRef]) -> Rows {
    let entities = EntityKeys::encode(join_keys, keys).unwrap();
    let encoder = RowEncoder::new(schema, columns).unwrap();
    let rows = keys.first().unwrap().len().min(columns.first().unwrap().len());
    let mut all = Rows::new();
    for row in 0..rows {
        let Some(entity) = entities.get(row) else { continue };
        let mut key = Vec::new();
        push_latest_key(STORAGE_ID, entity, &mut key);
        let extremes = [i64::MIN, -1, 0, 5, i64::MAX];
        push_version(extremes[row % 5], extremes[row % 3 + 1], row as u64 / 2, &mut key);
        let mut packed = Vec::new();
        if row % 7 != 3 {
            encoder.encode(row, &mut packed).unwrap();
        }
        all.insert(key, (extremes[row % 4], packed));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever the types, and across row groups: the same keys, times and bytes, from any place on.
    #[test]
    fn rows_come_back_as_they_went(
        (join_keys, keys) in batch(&KEY_TYPES, 1..3, 1..60),
        (features, columns) in batch(&TYPES, 1..5, 1..60),
        from in any::<prop::sample::Index>(),
    ) {
        let join_keys: Vec<Field> =
            join_keys.into_iter().map(|it| Field { name: format!("k{}", it.name), ..it }).collect();
        let row = RowSchema::new(&features).unwrap();
        let rows = rows_of(&join_keys, &keys, &row, &columns);
        prop_assume!(!rows.is_empty());
        let layout = SegmentLayout { storage_id: STORAGE_ID, join_keys, row, load: false };
        let place = place();
        let (written, root) = write(&layout, &rows, &place.blobs);
        prop_assert_eq!(written.rows, rows.len() as u64);
        prop_assert_eq!(&read(&place.store, &root, &[]), &rows);
        let begin = rows.keys().nth(from.index(rows.len())).unwrap();
        let rest: Rows = rows.range(begin.clone()..).map(|(key, row)| (key.clone(), row.clone())).collect();
        prop_assert_eq!(&read(&place.store, &root, begin), &rest);
    }
}

fn small() -> (SegmentLayout, Rows) {
    let join_keys = vec![field("k", "int64")];
    let features = [field("x", "float64"), field("event_timestamp", "string")];
    let row = RowSchema::new(&features).unwrap();
    let keys: ArrayRef = Arc::new(Int64Array::from_iter_values((0..100).map(|row| row % 3)));
    let x: ArrayRef = Arc::new(Float64Array::from_iter((0..100).map(|row| (row % 4 > 0).then_some(f64::from(row)))));
    let s: ArrayRef = Arc::new(StringArray::from_iter((0..100).map(|row| (row % 5 > 0).then(|| format!("s{row}")))));
    let rows = rows_of(&join_keys, &[keys], &row, &[x, s]);
    (SegmentLayout { storage_id: STORAGE_ID, join_keys, row, load: false }, rows)
}

/// In any order of lookups, with groups of 16 rows: what a walk through all rows would find.
#[test]
fn lookups_find_what_a_walk_finds() {
    let (layout, rows) = small();
    let place = place();
    let (_, root) = write(&layout, &rows, &place.blobs);
    let mut seeker = SegmentSeeker::new(&place.store, &plain(&root)).unwrap();
    let times = [i64::MIN, -2, -1, 0, 1, 5, i64::MAX];
    let mut found = 0;
    for key in [2_i64, 0, 1, 9] {
        let columns: [ArrayRef; 1] = [Arc::new(Int64Array::from(vec![key]))];
        let entities = EntityKeys::encode(&layout.join_keys, &columns).unwrap();
        let entity = entities.get(0).unwrap();
        let mut prefix = Vec::new();
        push_latest_key(STORAGE_ID, entity, &mut prefix);
        for (event_us, created_us, committed_us) in times
            .into_iter()
            .flat_map(|e| times.into_iter().flat_map(move |c| times.into_iter().map(move |x| (e, c, x))))
        {
            let lookup = Lookup { key: entity, event_us, created_us, committed_us };
            let walk = rows.iter().find(|(key, (committed, _))| {
                let parts = crate::keys::split_history_key(key).unwrap();
                parts.entity_key == entity
                    && parts.event_us <= event_us
                    && parts.created_us <= created_us
                    && *committed <= committed_us
            });
            let hit = seeker.find(&prefix, &lookup).unwrap();
            let hit = hit.map(|hit| {
                let mut packed = Vec::new();
                hit.packed(&mut packed).unwrap();
                (hit.version().version(), packed)
            });
            let walk = walk.map(|(key, (_, packed))| {
                let parts = crate::keys::split_history_key(key).unwrap();
                ((parts.event_us, parts.created_us, parts.commit), packed.clone())
            });
            found += usize::from(hit.is_some());
            assert_eq!(hit, walk, "{key} at {event_us}, {created_us}, {committed_us}");
        }
    }
    assert!(found > 300, "{found} of 1372 lookups found a row");
}

#[test]
fn columns_have_plain_names_and_the_footer_stands() {
    let (layout, _) = small();
    let names: Vec<String> = layout.arrow_schema().fields().iter().map(|it| format!("{it}")).collect();
    check_golden("segment.txt", &format!("{}\n{}\n", names.join("\n"), layout.head(vec![b"first key".to_vec()])));
    let load = SegmentLayout { load: true, ..layout.clone() };
    let names: Vec<String> = load.arrow_schema().fields().iter().map(|it| format!("{it}")).collect();
    check_golden("segment_load.txt", &format!("{}\n{}\n", names.join("\n"), load.head(vec![b"first key".to_vec()])));
    assert_eq!(SegmentLayout::read_head(&load.head(Vec::new())).unwrap().0.arrow_schema(), load.arrow_schema());
    let (again, keys) = SegmentLayout::read_head(&layout.head(vec![b"first key".to_vec()])).unwrap();
    assert_eq!(again.arrow_schema(), layout.arrow_schema());
    assert_eq!(keys, [b"first key".to_vec()]);
}

/// Types and row groups as they come: a load's rows are those of the same columns stored one by one, with its commit.
#[test]
fn a_load_is_read_as_its_columns() {
    let stamp = Stamp { commit: 40, committed_us: 77 };
    let row = RowSchema::new(&[field("x", "float64"), field("s", "string")]).unwrap();
    let layout = SegmentLayout { storage_id: STORAGE_ID, join_keys: vec![field("k", "int64")], row, load: true };
    // Of other types than declared, and over several row groups.
    let keys: Vec<i32> = (0..20).flat_map(|key| [key; 5]).collect();
    let entity_of = |key: i32| {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![i64::from(key)]));
        EntityKeys::encode(&layout.join_keys, &[column]).unwrap().get(0).unwrap().to_vec()
    };
    let mut rows: Vec<(Vec<u8>, i32, i64)> = (keys.iter().zip((0..5).cycle()))
        .map(|(key, event)| {
            let mut order = Vec::new();
            crate::keys::push_order_key(&entity_of(*key), event, event + 1, &mut order);
            (order, *key, event)
        })
        .collect();
    rows.sort();
    let times = |add: i64| TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.2 + add));
    let x = Float32Array::from_iter(rows.iter().map(|row| (row.2 != 3).then_some(row.1 as f32 + 0.5)));
    let s = StringArray::from_iter(rows.iter().map(|row| (row.2 != 1).then(|| format!("{}-{}", row.1, row.2))));
    let (join_key, x, s): (ArrayRef, ArrayRef, ArrayRef) =
        (Arc::new(arrow_array::Int32Array::from_iter_values(rows.iter().map(|row| row.1))), Arc::new(x), Arc::new(s));
    let order = BinaryArray::from_iter_values(rows.iter().map(|row| &row.0));
    let all = LoadedRows {
        order: &order,
        join_keys: &[join_key],
        event_us: &times(0),
        created_us: &times(1),
        features: &[x.clone(), s.clone()],
    };
    let mut writer = SegmentWriter::new(layout.clone(), Vec::new()).unwrap();
    writer.push_loaded(&all).unwrap();
    assert!(writer.push_loaded(&all).unwrap_err().to_string().contains("out of order"));
    let (written, bytes) = writer.finish().unwrap();
    assert_eq!(written, Written { rows: 100, event_min_us: 0, event_max_us: 4 });
    let place = place();
    let mut blob = place.blobs.writer().unwrap();
    blob.write(&bytes).unwrap();
    let root = blob.finish().unwrap().root;
    let file = place.store.open(&SegmentRef { root, stamp: Some(stamp) }).unwrap();
    assert!(file.groups() > 3);
    let encoder = RowEncoder::new(&layout.row, &[x, s]).unwrap();
    let mut cursor = SegmentCursor::new(file);
    cursor.seek(&[]).unwrap();
    for (number, (_, key, event)) in rows.iter().enumerate() {
        let (group, at) = cursor.entry().unwrap();
        let (mut history_key, mut packed, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        push_latest_key(STORAGE_ID, &entity_of(*key), &mut history_key);
        push_version(*event, *event + 1, stamp.commit, &mut history_key);
        assert_eq!(group.key(at), history_key);
        assert_eq!(group.version(at).unwrap().committed_us, stamp.committed_us);
        group.packed(at, &mut packed).unwrap();
        encoder.encode(number, &mut expected).unwrap();
        assert_eq!(packed, expected);
        cursor.advance().unwrap();
    }
    assert!(cursor.entry().is_none());
    let unstamped = place.store.open(&plain(&root)).map(drop).unwrap_err().to_string();
    assert!(unstamped.contains("whether it is a load"), "{unstamped}");
}

#[test]
fn damage_and_strangers_are_errors() {
    let (layout, rows) = small();
    let place = place();
    let store = |bytes: &[u8]| {
        let mut blob = place.blobs.writer().unwrap();
        blob.write(bytes).unwrap();
        let root = blob.finish().unwrap().root;
        place.store.open(&plain(&root)).map(drop).unwrap_err().to_string()
    };
    assert!(store(b"not Parquet at all").contains("a segment: "));
    let mut writer = SegmentWriter::new(layout.clone(), Vec::new()).unwrap();
    let row = RowRef { event_us: 0, created_us: 0, commit: 0, committed_us: 0, packed: &[] };
    let mut keys = rows.keys();
    let (first, second) = (keys.next().unwrap(), keys.next().unwrap());
    writer.push(second, &row).unwrap();
    assert!(writer.push(first, &row).unwrap_err().to_string().contains("key order"));
    let (_, bytes) = writer.finish().unwrap();
    assert!(store(&bytes[..bytes.len() - 9]).contains("a segment: "));
    let newer = layout.head(Vec::new()).replacen("0801", "0803", 1);
    let error = SegmentLayout::read_head(&newer).map(drop).unwrap_err().to_string();
    assert!(error.contains("written by a newer Cairn"), "{error}");
    assert!(SegmentLayout::read_head("zz").is_err());
    let absent = place.store.open(&plain(&[9; 32])).map(drop).unwrap_err();
    assert_eq!(absent.kind(), cairn_proto::ErrorKind::Unavailable);
}
