//! Group 0: the state machine that keeps definitions, models, aliases, lineage, nodes and the slot map.
//!
//! In reading order: `apply` (a command in, an outcome out), `cluster`, `slots`, `definitions`, `registry`,
//! `datasets`, `backtests`, `jobs` (what each change does), `lineage` (what depends on what), `rows` (how it is stored),
//! `canonical` (one encoding),
//! `names`.
//!
//! Always true:
//! - the outcome and the rows of an entry follow from the entries before it, and from nothing else (I3)
//! - definition versions, model versions and alias moves are only ever added (I1, I5)
//! - rows and position change in one atomic write; the catalog in memory is those rows

mod apply;
mod backtests;
mod canonical;
mod cluster;
mod datasets;
mod definitions;
mod jobs;
mod lineage;
mod names;
mod registry;
mod rows;
mod slots;
#[cfg(test)]
mod tests;

pub use apply::{COMMAND_VERSION, version_of};
pub use backtests::{BACKTEST_METRICS_MAX, BACKTEST_MODELS_MAX, BACKTEST_WINDOWS_MAX, backtest_windows};
pub use cluster::state_name;
pub use definitions::preview;
pub use jobs::{JOBS_MAX, chunk_count, job_state_name, missing_chunks};
pub use lineage::LineageNode;
pub use names::{check_column_name, check_name};
pub use rows::is_newer;
pub use slots::slot_runs;

pub(crate) use rows::Row;

use crate::catalog::Catalog;
use crate::digest::{self, Digest, Digests, Span, digest};
use crate::engine::{Cf, Db, Engine, Family, Format, Group, IterOptions, Layout, end_of_prefix};
use crate::replica::{Applied, Entry, Replica};
use crate::{Error, Fatal, Result};
use cairn_proto::record::v1::{
    AliasMove, Audit, Backtest, Dataset, LineageEdge, MetaCommand, TimeTick, meta_command::Change,
};
use parking_lot::{Mutex, RwLock};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// Depth of a lineage question that names none.
pub const LINEAGE_DEPTH: u32 = 10;
/// Datasets in one list.
pub const DATASETS_LISTED_MAX: usize = 10_000;
/// Backtests in one list.
pub const BACKTESTS_LISTED_MAX: usize = 1_000;
/// Rows that a list without an end is read by; one may have a mebibyte.
const PAGE_ROWS: usize = if cfg!(test) { 2 } else { 64 };
/// Edges in one lineage answer.
pub const LINEAGE_EDGES_MAX: usize = 10_000;

static FORMAT: Format =
    Format { kind: "meta", version: 1, families: &[Family { name: "rows", layout: Layout::Small }] };
const ROWS: Cf = Cf(0);

/// Version byte of the position row.
const POSITION_VERSION: u8 = 1;

/// The meta group on this node.
pub struct Meta {
    group: Group,
    live: RwLock<Live>,
    /// Held through an apply or an install.
    changing: Mutex<()>,
    digests: Digests,
}

/// What the rows say, in memory.
#[derive(Debug, Clone, Default)]
struct Live {
    catalog: Arc<Catalog>,
    applied: Applied,
    position: Option<Vec<u8>>,
}

impl Meta {
    /// Looks whether this version can open the group in `dir`, if there is one. Writes nothing.
    ///
    /// # Errors
    /// As [`Meta::open`].
    pub fn check(dir: &Path) -> Result<()> {
        Group::check(dir, &FORMAT)
    }

    /// Opens the group in `dir`, or makes it.
    ///
    /// # Errors
    /// `InvalidArgument` for data written by a newer version; `Corrupt`; `Io`.
    pub fn open(engine: &Arc<Engine>, dir: &Path) -> Result<Arc<Self>> {
        let group = Group::open(engine, dir, &FORMAT)?;
        let live = load(&group.db())?;
        Ok(Arc::new(Self { group, live: RwLock::new(live), changing: Mutex::new(()), digests: Digests::default() }))
    }

