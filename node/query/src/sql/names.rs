//! Which tables and functions a query may name.
//!
//! ```text
//! cairn.<project>.<view>                       the newest row of each entity, of the view's newest version that is filled
//! latest('view@2'), latest('project.view')     the same of a version, or of another project
//! history('view')                              every row ever stored, deletions among them
//! as_of('view', time)                          the newest row of each entity at an event time
//! as_of('view', time, known)                   … of those that were committed by then
//! cairn.system.<table>                         definitions, models, nodes
//! cairn.information_schema.*                   what there is
//! ```

use super::parameters::Bound;
use super::rows::{Rows, ViewTable};
use super::{SYSTEM, external, system};
use crate::source::ShardedSource;
use crate::{Error, Result};
use arrow_schema::{Schema, SchemaRef};
use async_trait::async_trait;
use cairn_storage::catalog::{Catalog, Reference};
use cairn_storage::meta::Meta;
use datafusion::catalog::{
    CatalogProvider, SchemaProvider, Session, TableFunctionArgs, TableFunctionImpl, TableProvider,
};
use datafusion::common::{DFSchema, DataFusionError, ScalarValue};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_plan::ExecutionPlan;
use std::fmt;
use std::sync::Arc;

/// What a query may see: one moment of the catalog, and the rows.
#[derive(Clone)]
pub(super) struct Schemas {
    pub catalog: Arc<Catalog>,
    pub source: Arc<ShardedSource>,
    /// What is not in the catalog: there may be much of it.
    pub meta: Option<Arc<Meta>>,
    /// Of names without one.
    pub project: String,
    pub bound: Bound,
}

impl fmt::Debug for Schemas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schemas").field("project", &self.project).finish_non_exhaustive()
    }
}

impl Schemas {
    /// `view`, `view@2`, `project.view@2`.
    fn view(&self, name: &str, rows: Rows) -> Result<Arc<dyn TableProvider>> {
        let (project, name) = name.rsplit_once('.').unwrap_or((&self.project, name));
        let Reference { view, version, feature: None } = Reference::parse(name)? else {
            return Err(Error::InvalidArgument(format!(
                "`{name}` names a feature; name its view, and select the feature"
            )));
        };
        let here = self.catalog.project(project)?;
        let waits = match version {
            Some(_) => None,
            None => here.served_feature_view(&view).err(),
        };
        let version = version.or_else(|| Some(here.served_feature_view(&view).ok()?.version));
        let table = ViewTable::new(&self.catalog, project, &view, version, rows, &self.source)?;
        Ok(match waits {
            Some(why) => Arc::new(Waiting { schema: table.schema(), why: why.to_string() }),
            None => Arc::new(table),
        })
    }
}

impl Schemas {
    /// (schema, table, columns) of all.
    pub fn tables(&self) -> Result<Vec<(String, String, Schema)>> {
        let mut found = Vec::new();
        for project in self.catalog.projects().filter(|project| project.name() != SYSTEM) {
            for view in project.feature_views() {
                let name = project.name();
                let table = ViewTable::new(&self.catalog, name, &view.name, None, Rows::Latest, &self.source)?;
                found.push((name.to_owned(), view.name.clone(), table.schema().as_ref().clone()));
            }
        }
        for table in system::names() {
            let columns = system::columns(&self.catalog, &self.source, table);
            found.push((SYSTEM.to_owned(), table.to_owned(), columns));
        }
        Ok(found)
    }
}

/// A view none of whose versions is filled: its columns are there to be seen, and it tells why there are no rows.
#[derive(Debug)]
struct Waiting {
    schema: SchemaRef,
    why: String,
}

#[async_trait]
impl TableProvider for Waiting {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        _: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        Err(external(Error::NotFound(self.why.clone())))
    }
}

impl CatalogProvider for Schemas {
    fn schema_names(&self) -> Vec<String> {
        let projects = self.catalog.projects().map(|project| project.name().to_owned());
        projects.filter(|name| name != SYSTEM).chain([SYSTEM.to_owned()]).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        if name == SYSTEM {
            return Some(Arc::new(System(self.clone())));
        }
        self.catalog.project(name).ok()?;
        Some(Arc::new(Views(Self { project: name.to_owned(), ..self.clone() })))
    }
}

