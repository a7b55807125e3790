use super::*;
use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{ArrayRef, FixedSizeListArray, Int64Array, TimestampMicrosecondArray, TimestampNanosecondArray};
use cairn_proto::ErrorKind;
use cairn_storage::keys::{EntityKeys, push_order_key};
use cairn_storage::types::parse_type;
use datafusion::physical_plan::streaming::StreamingTableExec;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn field(name: &str, kind: &str) -> Field {
    Field { name: name.into(), r#type: Some(parse_type(kind).unwrap()), ..Field::default() }
}

/// View `v`: key `k` int64, features `x` int64 and `e`, an embedding of two.
fn wanted(path: &Path, sql: &str) -> Wanted {
    Wanted {
        view: "v".into(),
        join_keys: vec![field("k", "int64")],
        features: vec![field("x", "int64"), field("e", "list<float32>[2]")],
        files: FileSource { path: path.display().to_string(), sql: sql.into(), event_timestamp: String::new() },
    }
}

/// The same without the embedding, which CSV cannot carry.
fn plain(path: &Path, sql: &str) -> Wanted {
    let mut wanted = wanted(path, sql);
    wanted.features.truncate(1);
    wanted
}

/// (key, event time in microseconds, x), in the order of the file.
type Row = (i64, Option<i64>, i64);

fn batch(rows: &[Row]) -> RecordBatch {
    let pairs = rows.iter().map(|(_, _, x)| Some(vec![Some(*x as f32), None]));
    let columns: [(&str, ArrayRef); 4] = [
        ("k", Arc::new(Int64Array::from_iter_values(rows.iter().map(|(k, ..)| *k)))),
        (EVENT_TIMESTAMP, Arc::new(TimestampMicrosecondArray::from_iter(rows.iter().map(|(_, at, _)| *at)))),
        ("x", Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, _, x)| *x)))),
        ("e", Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(pairs, 2))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
}

fn write(path: &Path, batch: &RecordBatch, group_rows: usize) {
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group_rows)).build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

struct Bench {
    engine: BackfillEngine,
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spill_dir = folder.path().join("spill");
        let limits = SqlLimits { memory_bytes: 64 << 20, spill_bytes: 1 << 30, spill_dir, partitions: 1 };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        Self { engine: BackfillEngine::new(&limits).unwrap(), runtime, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self, wanted: &Wanted) -> Result<Source> {
        self.engine.open(wanted, true)
    }

    fn chunk(&self, source: &Source, times: Range<i64>, first: bool, batch_rows: usize) -> Result<Vec<RecordBatch>> {
        self.chunk_by(source, Order::Columns, times, first, batch_rows)
    }

    fn chunk_by(
        &self,
        source: &Source,
        order: Order,
        times: Range<i64>,
        first: bool,
        batch_rows: usize,
    ) -> Result<Vec<RecordBatch>> {
        let mut batches = Vec::new();
        self.runtime.block_on(source.chunk(times, first, order, batch_rows, |batch| {
            batches.push(batch);
            std::future::ready(Ok(true))
        }))?;
        Ok(batches)
    }

    fn refused(&self, wanted: &Wanted, kind: ErrorKind, message: &str) {
        let Err(error) = self.open(wanted) else { panic!("not refused: {message}") };
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(message), "{error}");
    }
}

fn rows_of(batches: &[RecordBatch]) -> Vec<Row> {
    let number = |batch: &RecordBatch, name: &str, row: usize| {
        let column = arrow_cast::cast(batch.column_by_name(name).unwrap(), &DataType::Int64).unwrap();
        let column = column.as_any().downcast_ref::<Int64Array>().unwrap().clone();
        arrow_array::Array::is_valid(&column, row).then(|| column.value(row))
    };
    let rows = |batch: &RecordBatch| -> Vec<Row> {
        let row = |row| {
            let event = number(batch, EVENT_TIMESTAMP, row);
            (number(batch, "k", row).unwrap(), event, number(batch, "x", row).unwrap())
        };
        (0..batch.num_rows()).map(row).collect()
    };
    batches.iter().flat_map(rows).collect()
}