    /// What is known right now. Hold it through one request, so that the request sees one moment.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.live.read().catalog.clone()
    }

    /// Every move of a model's aliases, oldest first; of one alias, if named.
    ///
    /// # Errors
    /// `NotFound` for an unknown project or model; `Corrupt`, `Io`.
    pub fn alias_history(&self, project: &str, model: &str, alias: Option<&str>) -> Result<Vec<AliasMove>> {
        self.catalog().project(project)?.model(model)?;
        let mut moves = Vec::new();
        visit_rows(&self.group.db(), &rows::alias_history_prefix(project, model), &mut |row| {
            if let Row::AliasHistory(moved) = row
                && alias.is_none_or(|alias| alias == moved.alias)
            {
                moves.push(moved);
            }
            Ok(())
        })?;
        Ok(moves)
    }

    /// # Errors
    /// `NotFound` with a near name, for an unknown project too; `InvalidArgument` for what is no name; `Corrupt`, `Io`.
    pub fn dataset(&self, project: &str, name: &str) -> Result<Dataset> {
        self.catalog().project(project)?;
        check_name("a dataset", name)?;
        if let Some(value) = self.group.db().get(ROWS, &rows::dataset_key(project, name))?
            && let Some(Row::Dataset(dataset)) = Row::decode(&rows::dataset_key(project, name), &value)?
        {
            return Ok(*dataset);
        }
        let (known, _) = self.first_datasets(project)?;
        let names = known.iter().map(|dataset| dataset.name.as_str());
        let hint = crate::near::hint(name, names, "the project has none yet (`cairn dataset create`)");
        Err(Error::NotFound(format!("dataset `{name}` not found in project `{project}`; {hint}")))
    }

    /// The datasets of a project, by name; at most [`DATASETS_LISTED_MAX`].
    ///
    /// # Errors
    /// `NotFound` for an unknown project; `TooLarge`; `Corrupt`, `Io`.
    pub fn datasets(&self, project: &str) -> Result<Vec<Dataset>> {
        self.catalog().project(project)?;
        match self.first_datasets(project)? {
            (datasets, true) => Ok(datasets),
            (_, false) => Err(Error::TooLarge(format!(
                "project `{project}` has more than {DATASETS_LISTED_MAX} datasets; ask for one by name"
            ))),
        }
    }

    /// The first of them, and whether these are all.
    fn first_datasets(&self, project: &str) -> Result<(Vec<Dataset>, bool)> {
        let (mut datasets, mut all) = (Vec::new(), true);
        self.group.db().visit_prefix(ROWS, &rows::datasets_prefix(project), &mut |key, value| {
            all = datasets.len() < DATASETS_LISTED_MAX;
            if !all {
                return ControlFlow::Break(());
            }
            datasets.push(Row::decode(key, value));
            ControlFlow::Continue(())
        })?;
        let dataset = |row| match row {
            Ok(Some(Row::Dataset(dataset))) => Some(Ok(*dataset)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        };
        Ok((datasets.into_iter().filter_map(dataset).collect::<Result<_>>()?, all))
    }

    /// The next datasets of all projects, by project and name, behind the last one of those before; none at the end.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn datasets_page(&self, after: Option<&Dataset>) -> Result<Vec<Dataset>> {
        let after = after.map(|dataset| rows::dataset_key(&dataset.project, &dataset.name));
        let rows = page(&self.group.db(), rows::DATASETS, after)?.into_iter();
        Ok(rows.filter_map(|row| if let Row::Dataset(dataset) = row { Some(*dataset) } else { None }).collect())
    }

    /// The next edges of the whole lineage, by where they come from, behind the last one of those before; none at the end.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn edges_page(&self, after: Option<&LineageEdge>) -> Result<Vec<LineageEdge>> {
        let after = after.map(|edge| Row::LineageDown(edge.clone()).key());
        let rows = page(&self.group.db(), rows::EDGES, after)?.into_iter();
        Ok(rows.filter_map(|row| if let Row::LineageDown(edge) = row { Some(edge) } else { None }).collect())
    }

    /// One backtest, with its windows.
    ///
    /// # Errors
    /// `NotFound`, for an unknown project too; `Corrupt`, `Io`.
    pub fn backtest(&self, project: &str, id: u64) -> Result<Backtest> {
        self.catalog().project(project)?;
        let db = self.group.db();
        let row = |key: Vec<u8>| -> Result<Option<Row>> {
            db.get(ROWS, &key)?.map_or(Ok(None), |value| Row::decode(&key, &value))
        };
        match (row(rows::backtest_key(project, id))?, row(rows::backtest_windows_key(project, id))?) {
            (Some(Row::Backtest(backtest)), Some(Row::BacktestWindows(windows))) => {
                backtests::whole(*backtest, windows)
            }
            (None, _) => Err(Error::NotFound(format!(
                "backtest {id} not found in project `{project}`; `cairn backtest list` tells which there are"
            ))),
            _ => Err(Error::Corrupt(format!("backtest {id} is damaged"))),
        }
    }

    /// The numbers of all backtests of a project, the newest first.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn backtest_ids(&self, project: &str) -> Result<Vec<u64>> {
        let mut ids = Vec::new();
        self.group.db().visit_prefix(ROWS, &rows::backtests_prefix(project), &mut |key, _| {
            ids.extend(rows::backtest_id(key));
            ControlFlow::Continue(())
        })?;
        Ok(ids)
    }

    /// The newest backtests, without their windows, and whether there are older ones: of a project, of a model in it, or of a
    /// version of that. At most [`BACKTESTS_LISTED_MAX`].
    ///
    /// # Errors
    /// `NotFound` for an unknown project, model or version; `Corrupt`, `Io`.
    pub fn backtests(
        &self,
        project: &str,
        of: Option<(&str, Option<u32>)>,
        limit: usize,
    ) -> Result<(Vec<Backtest>, bool)> {
        let limit = limit.min(BACKTESTS_LISTED_MAX);
        let catalog = self.catalog();
        let here = catalog.project(project)?;
        let db = self.group.db();
        let Some((model, version)) = of else {
            let (found, more) = first_rows(&db, &rows::backtests_prefix(project), limit)?;
            let found = found.into_iter().filter_map(|row| match row {
                Row::Backtest(backtest) => Some(*backtest),
                _ => None,
            });
            return Ok((found.collect(), more));
        };
        let versions: Vec<u32> = match version {
            Some(version) => vec![here.model_version(model, version)?.version],
            None => here.model(model)?.versions().iter().map(|it| it.version).collect(),
        };
        let mut ids = BTreeSet::new();
        let mut more = false;
        for version in versions {
            let prefix = rows::backtests_of_version_prefix(project, model, version);
            let (found, older) = first_rows(&db, &prefix, limit)?;
            more |= older;
            ids.extend(found.into_iter().filter_map(|row| match row {
                Row::BacktestOf(of) => Some(of.id),
                _ => None,
            }));
            // Only the newest are kept, so that many versions take no more memory than one.
            while ids.len() > limit {
                ids.pop_first();
                more = true;
            }
        }
        let mut backtests = Vec::with_capacity(ids.len());
        for id in ids.into_iter().rev() {
            let key = rows::backtest_key(project, id);
            if let Some(value) = db.get(ROWS, &key)?
                && let Some(Row::Backtest(backtest)) = Row::decode(&key, &value)?
            {
                backtests.push(*backtest);
            }
        }
        Ok((backtests, more))
    }

    /// The edges reachable from `node`, nearest first: what it was made from (`up`), or what was made from it.
    /// `depth` counts edges from `node`; 0 = [`LINEAGE_DEPTH`].
    ///
    /// # Errors
    /// `NotFound` for a node without any edge; `TooLarge` above [`LINEAGE_EDGES_MAX`]; `Corrupt`, `Io`.
    pub fn lineage(&self, node: &str, up: bool, depth: u32) -> Result<Vec<LineageEdge>> {
        if node.contains('\0') {
            return Err(lineage::not_found(node));
        }
        let db = self.group.db();
        let depth = if depth == 0 { LINEAGE_DEPTH } else { depth };
        let mut edges = Vec::new();
        let mut seen = BTreeSet::from([node.to_owned()]);
        let mut level = vec![node.to_owned()];
        for _ in 0..depth {
            let mut next = Vec::new();
            for node in &level {
                visit_rows(&db, &rows::lineage_prefix(node, up), &mut |row| {
                    let (Row::LineageDown(edge) | Row::LineageUp(edge)) = row else { return Ok(()) };
                    let other = if up { &edge.from } else { &edge.to };
                    if seen.insert(other.clone()) {
                        next.push(other.clone());
                    }
                    if edges.len() >= LINEAGE_EDGES_MAX {
                        return Err(Error::TooLarge(format!(
                            "the lineage of `{node}` has more than {LINEAGE_EDGES_MAX} edges; ask with a smaller depth"
                        )));
                    }
                    edges.push(edge);
                    Ok(())
                })?;
            }
            if next.is_empty() {
                break;
            }
            level = next;
        }
        if edges.is_empty() {
            let mut any = false;
            visit_rows(&db, &rows::lineage_prefix(node, !up), &mut |_| {
                any = true;
                Ok(())
            })?;
            if !any {
                return Err(lineage::not_found(node));
            }
        }
        Ok(edges)
    }

    /// BLAKE3 of all rows but the position: equal on replicas that applied the same entries.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn checksum(&self) -> Result<[u8; 32]> {
        digest(&self.group.db().snapshot(), &[every_row()], |_| {})
    }
}