/// The feature views of a project.
#[derive(Debug)]
struct Views(Schemas);

#[async_trait]
impl SchemaProvider for Views {
    fn table_names(&self) -> Vec<String> {
        let project = self.0.catalog.project(&self.0.project);
        project.map(|it| it.feature_views().map(|view| view.name.clone()).collect()).unwrap_or_default()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        match self.table_exist(name) {
            true => self.0.view(name, Rows::Latest).map(Some).map_err(external),
            false => Ok(None),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        let project = self.0.catalog.project(&self.0.project);
        project.is_ok_and(|it| it.feature_view(name, None).is_ok())
    }
}

#[derive(Debug)]
struct System(Schemas);

#[async_trait]
impl SchemaProvider for System {
    fn table_names(&self) -> Vec<String> {
        system::names().map(str::to_owned).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        system::table(&self.0.catalog, &self.0.source, self.0.meta.as_ref(), name)
    }

    fn table_exist(&self, name: &str) -> bool {
        system::names().any(|table| table == name)
    }
}

#[derive(Debug)]
pub(super) struct Latest(pub Schemas);
#[derive(Debug)]
pub(super) struct History(pub Schemas);
#[derive(Debug)]
pub(super) struct AsOf(pub Schemas);

impl TableFunctionImpl for Latest {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        let [view] = args.exprs() else { return Err(usage("latest('view') or latest('view@2')")) };
        self.0.view(&text(view)?, Rows::Latest).map_err(external)
    }
}

impl TableFunctionImpl for History {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        let [view] = args.exprs() else { return Err(usage("history('view') or history('view@2')")) };
        self.0.view(&text(view)?, Rows::History).map_err(external)
    }
}

impl TableFunctionImpl for AsOf {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        let (view, event_us, known_us) = match args.exprs() {
            [view, event] => (view, micros(event, &self.0.bound)?, i64::MAX),
            [view, event, known] => (view, micros(event, &self.0.bound)?, micros(known, &self.0.bound)?),
            _ => return Err(usage("as_of('view', time) or as_of('view', time, known)")),
        };
        self.0.view(&text(view)?, Rows::AsOf { event_us, known_us }).map_err(external)
    }
}

fn usage(form: &str) -> DataFusionError {
    external(Error::InvalidArgument(format!("write it as {form}")))
}

fn text(expr: &Expr) -> Result<String, DataFusionError> {
    match expr {
        Expr::Literal(ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)), _) => Ok(text.clone()),
        _ => Err(usage("'view', 'view@2' or 'project.view@2', in single quotes, as the first argument")),
    }
}

/// A constant time: `'2025-01-01'`, `TIMESTAMP '…'`, `now() - INTERVAL '1 day'`, `$1`. Microseconds, UTC.
fn micros(expr: &Expr, bound: &Bound) -> Result<i64, DataFusionError> {
    let bad = || {
        let written = text(expr).map_or_else(|_| expr.to_string(), |text| format!("'{text}'"));
        external(Error::InvalidArgument(format!(
            "{written} is no constant time; write one as '2026-05-01T12:00:00Z' or now() - interval '1 day'"
        )))
    };
    let context = SimplifyContext::builder().with_schema(Arc::new(DFSchema::empty())).with_current_time().build();
    let simplifier = ExprSimplifier::new(context);
    let expr = &bound.constant_time(expr).map_err(external)?;
    let constant = simplifier.coerce(expr.clone(), &DFSchema::empty()).and_then(|it| simplifier.simplify(it));
    let Ok(Expr::Literal(value, _)) = constant else { return Err(bad()) };
    match value.cast_to(&crate::sql::rows::time_type()) {
        Ok(ScalarValue::TimestampMicrosecond(Some(time_us), _)) => Ok(time_us),
        _ => Err(bad()),
    }
}