/// Rows lie as their keys and times do, of equal ones the greatest first.
fn check_history(batches: &[RecordBatch]) {
    let keys = batches.iter().flat_map(|batch| {
        let keys = batch.column_by_name(ORDER_KEY).unwrap().as_binary::<i32>();
        keys.iter().map(|key| key.map(<[u8]>::to_vec)).collect::<Vec<_>>()
    });
    let found: Vec<_> = keys.zip(rows_of(batches)).collect();
    for (key, (k, event, _)) in &found {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![*k]));
        let entity = EntityKeys::encode(&[field("k", "int64")], &[column]).unwrap();
        let expected = event.map(|event_us| {
            let mut key = Vec::new();
            push_order_key(entity.get(0).unwrap(), event_us, event_us, &mut key);
            key
        });
        assert_eq!(*key, expected);
    }
    let lies = |it: &(Option<Vec<u8>>, Row)| (it.0.clone(), std::cmp::Reverse(it.1.2));
    assert!(found.is_sorted_by_key(lies));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever the files, their kind and their cut: the chunks hold every row of the interval once and no other, rows without a
    /// time are in the first, batches are of one size, and the same comes again.
    #[test]
    fn chunks_hold_every_row_once(
        rows in prop::collection::vec((0i64..5, prop::option::weighted(0.95, 0i64..100), 0i64..5), 1..200),
        (from, span, chunk) in (0i64..80, 1i64..60, 1i64..30),
        (group_rows, batch_rows, files) in (1usize..50, 1usize..40, 1usize..4),
        csv: bool,
        sql: bool,
        history: bool,
    ) {
        let parts = || rows.chunks(rows.len().div_ceil(files));
        // A column of a CSV file without any time says no type.
        prop_assume!(!csv || parts().all(|part| part.iter().any(|(_, at, _)| at.is_some())));
        let bench = Bench::new();
        let folder = bench.path("data");
        std::fs::create_dir(&folder).unwrap();
        for (at, part) in parts().enumerate() {
            if csv {
                let lines = part.iter().map(|(k, event, x)| {
                    let event = event.map(|at| format!("1970-01-01T00:00:00.{at:06}")).unwrap_or_default();
                    format!("{x},{event},{k}\n")
                });
                let text = "x,event_timestamp,k\n".to_owned() + &lines.collect::<String>();
                std::fs::write(folder.join(format!("{at}.csv")), text).unwrap();
            } else {
                write(&folder.join(format!("{at}.parquet")), &batch(part), group_rows);
            }
        }
        let sql = match (sql, csv) {
            (false, _) => "",
            (true, true) => "select k, x, arrow_cast(event_timestamp, 'Timestamp(Microsecond, None)') as event_timestamp from source",
            (true, false) => "with s as (select * from source) select k, x, event_timestamp, e from s",
        };
        let wanted = if csv { plain(&folder, sql) } else { wanted(&folder, sql) };
        let (one, other) = (bench.open(&wanted).unwrap(), bench.open(&wanted).unwrap());
        let to = from + span;
        let mut all = Vec::new();
        let mut start = from;
        while start < to {
            let times = start..(start + chunk).min(to);
            let order = if history { Order::History } else { Order::Columns };
            let batches = bench.chunk_by(&one, order, times.clone(), start == from, batch_rows).unwrap();
            let again = bench.chunk_by(&other, order, times.clone(), start == from, batch_rows).unwrap();
            prop_assert_eq!(&batches, &again);
            if history {
                check_history(&batches);
            }
            let full = batches.iter().rev().skip(1).all(|batch| batch.num_rows() == batch_rows);
            prop_assert!(full && batches.last().is_none_or(|last| last.num_rows() <= batch_rows));
            let found = rows_of(&batches);
            prop_assert!(found.iter().all(|(_, at, _)| at.map_or(start == from, |at| times.contains(&at))));
            all.extend(found);
            start = times.end;
        }
        let mut expected: Vec<Row> =
            rows.into_iter().filter(|(_, at, _)| at.is_none_or(|at| (from..to).contains(&at))).collect();
        all.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(all, expected);
    }
}