/// All rows but what each node keeps for itself.
fn every_row() -> Span {
    Span { skip: Some(rows::POSITION_KEY), ..Span::all(ROWS) }
}

/// Whether a command asks for a digest.
fn is_audit(command: &[u8]) -> bool {
    command.len() <= digest::COMMAND_BYTES_MAX
        && MetaCommand::decode(command)
            .is_ok_and(|command| matches!(command.change, Some(Change::TimeTick(TimeTick { audit: Some(_) }))))
}

impl Replica for Meta {
    fn apply(&self, entries: &[Entry<'_>], position: &[u8]) -> Result<Vec<Vec<u8>>, Fatal> {
        let _changing = self.changing.lock();
        let before = self.live.read().clone();
        let db = self.group.db();
        let mut applied = before.applied;
        let mut working = Working { db: &db, catalog: Catalog::clone(&before.catalog), changes: BTreeMap::new() };
        let mut outcomes = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.index <= applied.index {
                outcomes.push(Vec::new());
                continue;
            }
            applied.index = entry.index;
            outcomes.push(match entry.command {
                Some(command) => apply::apply(&mut working, &mut applied, command)?,
                None => Vec::new(),
            });
        }
        if applied == before.applied && !entries.is_empty() {
            return Ok(outcomes); // all replayed: the position that goes with them is behind ours
        }
        let Working { catalog, changes, .. } = working;
        let catalog = if changes.is_empty() { before.catalog } else { Arc::new(catalog) };
        let mut batch = db.batch()?;
        for (key, value) in &changes {
            match value {
                Some(value) => batch.put(ROWS, key, value),
                None => batch.delete(ROWS, key),
            }
        }
        batch.put(ROWS, rows::POSITION_KEY, &encode_position(applied, position));
        db.write(batch)?;
        *self.live.write() = Live { catalog, applied, position: Some(position.to_vec()) };
        if let Some(last) = entries.last()
            && last.index > before.applied.index
            && last.command.is_some_and(is_audit)
        {
            self.digests.take(db.clone(), last.index, vec![every_row()]);
        }
        Ok(outcomes)
    }

