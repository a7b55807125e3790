//! Backtests: how model versions did on the past, kept as evidence. Every one is kept and none ever changes, so that what
//! led to a promotion can be told, and a promotion can demand it.

use super::Row;
use super::apply::{Answer, Context};
use super::lineage::{Edges, LineageNode};
use super::names::{check_column_name, check_name};
use crate::{Error, Result};
use cairn_proto::record::v1::meta_outcome::Outcome;
use cairn_proto::record::v1::{Backtest, BacktestModel, BacktestOf, BacktestScores, BacktestWindows, RecordBacktest};
use std::collections::BTreeSet;

/// Model versions beside each other in one backtest.
pub const BACKTEST_MODELS_MAX: usize = 8;
/// Windows of one backtest, counted over all its models.
pub const BACKTEST_WINDOWS_MAX: usize = 4_000;
/// Metrics asked for beyond those that are always there.
pub const BACKTEST_METRICS_MAX: usize = 16;
/// All of a backtest, bytes.
const BACKTEST_BYTES_MAX: usize = 2 << 20;

pub fn record(context: &Context<'_>, ask: &RecordBacktest) -> Answer {
    let mut backtest = ask.backtest.clone().unwrap_or_default();
    check(&backtest)?;
    let project = backtest.project.clone();
    let here = context.catalog.project(&project)?;
    backtest.id = context.index;
    backtest.created_us = context.now_us;
    let id = backtest.id;
    let to = LineageNode::Backtest { project: &project, id };
    let mut edges = Edges::new(context.index, context.now_us);
    let spine = backtest.spine.as_ref().map(|spine| &spine.root[..]).unwrap_or_default();
    edges.add(LineageNode::Artifact { root: spine }, to, "spine_of");
    let mut windows = Vec::new();
    let mut rows = Vec::new();
    for it in &mut backtest.models {
        let (model, version) = (it.model.clone(), it.version);
        let registered = here.model_version(&model, version)?;
        let service = (registered.feature_service.as_str(), registered.feature_service_version);
        if service != (it.feature_service.as_str(), it.feature_service_version) {
            return Err(Error::InvalidArgument(format!(
                "model version `{model}@{version}` reads feature service `{}@{}`, and the backtest was made with `{}@{}`",
                service.0, service.1, it.feature_service, it.feature_service_version
            )));
        }
        edges.add(LineageNode::ModelVersion { project: &project, model: &model, version }, to, "backtested");
        windows.append(&mut it.windows);
        rows.push(Row::BacktestOf(BacktestOf { project: project.clone(), model, version, id }));
    }
    rows.push(Row::BacktestWindows(BacktestWindows { project: project.clone(), id, windows }));
    rows.push(Row::Backtest(Box::new(backtest.clone())));
    rows.extend(edges.into_rows());
    Ok((Outcome::BacktestRecorded(backtest), rows))
}

/// A backtest with its windows where they belong.
///
/// # Errors
/// `Corrupt` when they are not as many as its models have.
pub fn whole(mut backtest: Backtest, windows: BacktestWindows) -> Result<Backtest> {
    let count = backtest.models.len();
    let mut windows = windows.windows;
    if count == 0 || !windows.len().is_multiple_of(count) {
        return Err(Error::Corrupt(format!("the windows of backtest {} are damaged", backtest.id)));
    }
    let each = windows.len() / count;
    for model in backtest.models.iter_mut().rev() {
        model.windows = windows.split_off(windows.len() - each);
    }
    Ok(backtest)
}

