//! What meta keeps and the catalog does not, as tables, read a page at a time: `system.datasets`, and `system.lineage`, which has
//! every edge once, from what was read to what was made of it.

use super::{Table, external, hash};
use crate::{Error, Result};
use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::{DataType, SchemaRef};
use cairn_proto::record::v1::{Dataset, LineageEdge};
use cairn_storage::meta::Meta;
use datafusion::catalog::TableProvider;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use std::fmt;
use std::sync::Arc;

pub(super) const TABLES: &[(&str, Stored)] = &[("datasets", Stored::Datasets), ("lineage", Stored::Lineage)];

#[derive(Debug, Clone, Copy)]
pub(super) enum Stored {
    Datasets,
    Lineage,
}

/// Where a page ended.
#[derive(Default)]
enum Place {
    #[default]
    Begin,
    Dataset(Box<Dataset>),
    Edge(LineageEdge),
}

impl Stored {
    pub(super) fn schema(self) -> arrow_schema::Schema {
        let empty = match self {
            Self::Datasets => datasets(&[]),
            Self::Lineage => lineage(&[]),
        };
        arrow_schema::Schema::new(empty.fields)
    }

    /// The rows behind `place`, and where they end; `None` when there are no more.
    fn page(self, meta: &Meta, place: &Place) -> Result<Option<(Table, Place)>> {
        Ok(match self {
            Self::Datasets => {
                let after = if let Place::Dataset(dataset) = place { Some(&**dataset) } else { None };
                let mut page = meta.datasets_page(after)?;
                let table = datasets(&page);
                page.pop().map(|last| (table, Place::Dataset(Box::new(last))))
            }
            Self::Lineage => {
                let mut page = meta.edges_page(if let Place::Edge(edge) = place { Some(edge) } else { None })?;
                let table = lineage(&page);
                page.pop().map(|last| (table, Place::Edge(last)))
            }
        })
    }
}

/// The table of this name, if it is one of [`TABLES`]; without `meta` it has no rows.
pub(super) fn table(name: &str, meta: Option<&Arc<Meta>>) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
    let Some((_, what)) = TABLES.iter().find(|(table, _)| *table == name) else { return Ok(None) };
    let schema = Arc::new(what.schema());
    let pages = Pages { what: *what, schema: Arc::clone(&schema), meta: meta.map(Arc::clone) };
    Ok(Some(Arc::new(StreamingTable::try_new(schema, vec![Arc::new(pages)])?)))
}

struct Pages {
    what: Stored,
    schema: SchemaRef,
    meta: Option<Arc<Meta>>,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("what", &self.what).finish_non_exhaustive()
    }
}

impl PartitionStream for Pages {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (what, schema) = (self.what, Arc::clone(&self.schema));
        let begin = self.meta.clone().map(|meta| (meta, Place::Begin));
        let batches = futures::stream::try_unfold(begin, move |at| {
            let page = at.map(|(meta, place)| what.page(&meta, &place).map(|page| page.map(|page| (page, meta))));
            let batch = page.transpose().map_err(external).and_then(|page| {
                let Some(((Table { columns, .. }, place), meta)) = page.flatten() else { return Ok(None) };
                let batch = RecordBatch::try_new(Arc::clone(&schema), columns);
                Ok(Some((batch.map_err(|error| external(Error::internal(error)))?, Some((meta, place)))))
            });
            std::future::ready(batch)
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches))
    }
}

fn datasets(rows: &[Dataset]) -> Table {
    let each = || rows.iter();
    let flag = |get: fn(&Dataset) -> bool| Arc::new(each().map(|it| Some(get(it))).collect::<BooleanArray>());
    Table::default()
        .text("project", each().map(|it| it.project.clone()))
        .text("dataset", each().map(|it| it.name.clone()))
        .text("feature_service", each().map(|it| it.feature_service.clone()))
        .version("feature_service_version", each().map(|it| it.feature_service_version))
        .text("features", each().map(|it| it.features.join(", ")))
        .text("spine", each().map(|it| it.spine.as_ref().map(|spine| hash(&spine.root)).unwrap_or_default()))
        .text("spine_file", each().map(|it| it.spine_file.clone()))
        .time("known_at", each().map(|it| it.known_us))
        .column("ignore_created", DataType::Boolean, flag(|it| it.ignore_created))
        .time("created_as_of", each().map(|it| it.created_as_of_us.unwrap_or_default()))
        .text("content", each().map(|it| hash(&it.content)))
        .text("format", each().map(|it| it.file_format.clone()))
        .count("rows", each().map(|it| it.rows as i64))
        .text("token", each().map(|it| it.token.clone()))
        .text("author", each().map(|it| it.author.clone()))
        .text("description", each().map(|it| it.description.clone()))
        .time("created_at", each().map(|it| it.created_us))
}

fn lineage(rows: &[LineageEdge]) -> Table {
    Table::default()
        .text("source", rows.iter().map(|it| it.from.clone()))
        .text("target", rows.iter().map(|it| it.to.clone()))
        .text("kind", rows.iter().map(|it| it.kind.clone()))
        .time("made_at", rows.iter().map(|it| it.at_us))
}
