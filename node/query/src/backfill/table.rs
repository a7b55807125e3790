//! The rows of files as one table, in file order and one partition: a scan gives the same rows in the same order always.
//!
//! Row groups of Parquet whose statistics leave out every row that a query asks for are not read, and columns that it does
//! not name are not decoded.

use super::files::{Format, FoundFile, unavailable};
use crate::sql::external;
use crate::{Error, Result};
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, UInt64Array, new_null_array};
use arrow_csv::reader::Format as CsvFormat;
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, DFSchema, DataFusionError, ScalarValue};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_optimizer::pruning::{PruningPredicate, PruningPredicateBuilder};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const BATCH_ROWS: usize = 8_192;
/// Batches the reader may be ahead of the query.
const BATCHES_AHEAD: usize = 2;
/// Rows of a CSV file that tell the types of its columns where a first look is enough.
const FIRST_ROWS: usize = 10_000;

pub(super) struct SourceTable {
    files: Vec<OpenFile>,
    /// All columns of all files; a file without one has nulls there.
    schema: SchemaRef,
}

impl fmt::Debug for SourceTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files", self.files.len())
    }
}

struct OpenFile {
    path: PathBuf,
    name: String,
    /// As its reader has it.
    schema: SchemaRef,
    /// `None` for CSV.
    footer: Option<ArrowReaderMetadata>,
}

impl SourceTable {
    /// `types`: of CSV columns by name; those of others are found from their values.
    pub fn open(found: &[FoundFile], types: Option<&Schema>, thorough: bool) -> Result<Self> {
        let files = found.iter().map(|file| OpenFile::open(file, types, thorough)).collect::<Result<Vec<_>>>()?;
        let mut at: BTreeMap<&str, usize> = BTreeMap::new();
        let mut fields: Vec<(Field, &str)> = Vec::new();
        for file in &files {
            for field in file.schema.fields() {
                match at.get(field.name().as_str()).and_then(|at| fields.get_mut(*at)) {
                    None => {
                        at.insert(field.name(), fields.len());
                        // pandas keeps kilobytes in the metadata.
                        fields.push((Field::new(field.name(), field.data_type().clone(), true), &file.name));
                    }
                    Some((known, _)) if known.data_type() == field.data_type() => {}
                    Some((known, of)) => {
                        return Err(Error::InvalidArgument(format!(
                            "column `{}` is {} in file `{of}` and {} in file `{}`; a source's files have equal types",
                            field.name(),
                            known.data_type(),
                            field.data_type(),
                            file.name
                        )));
                    }
                }
            }
        }
        let schema = Arc::new(Schema::new(fields.into_iter().map(|(field, _)| field).collect::<Vec<_>>()));
        Ok(Self { files, schema })
    }

    /// File and row, from 1, of the first null in a column.
    pub fn first_null(&self, column: &str) -> Result<Option<(String, u64)>> {
        let schema = Arc::new(Schema::new(vec![self.schema.field_with_name(column).map_err(Error::internal)?.clone()]));
        for file in &self.files {
            let mut before = 0;
            let mut found = None;
            file.read(&schema, None, &mut |batch| {
                let at = batch.column(0).logical_nulls().and_then(|nulls| nulls.iter().position(|valid| !valid));
                found = at.map(|at| before + at as u64 + 1);
                before += batch.num_rows() as u64;
                found.is_none()
            })?;
            if let Some(row) = found {
                return Ok(Some((file.name.clone(), row)));
            }
        }
        Ok(None)
    }
}

#[async_trait]
impl TableProvider for SourceTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>, DataFusionError> {
        // They save work here; the query applies them too.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let schema = match projection {
            Some(projection) => Arc::new(self.schema.project(projection)?),
            None => Arc::clone(&self.schema),
        };
        // What cannot be used to leave row groups out is no error: they are read then.
        let pruning = conjunction(filters.iter().cloned()).and_then(|filter| {
            let known = DFSchema::try_from(Arc::clone(&self.schema)).ok()?;
            let filter = state.create_physical_expr(filter, &known).ok()?;
            PruningPredicateBuilder::new().with_file_schema(Arc::clone(&self.schema)).try_build(filter).ok()
        });
        let files = self.files.iter().map(|file| {
            let groups = pruning.as_ref().and_then(|pruning| file.groups(pruning));
            Part { file: file.again(), groups }
        });
        let scan = Scan { parts: files.collect::<Vec<_>>().into(), schema: Arc::clone(&schema) };
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![Arc::new(scan)], None, [], false, None)?))
    }
}