fn check(backtest: &Backtest) -> Result<()> {
    check_name("a project", &backtest.project)?;
    let wrong = |what: String| Err(Error::InvalidArgument(format!("a backtest needs {what}")));
    let bytes = prost::Message::encoded_len(backtest);
    if bytes > BACKTEST_BYTES_MAX {
        return Err(Error::TooLarge(format!(
            "the record of the backtest has {bytes} bytes; the limit is {BACKTEST_BYTES_MAX}: take longer windows, or \
             fewer models or metrics"
        )));
    }
    if backtest.spine.as_ref().is_none_or(|spine| spine.root.len() != 32) {
        return wrong("the artifact of its spine; upload the file first".to_owned());
    }
    if backtest.content.len() != 32 {
        return wrong("the BLAKE3 of what was scored (32 bytes)".to_owned());
    }
    let (from_us, to_us, window_us) = (backtest.from_us, backtest.to_us, backtest.window_us);
    let Some(windows) = backtest_windows(from_us, to_us, window_us) else {
        return wrong("an interval that ends after it begins, and windows that fit in it".to_owned());
    };
    let models = backtest.models.len();
    let all = windows.len().saturating_mul(models);
    if models == 0 || models > BACKTEST_MODELS_MAX || all > BACKTEST_WINDOWS_MAX {
        return wrong(format!("1 to {BACKTEST_MODELS_MAX} models with at most {BACKTEST_WINDOWS_MAX} windows in all"));
    }
    if backtest.metrics.len() > BACKTEST_METRICS_MAX {
        return wrong(format!("at most {BACKTEST_METRICS_MAX} metrics"));
    }
    let mut seen = BTreeSet::new();
    for metric in &backtest.metrics {
        check_column_name("a metric", &metric.name)?;
        if !seen.insert(metric.name.as_str()) {
            return wrong(format!("a name for each metric; `{}` is there twice", metric.name));
        }
    }
    let mut seen = BTreeSet::new();
    for model in &backtest.models {
        let (name, version) = (&model.model, model.version);
        if !seen.insert((name, version)) {
            return wrong(format!("other models than `{name}@{version}` twice"));
        }
        check_scores(backtest, model, &windows)?;
    }
    Ok(())
}

fn check_scores(backtest: &Backtest, model: &BacktestModel, windows: &[(i64, i64)]) -> Result<()> {
    let fits = |scores: &BacktestScores, (from_us, to_us): (i64, i64)| {
        (scores.from_us, scores.to_us, scores.metrics.len()) == (from_us, to_us, backtest.metrics.len())
            && scores.rows_without_score <= scores.rows
    };
    let whole = (backtest.from_us, backtest.to_us);
    let overall = model.overall.as_ref().is_some_and(|it| fits(it, whole) && it.rows == backtest.rows);
    let rows = model.windows.iter().fold(0u64, |sum, it| sum.saturating_add(it.rows));
    let each = model.windows.len() == windows.len()
        && model.windows.iter().zip(windows).all(|(scores, window)| fits(scores, *window))
        && rows == backtest.rows;
    if overall && each {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "the scores of `{}@{}` do not fit the interval, windows, rows and metrics of their backtest",
        model.model, model.version
    )))
}

/// The windows of an interval of event time, each half-open: aligned to its begin, the last one cut off at its end.
/// `None` when nothing is between begin and end, or a window is longer than that; empty when there are too many for any
/// backtest.
pub fn backtest_windows(from_us: i64, to_us: i64, window_us: i64) -> Option<Vec<(i64, i64)>> {
    let length = to_us.checked_sub(from_us).filter(|length| *length > 0)?;
    if window_us <= 0 || window_us > length {
        return None;
    }
    let count = (length - 1) / window_us + 1;
    if count > BACKTEST_WINDOWS_MAX as i64 {
        return Some(Vec::new());
    }
    let window = |at: i64| {
        let begin = from_us + at * window_us;
        (begin, begin.saturating_add(window_us).min(to_us))
    };
    Some((0..count).map(window).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_interval_once() {
        assert_eq!(backtest_windows(-5, 5, 4).unwrap(), [(-5, -1), (-1, 3), (3, 5)]);
        assert_eq!(backtest_windows(0, 8, 4).unwrap(), [(0, 4), (4, 8)]);
        assert_eq!(backtest_windows(7, 8, 1).unwrap(), [(7, 8)]);
        for (from, to, window) in [(0, 0, 1), (1, 0, 1), (0, 5, 6), (0, 5, 0), (0, 5, -1), (i64::MIN, i64::MAX, 1)] {
            assert_eq!(backtest_windows(from, to, window), None);
        }
        assert_eq!(backtest_windows(0, i64::MAX, 1).unwrap(), [], "more than any backtest has");
        assert_eq!(backtest_windows(i64::MAX - 5, i64::MAX, 3).unwrap().last(), Some(&(i64::MAX - 2, i64::MAX)));
    }
}
