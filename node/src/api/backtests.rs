//! Backtests: run over an exchange, shown by gRPC.

use super::wire::{self, Encoder};
use crate::backtest::Setup;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::predict::hex;
use arrow_array::RecordBatch;
use arrow_flight::FlightData;
use arrow_flight::decode::DecodedPayload;
use cairn_proto::api::v1 as api;
use cairn_proto::command::{Backtest, BacktestReply};
use cairn_proto::record::v1 as record;
use cairn_proto::token::Token;
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

/// Backtests in a list that names no length.
const LISTED: usize = 100;

#[derive(Debug, Clone)]
pub struct Backtests {
    pub node: Arc<Node>,
}

/// A spine up; down go, once all of it is scored, its rows with their scores if asked for, and in the metadata how far it is
/// and, in the last message, what it is kept as.
pub async fn exchange(
    node: &Arc<Node>,
    ask: Backtest,
    mut upload: wire::Upload,
    replies: &mpsc::Sender<Result<FlightData, Status>>,
) -> Result<(), Status> {
    let _place = node.admit_backtest().await?;
    let mut setup = Some(Setup::resolve(node, ask).await?);
    let mut encoder = Encoder::default();
    let mut run = None;
    while let Some(message) = wire::next(&mut upload.messages).await? {
        match message.payload {
            DecodedPayload::Schema(schema) => {
                if let Some(setup) = setup.take() {
                    let begun = setup.begin(node, &schema).await?;
                    if replies.send(Ok(encoder.schema(&begun.predictions_schema()))).await.is_err() {
                        return Ok(());
                    }
                    run = Some(begun);
                }
            }
            DecodedPayload::RecordBatch(batch) => {
                let run = run.as_mut().ok_or_else(|| Error::invalid("a spine begins with its schema"))?;
                run.push(node, batch).await?;
                let reply = BacktestReply { rows_done: run.rows_done(), ..BacktestReply::default() };
                let nothing = RecordBatch::new_empty(run.predictions_schema());
                // Many clients send all before they read: news of progress waits for nobody.
                let _ = replies.try_send(Ok(encoder.batch(&nothing, metadata(&reply))?));
            }
            DecodedPayload::None => {}
        }
    }
    let mut run = run.ok_or_else(|| Error::invalid("no spine was uploaded; send at least its schema"))?;
    let recorded = run.finish(node).await?;
    for rows in run.predictions() {
        if replies.send(Ok(encoder.batch(&rows?, Vec::new())?)).await.is_err() {
            return Ok(());
        }
    }
    let token = Token::new(0, recorded.id).to_string();
    let reply = BacktestReply { rows_done: run.rows_done(), backtest: Some(recorded.id), token };
    let nothing = RecordBatch::new_empty(run.predictions_schema());
    let _ = replies.send(Ok(encoder.batch(&nothing, metadata(&reply))?)).await;
    Ok(())
}

fn metadata(reply: &BacktestReply) -> Vec<u8> {
    serde_json::to_vec(reply).unwrap_or_default()
}

#[tonic::async_trait]
impl api::backtests_server::Backtests for Backtests {
    async fn get(&self, request: Request<api::GetBacktestRequest>) -> Result<Response<api::Backtest>, Status> {
        let ask = request.into_inner();
        self.node.fresh_catalog().await?;
        Ok(Response::new(to_api(self.node.meta.backtest(&ask.project, ask.id).map_err(Error::from)?)))
    }

    async fn list(
        &self,
        request: Request<api::ListBacktestsRequest>,
    ) -> Result<Response<api::ListBacktestsReply>, Status> {
        let ask = request.into_inner();
        self.node.fresh_catalog().await?;
        let of = match (ask.model.as_str(), ask.version) {
            ("", 0) => None,
            ("", _) => return Err(Error::invalid("name the `model` of that version").into()),
            (model, version) => Some((model, Some(version).filter(|version| *version > 0))),
        };
        let limit = if ask.limit == 0 { LISTED } else { ask.limit as usize };
        let (found, more) = self.node.meta.backtests(&ask.project, of, limit).map_err(Error::from)?;
        Ok(Response::new(api::ListBacktestsReply { backtests: found.into_iter().map(to_api).collect(), more }))
    }
}

fn to_api(backtest: record::Backtest) -> api::Backtest {
    let spine = backtest.spine.unwrap_or_default();
    let metric = |it: record::BacktestMetric| api::BacktestMetric { name: it.name, sql: it.sql };
    api::Backtest {
        project: backtest.project,
        id: backtest.id,
        models: backtest.models.into_iter().map(model).collect(),
        from_us: backtest.from_us,
        to_us: backtest.to_us,
        window_us: backtest.window_us,
        label: backtest.label,
        event_timestamp: backtest.event_timestamp,
        spine_root: hex(&spine.root),
        spine_bytes: spine.size,
        spine_file: backtest.spine_file,
        known_us: backtest.known_us,
        skip_null_labels: backtest.skip_null_labels,
        rows: backtest.rows,
        rows_outside: backtest.rows_outside,
        rows_unlabelled: backtest.rows_unlabelled,
        content: hex(&backtest.content),
        metrics: backtest.metrics.into_iter().map(metric).collect(),
        token: backtest.token,
        author: backtest.author,
        description: backtest.description,
        created_us: backtest.created_us,
    }
}

fn model(model: record::BacktestModel) -> api::BacktestModel {
    api::BacktestModel {
        model: model.model,
        version: model.version,
        alias: model.alias,
        feature_service: model.feature_service,
        feature_service_version: model.feature_service_version,
        output: model.output,
        class: model.class,
        overall: model.overall.map(scores),
        windows: model.windows.into_iter().map(scores).collect(),
    }
}

fn scores(scores: record::BacktestScores) -> api::BacktestScores {
    api::BacktestScores {
        from_us: scores.from_us,
        to_us: scores.to_us,
        rows: scores.rows,
        rows_without_score: scores.rows_without_score,
        positives: scores.positives,
        auc: scores.auc,
        log_loss: scores.log_loss,
        rmse: scores.rmse,
        calibration_error: scores.calibration_error,
        bias: scores.bias,
        metrics: scores.metrics.into_iter().map(|it| api::BacktestValue { value: it.value }).collect(),
    }
}