    fn position(&self) -> Option<Vec<u8>> {
        self.live.read().position.clone()
    }

    fn applied(&self) -> Applied {
        self.live.read().applied
    }

    fn damage(&self) -> Option<String> {
        self.group.db().damage().map(str::to_owned)
    }

    fn condemn(&self, why: &str) {
        self.group.db().condemn(why);
    }

    fn audit(&self, _round: u64, now_us: i64) -> Option<Vec<u8>> {
        let change = Some(Change::TimeTick(TimeTick { audit: Some(Audit::default()) }));
        let command =
            MetaCommand { version: COMMAND_VERSION, proposed_at_us: now_us, change, ..MetaCommand::default() };
        Some(command.encode_to_vec())
    }

    fn is_audit(&self, command: &[u8]) -> bool {
        is_audit(command)
    }

    fn digests(&self) -> Vec<Digest> {
        self.digests.list()
    }

    fn checkpoint(&self, dir: &Path) -> Result<Vec<u8>, Fatal> {
        let inside = self.group.checkpoint(dir, read_position)?;
        Ok(inside.map(|(_, position)| position).unwrap_or_default())
    }

    fn verify(&self, dir: &Path) -> Result<(), Fatal> {
        Ok(self.group.verify(dir)?)
    }

    fn install(&self, dir: &Path) -> Result<(), Fatal> {
        let _changing = self.changing.lock();
        let live = self.group.install(dir, load)?;
        *self.live.write() = live;
        Ok(())
    }
}