#[test]
fn row_groups_of_other_times_are_not_read() {
    let bench = Bench::new();
    let path = bench.path("a.parquet");
    let rows: Vec<Row> = (0..1_000).map(|at| (at % 7, Some(at), at)).collect();
    write(&path, &batch(&rows), 100);
    for sql in ["", "select k, x, e, event_timestamp from source where x >= 0"] {
        let source = bench.open(&wanted(&path, sql)).unwrap();
        let groups = |times: Range<i64>, first| {
            let rows = source.rows(times, first, Order::History).unwrap();
            let mut plan = bench.runtime.block_on(rows.create_physical_plan()).unwrap();
            while let Some(below) = plan.children().first().map(|below| Arc::clone(below)) {
                plan = below;
            }
            format!("{:?}", plan.downcast_ref::<StreamingTableExec>().unwrap().partitions())
        };
        let read = |groups: usize| format!("[1 files, {groups} row groups]");
        assert_eq!(groups(250..350, false), read(2), "{sql}");
        assert_eq!(groups(250..350, true), read(2), "no row group has a null time: {sql}");
        assert_eq!(groups(5_000..6_000, false), read(0), "{sql}");
        assert_eq!(groups(0..1_000, false), read(10), "{sql}");
    }
}

#[test]
fn times_of_any_unit_are_cut_at_the_same_place() {
    let bench = Bench::new();
    let path = bench.path("a.parquet");
    let nanos = TimestampNanosecondArray::from_iter_values([999, 1_000, 1_999, 2_000]);
    let columns: [(&str, ArrayRef); 3] = [
        ("k", Arc::new(Int64Array::from_iter_values(0..4))),
        (EVENT_TIMESTAMP, Arc::new(nanos)),
        ("x", Arc::new(Int64Array::from_iter_values(0..4))),
    ];
    write(&path, &RecordBatch::try_from_iter(columns).unwrap(), 2);
    let source = bench.open(&plain(&path, "")).unwrap();
    let keys = |times| -> Vec<i64> {
        rows_of(&bench.chunk(&source, times, false, 10).unwrap()).into_iter().map(|(k, ..)| k).collect()
    };
    assert_eq!(keys(0..1), [0]);
    assert_eq!(keys(1..2), [1, 2]);
    assert_eq!(keys(2..3), [3]);
    let second = |us| in_unit(us, &DataType::Timestamp(TimeUnit::Second, None)).unwrap();
    assert_eq!(second(1), ScalarValue::TimestampSecond(Some(1), None), "0 s is before 1 µs");
    assert_eq!(second(-1_000_001), ScalarValue::TimestampSecond(Some(-1), None));
}

#[test]
fn sources_that_do_not_fit_are_told() {
    use ErrorKind::{InvalidArgument as Invalid, Unavailable};
    let bench = Bench::new();
    let path = bench.path("a.parquet");
    write(&path, &batch(&[(1, Some(5), 7)]), 10);
    let sql = |sql: &str| wanted(&path, sql);
    bench.refused(&sql("select k, x as y, e, event_timestamp from source"), Invalid, "no column `x`, a feature");
    bench.refused(&sql("select x, e, event_timestamp from source"), Invalid, "no column `k`, a join key");
    bench.refused(&sql("select k, x, e from source"), Invalid, "no column `event_timestamp`, the event time");
    bench.refused(&sql("select *, 1 as more from source"), Invalid, "a column `more`, which is no join key");
    bench.refused(&sql("select k, e as x, e, event_timestamp from source"), Invalid, "has it as int64");
    let seconds = "select k, x, e, 5 as event_timestamp from source";
    bench.refused(&sql(seconds), Invalid, "`event_timestamp` of the source is Int64, and must be a timestamp");
    let clock = "select k, x, e, now() as event_timestamp from source";
    bench.refused(&sql(clock), Invalid, "the sql calls now(), which gives something else each time");
    let chance = "select k, x, e, event_timestamp from source where random() < 0.5";
    bench.refused(&sql(chance), Invalid, "the sql calls random()");
    bench.refused(&sql("select nothing from source"), Invalid, "nothing");
    bench.refused(&wanted(&bench.path("b.parquet"), ""), Unavailable, "b.parquet` cannot be read");
    bench.refused(&wanted(Path::new("/x/y.json"), ""), Unavailable, "cannot be read");

    let whole = std::fs::read(&path).unwrap();
    std::fs::write(bench.path("cut.parquet"), &whole[..whole.len() - 9]).unwrap();
    bench.refused(&wanted(&bench.path("cut.parquet"), ""), Invalid, "cut.parquet` is no whole Parquet file");
    std::fs::write(bench.path("odd.csv"), "k,x,event_timestamp\n1,2,2024-01-01\n1,oops,2024-01-01\n").unwrap();
    let source = bench.open(&plain(&bench.path("odd.csv"), "")).unwrap();
    let error = bench.chunk(&source, 0..i64::MAX, false, 10).unwrap_err();
    assert_eq!(error.kind(), Invalid);
    assert!(error.to_string().contains("odd.csv`, line 3, column `x`: what is there is no Int64"), "{error}");
    assert!(!error.to_string().contains("oops"), "{error}");
}

