//! Parquet and CSV files as record batches, and back.
//!
//! Always true: the same file read with the same batch size gives the same batches, so that (producer, sequence) names
//! the same rows in every run; a written file appears under its name only when it is whole.
//!
//! CSV has no types: a column takes the type the caller knows for its name, else the narrowest of integer, float,
//! boolean, timestamp and text that fits every row of the file.

use crate::artifacts::partial_name;
use crate::command::{CREATED_TIMESTAMP, EVENT_TIMESTAMP};
use crate::error::{Error, Result};
use arrow_array::{RecordBatch, RecordBatchReader};
use arrow_csv::reader::Format;
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use futures::Stream;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Batches read ahead of whoever sends them.
const BATCHES_AHEAD: usize = 4;

/// What a file holds, by the end of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// Apache Parquet; written with zstd.
    Parquet,
    /// Comma-separated text with a header line.
    Csv,
}

impl FileFormat {
    /// The format a file name stands for.
    ///
    /// # Errors
    /// `InvalidArgument` for names that end in neither `.parquet` nor `.csv`.
    pub fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("parquet" | "pq") => Ok(Self::Parquet),
            Some("csv") => Ok(Self::Csv),
            _ => Err(Error::file(path, "the name must end in .parquet or .csv")),
        }
    }
}

/// How a file is read.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// Rows in a batch, the last one aside.
    pub batch_rows: usize,
    /// Types for CSV columns of these names.
    pub types: Option<Schema>,
    /// Column that is passed on under the name `event_timestamp`.
    pub event_timestamp: Option<String>,
}

/// An open file: its columns and its rows, in file order.
pub struct TableReader {
    path: PathBuf,
    schema: SchemaRef,
    rows: u64,
    batches: Box<dyn Iterator<Item = Result<RecordBatch, arrow_schema::ArrowError>> + Send>,
}

impl TableReader {
    /// Opens a Parquet or CSV file. CSV is read through once to learn its types and rows.
    ///
    /// # Errors
    /// `InvalidArgument` naming the file, and the column where one is at fault.
    pub fn open(path: &Path, options: &ReadOptions) -> Result<Self> {
        let mut reader = match FileFormat::of(path)? {
            FileFormat::Parquet => open_parquet(path, options)?,
            FileFormat::Csv => open_csv(path, options)?,
        };
        let names: Vec<_> = reader.schema.fields().iter().map(|field| field.name().as_str()).collect();
        let mut seen = BTreeSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(**name)) {
            return Err(Error::file(path, format!("column `{twice}` is there twice")));
        }
        if let Some(column) = options.event_timestamp.as_deref().filter(|column| *column != EVENT_TIMESTAMP) {
            if !seen.contains(column) {
                return Err(Error::file(path, format!("no column `{column}`; there are {}", names.join(", "))));
            }
            if seen.contains(EVENT_TIMESTAMP) {
                let both = format!("it already has a column `{EVENT_TIMESTAMP}` beside `{column}`");
                return Err(Error::file(path, both));
            }
            reader.rename(column, EVENT_TIMESTAMP);
        }
        Ok(reader)
    }

    /// The columns of every batch.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Rows in the file.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The batches as a stream, read ahead on a thread of their own. Needs a tokio runtime.
    pub fn into_stream(self) -> impl Stream<Item = Result<RecordBatch>> + Send + 'static {
        let (batches, stream) = mpsc::channel(BATCHES_AHEAD);
        tokio::task::spawn_blocking(move || {
            for batch in self {
                let last = batch.is_err();
                if batches.blocking_send(batch).is_err() || last {
                    return;
                }
            }
        });
        ReceiverStream::new(stream)
    }

    fn rename(&mut self, from: &str, to: &str) {
        let renamed = |field: &Arc<Field>| match field.name() == from {
            true => Arc::new(field.as_ref().clone().with_name(to)),
            false => Arc::clone(field),
        };
        let schema = Arc::new(Schema::new(self.schema.fields().iter().map(renamed).collect::<Vec<_>>()));
        self.schema = Arc::clone(&schema);
        let batches = std::mem::replace(&mut self.batches, Box::new(std::iter::empty()));
        let renamed = move |batch: RecordBatch| RecordBatch::try_new(Arc::clone(&schema), batch.columns().to_vec());
        self.batches = Box::new(batches.map(move |batch| batch.and_then(&renamed)));
    }
}

impl Iterator for TableReader {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.batches.next()?;
        Some(batch.map_err(|error| Error::file(&self.path, legible(&error.to_string(), &self.schema))))
    }
}

/// The reader's complaint about a cell of a CSV file, by its line and column name; any other one as it is.
fn legible(complaint: &str, schema: &Schema) -> String {
    let cell = || {
        let rest = complaint.strip_prefix("Parser error: Error while parsing value '")?;
        let (value, rest) = rest.split_once("' as type '")?;
        let (kind, rest) = rest.split_once("' for column ")?;
        let (column, rest) = rest.split_once(" at line ")?;
        let (line, _) = rest.split_once(". Row data: ")?;
        let column = schema.fields().get(column.parse::<usize>().ok()?)?.name();
        // The reader counts lines from 0.
        let line = line.parse::<u64>().ok()? + 1;
        Some(format!("line {line}, column `{column}`: `{value}` is not {kind}"))
    };
    cell().unwrap_or_else(|| complaint.to_owned())
}