/// Rows and catalog while a batch of entries is applied; nothing of it is visible before the write.
struct Working<'a> {
    db: &'a Db,
    catalog: Catalog,
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Working<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        if let Some(changed) = self.changes.get(key) {
            return Ok(changed.clone());
        }
        Ok(self.db.get(ROWS, key)?.map(|value| value.to_vec()))
    }

    fn row(&self, key: &[u8]) -> Result<Option<Row>> {
        self.get(key)?.map_or(Ok(None), |value| Row::decode(key, &value))
    }

    fn put(&mut self, row: &Row) -> Result<()> {
        let key = row.key();
        if row.keeps_first() && self.get(&key)?.is_some() {
            return Ok(());
        }
        self.catalog.take(row)?;
        self.changes.insert(key, Some(row.value()));
        Ok(())
    }

    fn delete(&mut self, key: Vec<u8>) {
        self.changes.insert(key, None);
    }
}

fn load(db: &Db) -> Result<Live> {
    let mut catalog = Catalog::default();
    for (lower, upper) in [(Vec::new(), rows::catalog_end()), rows::catalog_rest()] {
        let upper = Some(upper);
        let mut iter = db.iter(ROWS, IterOptions { upper, fill_cache: false, ..IterOptions::default() })?;
        iter.seek(&lower)?;
        while let Some((key, value)) = iter.entry() {
            if key != rows::POSITION_KEY
                && let Some(row) = Row::decode(key, value)?
            {
                catalog.take(&row)?;
            }
            iter.advance()?;
        }
    }
    let (applied, position) =
        read_position(db)?.map_or_else(Default::default, |(applied, position)| (applied, Some(position)));
    Ok(Live { catalog: Arc::new(catalog), applied, position })
}

/// The first rows under a prefix, and whether there are more.
fn first_rows(db: &Db, prefix: &[u8], limit: usize) -> Result<(Vec<Row>, bool)> {
    let (mut found, mut more) = (Vec::new(), false);
    db.visit_prefix(ROWS, prefix, &mut |key, value| {
        more = found.len() >= limit;
        if more {
            return ControlFlow::Break(());
        }
        found.push(Row::decode(key, value));
        ControlFlow::Continue(())
    })?;
    Ok((found.into_iter().filter_map(Result::transpose).collect::<Result<_>>()?, more))
}

/// The first rows with `prefix` behind the key `after`.
fn page(db: &Db, prefix: &[u8], after: Option<Vec<u8>>) -> Result<Vec<Row>> {
    let mut iter = db.iter(ROWS, IterOptions { upper: end_of_prefix(prefix), ..IterOptions::default() })?;
    // The smallest key above it.
    let from = after.map_or(prefix.to_vec(), |key| [key, vec![0]].concat());
    iter.seek(&from)?;
    let mut rows = Vec::new();
    while rows.len() < PAGE_ROWS
        && let Some((key, value)) = iter.entry()
    {
        rows.extend(Row::decode(key, value)?);
        iter.advance()?;
    }
    Ok(rows)
}

fn visit_rows(db: &Db, prefix: &[u8], visit: &mut dyn FnMut(Row) -> Result<()>) -> Result<()> {
    let mut result = Ok(());
    db.visit_prefix(ROWS, prefix, &mut |key, value| {
        result = Row::decode(key, value).and_then(|row| row.map_or(Ok(()), &mut *visit));
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    result
}

fn encode_position(applied: Applied, position: &[u8]) -> Vec<u8> {
    let mut value = vec![POSITION_VERSION];
    value.extend(applied.index.to_be_bytes());
    value.extend(applied.time_us.to_be_bytes());
    value.extend(position);
    value
}

fn read_position(db: &Db) -> Result<Option<(Applied, Vec<u8>)>> {
    let Some(value) = db.get(ROWS, rows::POSITION_KEY)? else { return Ok(None) };
    let rest = rows::payload(&value)?;
    let numbers = rest.split_first_chunk::<8>().and_then(|(index, rest)| Some((index, rest.split_first_chunk::<8>()?)));
    let Some((index, (time, position))) = numbers else {
        return Err(Error::Corrupt("the position of the meta group is damaged".to_owned()));
    };
    let applied = Applied { index: u64::from_be_bytes(*index), time_us: i64::from_be_bytes(*time) };
    Ok(Some((applied, position.to_vec())))
}
