use super::*;
use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use arrow_array::{Float32Array, Int64Array, StringArray};
use expect_test::{Expect, expect};
use tempfile::TempDir;

fn csv(folder: &TempDir, text: &str) -> PathBuf {
    let path = folder.path().join("rows.csv");
    std::fs::write(&path, text).unwrap();
    path
}

fn options() -> ReadOptions {
    ReadOptions { batch_rows: 2, ..ReadOptions::default() }
}

fn check_types(path: &Path, options: &ReadOptions, expected: &Expect) {
    let reader = TableReader::open(path, options).unwrap();
    let types: Vec<_> =
        reader.schema().fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect();
    expected.assert_eq(&format!("{} rows: {}", reader.rows(), types.join(", ")));
}

const FLIGHTS: &str = "\
carrier,flight,delay,at,late
UA,1545,2.5,2013-01-01 05:15:00,true
AA,1141,,2013-01-01 05:40:00,false
B6,725,-1,2013-01-01 05:45:00,false
";

#[test]
fn csv_types_are_inferred_from_every_row() {
    let folder = TempDir::new().unwrap();
    let path = csv(&folder, FLIGHTS);
    check_types(
        &path,
        &options(),
        &expect!["3 rows: carrier Utf8, flight Int64, delay Float64, at Timestamp(µs, \"UTC\"), late Boolean"],
    );
}

#[test]
fn csv_takes_the_types_the_caller_knows() {
    let folder = TempDir::new().unwrap();
    let path = csv(&folder, FLIGHTS);
    let types = Schema::new(vec![
        Field::new("flight", DataType::Utf8, true),
        Field::new("delay", DataType::Float32, true),
        Field::new("elsewhere", DataType::Int32, true),
    ]);
    let options = ReadOptions { types: Some(types), event_timestamp: Some("at".into()), ..options() };
    check_types(
        &path,
        &options,
        &expect![
            "3 rows: carrier Utf8, flight Utf8, delay Float32, event_timestamp Timestamp(µs, \"UTC\"), late Boolean"
        ],
    );
    let rows = TableReader::open(&path, &options).unwrap().next().unwrap().unwrap();
    assert_eq!(rows.schema().field(3).name(), "event_timestamp", "the batches are named like their reader");
}

#[test]
fn times_with_and_without_zone_are_utc() {
    let folder = TempDir::new().unwrap();
    let path = csv(&folder, "event_timestamp\n2013-01-01T07:03:00-05:00\n2013-01-01 12:03:00\n2013-01-01T12:03:00Z\n");
    let reader = TableReader::open(&path, &ReadOptions { batch_rows: 10, ..options() }).unwrap();
    let rows = reader.map(Result::unwrap).next().unwrap();
    let times = rows.column(0).as_primitive::<TimestampMicrosecondType>();
    assert_eq!(times.values(), &[1_357_041_780_000_000; 3]);
}

#[test]
fn faulty_files_are_named_with_their_fault() {
    let folder = TempDir::new().unwrap();
    let open = |text: &str, options: &ReadOptions| {
        let error = TableReader::open(&csv(&folder, text), options).err().unwrap().to_string();
        error.rsplit_once("rows.csv: ").unwrap().1.to_owned()
    };
    let renamed = ReadOptions { event_timestamp: Some("at".into()), ..options() };
    assert_eq!(open("a,a\n1,2\n", &options()), "column `a` is there twice");
    assert_eq!(open("a,b\n1,2\n", &renamed), "no column `at`; there are a, b");
    let both = "it already has a column `event_timestamp` beside `at`";
    assert_eq!(open("at,event_timestamp\n2013-01-01,2013-01-01\n", &renamed), both);
    let list = Schema::new(vec![Field::new_list("a", Field::new("item", DataType::Float32, true), true)]);
    let lists = ReadOptions { types: Some(list), ..options() };
    assert_eq!(open("a\n1\n", &lists), "column `a` holds lists or bytes, which CSV cannot carry: use Parquet");
    let error = TableReader::open(Path::new("rows.txt"), &options()).err().unwrap();
    assert_eq!(error.to_string(), "rows.txt: the name must end in .parquet or .csv");
    let garbage = folder.path().join("rows.parquet");
    std::fs::write(&garbage, "not parquet at all").unwrap();
    assert!(TableReader::open(&garbage, &options()).is_err());
}

#[test]
fn a_row_that_does_not_fit_its_type_is_an_error_not_a_null() {
    let folder = TempDir::new().unwrap();
    let path = csv(&folder, "id\n1\n2\nx\n");
    let types = Schema::new(vec![Field::new("id", DataType::Int64, true)]);
    let reader = TableReader::open(&path, &ReadOptions { types: Some(types), ..options() }).unwrap();
    let outcomes: Vec<_> = reader.map(|batch| batch.map_err(|error| error.to_string())).take(2).collect();
    assert!(outcomes[0].is_ok());
    let error = outcomes[1].clone().unwrap_err();
    assert!(error.ends_with("rows.csv: line 4, column `id`: `x` is not Int64"), "{error}");
}

#[tokio::test]
async fn what_is_written_reads_back() {
    use futures::StreamExt;
    let folder = TempDir::new().unwrap();
    let rows = RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int64Array::from_iter_values(0..5)) as _, true),
        ("name", Arc::new(StringArray::from(vec![Some("a,b"), None, Some("\"q\""), Some("ü"), Some("x")])) as _, true),
        ("score", Arc::new(Float32Array::from(vec![Some(0.1), None, Some(-0.0), Some(1e-9), Some(3.0)])) as _, true),
    ])
    .unwrap();
    for name in ["rows.parquet", "rows.csv"] {
        let path = folder.path().join(name);
        let mut writer = TableWriter::create(&path, &rows.schema()).unwrap();
        writer.write(&rows).unwrap();
        assert!(!path.exists(), "a file under its name before it is whole");
        writer.finish().unwrap();
        let options = ReadOptions { types: Some(rows.schema().as_ref().clone()), ..options() };
        let reader = TableReader::open(&path, &options).unwrap();
        assert_eq!(reader.rows(), 5);
        let batches: Vec<_> = reader.into_stream().map(Result::unwrap).collect().await;
        let sizes: Vec<_> = batches.iter().map(RecordBatch::num_rows).collect();
        assert_eq!(sizes, [2, 2, 1], "{name}");
        let back = arrow_select::concat::concat_batches(&batches[0].schema(), &batches).unwrap();
        assert_eq!(back.column(0).as_primitive::<Int64Type>(), rows.column(0).as_primitive::<Int64Type>());
        assert_eq!(back.columns(), rows.columns(), "{name}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no partial file is left");
}

#[test]
fn a_file_given_up_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, true)]));
    drop(TableWriter::create(&folder.path().join("rows.parquet"), &schema).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