#[test]
fn sql_is_checked_without_files() {
    let tables = |sql: &str| check_sql(sql).map_err(|error| error.to_string());
    assert_eq!(tables("select * from source").unwrap(), ["source"]);
    assert_eq!(tables("with s as (select 1) select * from s join Source").unwrap(), ["source"]);
    assert_eq!(tables("select * from a.b where x in (select x from source)").unwrap(), ["source", "a.b"]);
    for (sql, message) in [
        ("selec * from source", "SQL statement"),
        ("drop table source", "is no SELECT"),
        ("insert into source values (1)", "is no SELECT"),
        ("explain select * from source", "is no SELECT"),
        ("select 1; select 2", "statement"),
        ("", ""),
    ] {
        let error = tables(sql).unwrap_err();
        assert!(error.contains(message), "{sql}: {error}");
    }
}

#[test]
fn a_file_that_changes_is_named() {
    let bench = Bench::new();
    let path = bench.path("a.parquet");
    let rows: Vec<Row> = (0..100).map(|at| (at, Some(at), at)).collect();
    write(&path, &batch(&rows), 10);
    let source = bench.open(&wanted(&path, "")).unwrap();
    let text = path.display().to_string();
    let before = bench.engine.fingerprint(&source).unwrap();
    bench.engine.unchanged(&text, &before).unwrap();
    let told = || bench.engine.unchanged(&text, &before).unwrap_err();
    let replace = |bytes: &[u8]| {
        std::fs::write(bench.path("new"), bytes).unwrap();
        std::fs::rename(bench.path("new"), &path).unwrap();
    };
    let whole = std::fs::read(&path).unwrap();
    replace(&whole[..whole.len() / 2]);
    assert!(told().to_string().contains("was truncated"), "{}", told());
    let mut other = whole.clone();
    other[whole.len() / 2] ^= 1;
    replace(&other);
    assert!(told().to_string().contains("changed during the backfill"), "{}", told());
    std::fs::remove_file(&path).unwrap();
    assert_eq!(told().kind(), ErrorKind::Unavailable);
    replace(&whole);
    bench.engine.unchanged(&text, &before).unwrap();
}

#[test]
fn the_first_null_has_a_place() {
    let bench = Bench::new();
    let folder = bench.path("data");
    std::fs::create_dir(&folder).unwrap();
    write(&folder.join("a.parquet"), &batch(&[(1, Some(5), 7)]), 10);
    write(&folder.join("b.parquet"), &batch(&[(1, Some(5), 7), (1, None, 7)]), 10);
    let source = bench.open(&wanted(&folder, "")).unwrap();
    let (file, row) = source.first_null(EVENT_TIMESTAMP).unwrap().unwrap();
    assert!(file.ends_with("/b.parquet") && row == 2, "{file} {row}");
    assert_eq!(source.first_null("k").unwrap(), None);
}
