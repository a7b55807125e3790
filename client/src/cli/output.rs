//! How answers look: aligned columns without lines for people, one JSON document for programs.

use super::args::Format;
use super::failure::{Failure, Outcome};
use arrow_array::RecordBatch;
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_json::writer::{JsonArray, WriterBuilder};
use cairn_client::Timestamp;
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::Value;
use std::io::{ErrorKind, Write};

/// More columns than this do not fit a line …
const COLUMNS_WIDE: usize = 12;
/// … and at most so many rows stand beside each other instead.
const ROWS_TURNED: usize = 4;

/// Prints one answer. A reader that has closed its end (`| head`) has seen enough, which is no failure.
pub fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    let ended = if text.ends_with('\n') || text.is_empty() { "" } else { "\n" };
    match out.write_all(text.as_bytes()).and_then(|()| out.write_all(ended.as_bytes())).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::input(format!("standard output cannot be written: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints an answer in the form asked for.
pub fn answer(format: Format, table: impl FnOnce() -> String, json: impl FnOnce() -> Value) -> Outcome {
    match format {
        Format::Table => print(&table()),
        Format::Json => print(&serde_json::to_string_pretty(&json()).unwrap_or_default()),
    }
}

/// Columns of text; those of `numbers` stand to the right.
pub fn columns(header: &[&str], numbers: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let side = |position: usize| match header.get(position).is_some_and(|name| numbers.contains(name)) {
        true => CellAlignment::Right,
        false => CellAlignment::Left,
    };
    let line = |cells: Vec<String>| -> Vec<Cell> {
        let aligned = |(position, cell)| Cell::new_owned(cell).set_alignment(side(position));
        cells.into_iter().enumerate().map(aligned).collect()
    };
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(line(header.iter().map(|name| (*name).to_owned()).collect()));
    for cells in rows {
        table.add_row(line(cells));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

/// Record batches as columns of text.
pub fn batches(rows: &[RecordBatch]) -> Result<String, Failure> {
    let Some(first) = rows.first() else { return Ok(String::new()) };
    let schema = first.schema();
    let header: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let is_number = |field: &&std::sync::Arc<arrow_schema::Field>| field.data_type().is_numeric();
    let numbers: Vec<_> = schema.fields().iter().filter(is_number).map(|field| field.name().as_str()).collect();
    let options = FormatOptions::default().with_null("null");
    let mut cells = Vec::new();
    for batch in rows {
        let formatters = batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options));
        let formatters = formatters.collect::<Result<Vec<_>, _>>().map_err(unprintable)?;
        cells.extend((0..batch.num_rows()).map(|row| formatters.iter().map(|f| f.value(row).to_string()).collect()));
    }
    if header.len() > COLUMNS_WIDE && cells.len() <= ROWS_TURNED {
        return Ok(turned(&header, &cells));
    }
    Ok(columns(&header, &numbers, cells))
}

/// A line for each column, when there are many of them and few rows.
fn turned(header: &[&str], rows: &[Vec<String>]) -> String {
    let lines = header.iter().enumerate().map(|(position, name)| {
        let values = rows.iter().map(|row| row.get(position).cloned().unwrap_or_default());
        std::iter::once((*name).to_owned()).chain(values).collect()
    });
    let names: Vec<_> = (1..=rows.len()).map(|row| format!("row {row}")).collect();
    let head: Vec<_> = std::iter::once("column").chain(names.iter().map(String::as_str)).collect();
    columns(&head, &[], lines)
}

/// Record batches as an array of objects; nulls are written out.
pub fn batches_json(rows: &[RecordBatch]) -> Result<Value, Failure> {
    let mut bytes = Vec::new();
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(&mut bytes);
    for batch in rows {
        writer.write(batch).map_err(unprintable)?;
    }
    writer.finish().map_err(unprintable)?;
    drop(writer);
    if bytes.is_empty() {
        return Ok(Value::Array(Vec::new()));
    }
    serde_json::from_slice(&bytes).map_err(|error| Failure::input(format!("the answer cannot be shown: {error}")))
}

fn unprintable(error: arrow_schema::ArrowError) -> Failure {
    Failure::input(format!("the answer cannot be shown: {error}"))
}

/// Microseconds since 1970 as RFC 3339; nothing for a time never set.
pub fn time(us: i64) -> String {
    if us == 0 { String::new() } else { Timestamp(us).to_string() }
}

/// As [`time`], for JSON.
pub fn time_json(us: i64) -> Value {
    if us == 0 { Value::Null } else { Value::String(Timestamp(us).to_string()) }
}

/// Bytes as people read them.
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// `1 row`, `2 rows`, `336,776 rows`.
pub fn count(number: u64, one: &str) -> String {
    format!("{} {one}{}", indicatif::HumanCount(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{BinaryArray, Float32Array, Int64Array, StringArray, TimestampMicrosecondArray};
    use expect_test::expect;
    use std::sync::Arc;

    fn rows() -> RecordBatch {
        let at = TimestampMicrosecondArray::from(vec![Some(1_357_041_780_000_000), None]).with_timezone("UTC");
        RecordBatch::try_from_iter_with_nullable([
            ("driver_id", Arc::new(Int64Array::from(vec![1, 1002])) as _, true),
            ("name", Arc::new(StringArray::from(vec![Some("Zoë"), None])) as _, true),
            ("rating", Arc::new(Float32Array::from(vec![Some(4.5), None])) as _, true),
            ("at", Arc::new(at) as _, true),
            ("raw", Arc::new(BinaryArray::from(vec![Some(b"\x01\xff" as &[u8]), None])) as _, true),
        ])
        .unwrap()
    }

    #[test]
    fn rows_stand_in_columns() {
        expect![[r#"
            driver_id  name  rating  at                    raw
                    1  Zoë      4.5  2013-01-01T12:03:00Z  01ff
                 1002  null    null  null                  null
        "#]]
        .assert_eq(&batches(&[rows()]).unwrap());
    }

    #[test]
    fn a_few_wide_rows_are_turned() {
        let header = ["driver_id", "rating"];
        let rows = [vec!["1".to_owned(), "4.5".to_owned()], vec!["1002".to_owned(), "null".to_owned()]];
        expect![[r#"
            column     row 1  row 2
            driver_id  1      1002
            rating     4.5    null
        "#]]
        .assert_eq(&turned(&header, &rows));
    }

    #[test]
    fn rows_are_json_objects() {
        expect![[r#"[{"at":"2013-01-01T12:03:00Z","driver_id":1,"name":"Zoë","rating":4.5,"raw":"01ff"},{"at":null,"driver_id":1002,"name":null,"rating":null,"raw":null}]"#]]
        .assert_eq(&batches_json(&[rows()]).unwrap().to_string());
        assert_eq!(batches_json(&[]).unwrap().to_string(), "[]");
    }

    #[test]
    fn an_empty_table_shows_its_columns() {
        expect!["NAME  VERSION\n"].assert_eq(&columns(&["NAME", "VERSION"], &["VERSION"], []));
    }

    #[test]
    fn counts_agree_with_their_nouns() {
        assert_eq!(count(1, "row"), "1 row");
        assert_eq!(count(336_776, "row"), "336,776 rows");
    }
}