fn open_parquet(path: &Path, options: &ReadOptions) -> Result<TableReader> {
    let file = File::open(path).map_err(|error| Error::file(path, error))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| Error::file(path, error))?;
    let rows = builder.metadata().file_metadata().num_rows();
    let reader =
        builder.with_batch_size(options.batch_rows.max(1)).build().map_err(|error| Error::file(path, error))?;
    Ok(TableReader {
        path: path.to_owned(),
        // Without the file's own metadata (pandas keeps kilobytes there), as the batches come.
        schema: reader.schema(),
        rows: u64::try_from(rows).unwrap_or_default(),
        batches: Box::new(reader),
    })
}

fn open_csv(path: &Path, options: &ReadOptions) -> Result<TableReader> {
    let failed = |error: arrow_schema::ArrowError| Error::file(path, error);
    let mut file = File::open(path).map_err(|error| Error::file(path, error))?;
    let (found, rows) =
        Format::default().with_header(true).infer_schema(BufReader::new(&mut file), None).map_err(failed)?;
    let fields = found.fields().iter().map(|field| csv_field(path, field, options)).collect::<Result<Vec<_>>>()?;
    let schema = Arc::new(Schema::new(fields));
    file.rewind().map_err(|error| Error::file(path, error))?;
    let reader = arrow_csv::ReaderBuilder::new(Arc::clone(&schema))
        .with_header(true)
        .with_batch_size(options.batch_rows.max(1))
        .build(file)
        .map_err(failed)?;
    Ok(TableReader { path: path.to_owned(), schema, rows: rows as u64, batches: Box::new(reader) })
}

/// The type a CSV column is read as.
fn csv_field(path: &Path, found: &Field, options: &ReadOptions) -> Result<Field> {
    let name = found.name();
    let is_event_time = name == EVENT_TIMESTAMP || options.event_timestamp.as_deref() == Some(name);
    let known = options.types.as_ref().and_then(|types| types.field_with_name(name).ok());
    let data_type = match (known, found.data_type()) {
        (Some(known), _) => known.data_type().clone(),
        (None, _) if is_event_time || name == CREATED_TIMESTAMP => utc_micros(),
        (None, DataType::Timestamp(_, _)) => utc_micros(),
        (None, DataType::Null) => DataType::Utf8,
        (None, other) => other.clone(),
    };
    if data_type.is_nested() || matches!(data_type, DataType::Binary | DataType::LargeBinary) {
        return Err(Error::file(
            path,
            format!("column `{name}` holds lists or bytes, which CSV cannot carry: use Parquet"),
        ));
    }
    Ok(Field::new(name, data_type, true))
}

fn utc_micros() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// A file being written; it gets its name with [`TableWriter::finish`].
pub struct TableWriter {
    path: PathBuf,
    partial: PathBuf,
    sink: Option<Sink>,
}

enum Sink {
    Parquet(Box<ArrowWriter<BufWriter<File>>>),
    Csv(Box<arrow_csv::Writer<BufWriter<File>>>),
}

impl TableWriter {
    /// Begins a file of these columns.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that says no format, or a folder that cannot be written.
    pub fn create(path: &Path, schema: &SchemaRef) -> Result<Self> {
        let format = FileFormat::of(path)?;
        let partial = partial_name(path);
        let file = BufWriter::new(File::create(&partial).map_err(|error| Error::file(path, error))?);
        let sink = match format {
            FileFormat::Csv => Sink::Csv(Box::new(arrow_csv::WriterBuilder::new().with_header(true).build(file))),
            FileFormat::Parquet => {
                let level = ZstdLevel::default();
                let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
                let writer = ArrowWriter::try_new(file, Arc::clone(schema), Some(properties));
                Sink::Parquet(Box::new(writer.map_err(|error| Error::file(path, error))?))
            }
        };
        Ok(Self { path: path.to_owned(), partial, sink: Some(sink) })
    }

    /// Adds rows.
    ///
    /// # Errors
    /// `InvalidArgument` for a full disk, or a column CSV cannot carry.
    pub fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        match &mut self.sink {
            Some(Sink::Parquet(writer)) => writer.write(rows).map_err(|error| Error::file(&self.path, error)),
            Some(Sink::Csv(writer)) => writer.write(rows).map_err(|error| Error::file(&self.path, error)),
            None => Ok(()),
        }
    }

    /// Writes what is left and gives the file its name.
    ///
    /// # Errors
    /// As [`TableWriter::write`].
    pub fn finish(mut self) -> Result<()> {
        let failed = |error: std::io::Error| Error::file(&self.path, error);
        let mut file = match self.sink.take() {
            Some(Sink::Parquet(writer)) => writer.into_inner().map_err(|error| Error::file(&self.path, error))?,
            Some(Sink::Csv(writer)) => writer.into_inner(),
            None => return Ok(()),
        };
        file.flush().map_err(failed)?;
        drop(file);
        std::fs::rename(&self.partial, &self.path).map_err(failed)
    }
}

impl Drop for TableWriter {
    fn drop(&mut self) {
        if self.sink.take().is_some() {
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

#[cfg(test)]
mod tests;