/// One file of a scan, and the row groups that are read; all of them without.
struct Part {
    file: OpenFile,
    groups: Option<Vec<usize>>,
}

struct Scan {
    parts: Arc<[Part]>,
    schema: SchemaRef,
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = self.parts.iter().filter_map(|part| part.groups.as_ref().map(Vec::len));
        write!(f, "{} files, {} row groups", self.parts.len(), groups.sum::<usize>())
    }
}

impl PartitionStream for Scan {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (parts, schema) = (Arc::clone(&self.parts), Arc::clone(&self.schema));
        let mut stream = RecordBatchReceiverStream::builder(Arc::clone(&schema), BATCHES_AHEAD);
        let batches = stream.tx();
        stream.spawn_blocking(move || {
            let mut send = |batch| batches.blocking_send(Ok(batch)).is_ok();
            for part in parts.iter() {
                if !part.file.read(&schema, part.groups.as_deref(), &mut send).map_err(external)? {
                    break;
                }
            }
            Ok(())
        });
        stream.build()
    }
}

impl OpenFile {
    fn open(found: &FoundFile, types: Option<&Schema>, thorough: bool) -> Result<Self> {
        let FoundFile { path, name, .. } = found;
        let file = File::open(path).map_err(|error| unavailable(path, &error))?;
        let (schema, footer) = match found.format {
            Format::Parquet => {
                let footer = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())
                    .map_err(|error| parquet_error(path, &error))?;
                (Arc::clone(footer.schema()), Some(footer))
            }
            Format::Csv => (csv_schema(path, file, types, thorough)?, None),
        };
        let mut names = HashSet::new();
        if let Some(twice) = schema.fields().iter().find(|field| !names.insert(field.name())) {
            return Err(Error::InvalidArgument(format!("file `{name}` has two columns `{}`", twice.name())));
        }
        Ok(Self { path: path.clone(), name: name.clone(), schema, footer })
    }

    fn again(&self) -> Self {
        let Self { path, name, schema, footer } = self;
        Self { path: path.clone(), name: name.clone(), schema: Arc::clone(schema), footer: footer.clone() }
    }

    /// Row groups that may hold rows which count; `None` = all.
    fn groups(&self, pruning: &PruningPredicate) -> Option<Vec<usize>> {
        let footer = self.footer.as_ref()?;
        let statistics = Statistics { footer, groups: footer.metadata().row_groups() };
        let kept = pruning.prune(&statistics).ok()?;
        Some(kept.into_iter().enumerate().filter_map(|(at, kept)| kept.then_some(at)).collect())
    }

    /// Hands batches of `schema` to `send` until that says `false`, and says what it said last. Blocks.
    fn read(
        &self,
        schema: &SchemaRef,
        groups: Option<&[usize]>,
        send: &mut dyn FnMut(RecordBatch) -> bool,
    ) -> Result<bool> {
        if groups.is_some_and(<[usize]>::is_empty) {
            return Ok(true);
        }
        let mut wanted: Vec<usize> =
            schema.fields().iter().filter_map(|field| self.schema.index_of(field.name()).ok()).collect();
        wanted.sort_unstable();
        let file = File::open(&self.path).map_err(|error| unavailable(&self.path, &error))?;
        let batches: Box<dyn Iterator<Item = Result<RecordBatch>>> = match &self.footer {
            Some(footer) => {
                let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, footer.clone());
                let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
                let mut builder = builder.with_projection(mask).with_batch_size(BATCH_ROWS);
                if let Some(groups) = groups {
                    builder = builder.with_row_groups(groups.to_vec());
                }
                let reader = builder.build().map_err(|error| parquet_error(&self.path, &error))?;
                Box::new(reader.map(|batch| batch.map_err(|error| self.damaged(&error))))
            }
            None => {
                let reader = arrow_csv::ReaderBuilder::new(Arc::clone(&self.schema))
                    .with_header(true)
                    .with_batch_size(BATCH_ROWS)
                    .with_projection(wanted)
                    .build(BufReader::new(file))
                    .map_err(|error| self.damaged(&error))?;
                Box::new(reader.map(|batch| batch.map_err(|error| self.damaged(&error))))
            }
        };
        for batch in batches {
            let batch = batch?;
            let column = |field: &Arc<Field>| -> ArrayRef {
                let found = batch.column_by_name(field.name());
                found.cloned().unwrap_or_else(|| new_null_array(field.data_type(), batch.num_rows()))
            };
            let columns = schema.fields().iter().map(column).collect();
            let exact = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            let batch = RecordBatch::try_new_with_options(Arc::clone(schema), columns, &exact);
            if !send(batch.map_err(|error| self.damaged(&error))?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn damaged(&self, error: &ArrowError) -> Error {
        if let ArrowError::IoError(_, error) = error
            && error.kind() != std::io::ErrorKind::UnexpectedEof
        {
            return unavailable(&self.path, error);
        }
        let told = error.to_string();
        Error::InvalidArgument(match cell(&told, &self.schema) {
            Some(cell) => format!("file `{}`, {cell}", self.name),
            // Arrow shows the row; values are not for messages.
            None => {
                let told = told.split("Row data").next().unwrap_or_default();
                format!("file `{}` is damaged, truncated or changed while it was read: {}", self.name, told.trim())
            }
        })
    }
}

/// Where the CSV reader found a cell that does not fit, without what is in it.
fn cell(told: &str, schema: &Schema) -> Option<String> {
    let (_, rest) = told.split_once("' as type '")?;
    let (kind, rest) = rest.split_once("' for column ")?;
    let (column, rest) = rest.split_once(" at line ")?;
    let line: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let column = schema.fields().get(column.parse::<usize>().ok()?)?.name();
    // The reader counts lines from 0.
    let line = line.parse::<u64>().ok()? + 1;
    Some(format!("line {line}, column `{column}`: what is there is no {kind}"))
}

fn parquet_error(path: &Path, error: &ParquetError) -> Error {
    if let ParquetError::External(inner) = error
        && let Some(inner) = inner.downcast_ref::<std::io::Error>()
        && inner.kind() != std::io::ErrorKind::UnexpectedEof
    {
        return unavailable(path, inner);
    }
    Error::InvalidArgument(format!("file `{}` is no whole Parquet file; is it truncated? {error}", path.display()))
}

fn csv_schema(path: &Path, file: File, types: Option<&Schema>, thorough: bool) -> Result<SchemaRef> {
    let rows = (!thorough).then_some(FIRST_ROWS);
    let found = CsvFormat::default().with_header(true).infer_schema(BufReader::new(file), rows);
    let (found, _) = found.map_err(|error| match error {
        ArrowError::IoError(_, error) => unavailable(path, &error),
        error => Error::InvalidArgument(format!("file `{}` is no CSV: {error}", path.display())),
    })?;
    let typed = |field: &Arc<Field>| {
        let known = types.and_then(|types| types.field_with_name(field.name()).ok());
        let kind = match (known, field.data_type()) {
            (Some(known), _) => known.data_type().clone(),
            (None, DataType::Timestamp(..)) => super::time_type(),
            (None, DataType::Null) => DataType::Utf8,
            (None, other) => other.clone(),
        };
        if kind.is_nested() || matches!(kind, DataType::Binary) {
            return Err(Error::InvalidArgument(format!(
                "file `{}`: column `{}` holds lists or bytes, which CSV cannot carry; use Parquet",
                path.display(),
                field.name()
            )));
        }
        Ok(Field::new(field.name(), kind, true))
    };
    Ok(Arc::new(Schema::new(found.fields().iter().map(typed).collect::<Result<Vec<_>>>()?)))
}

/// What the footer of a Parquet file says of its row groups.
struct Statistics<'a> {
    footer: &'a ArrowReaderMetadata,
    groups: &'a [RowGroupMetaData],
}

impl Statistics<'_> {
    fn of(&self, column: &Column) -> Option<StatisticsConverter<'_>> {
        let parquet = self.footer.parquet_schema();
        // A file may lack the column: its rows have nulls there, and nothing is known of that.
        self.footer.schema().field_with_name(&column.name).ok()?;
        let found = StatisticsConverter::try_new(&column.name, self.footer.schema(), parquet).ok()?;
        Some(found.with_missing_null_counts_as_zero(false))
    }
}

impl PruningStatistics for Statistics<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.of(column)?.row_group_mins(self.groups).ok()
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.of(column)?.row_group_maxes(self.groups).ok()
    }

    fn num_containers(&self) -> usize {
        self.groups.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let counts = self.of(column)?.row_group_null_counts(self.groups).ok()?;
        Some(Arc::new(counts))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        let rows = self.groups.iter().map(|group| u64::try_from(group.num_rows()).unwrap_or_default());
        Some(Arc::new(UInt64Array::from_iter_values(rows)))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
