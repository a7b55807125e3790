//! `DoExchange`: entity rows or a spine up, answers down, for as long as the client likes.

use super::wire::{self, Encoder};
use crate::error::{Error, Result};
use crate::features;
use crate::node::Node;
use crate::predict::Served;
use arrow_array::RecordBatch;
use arrow_flight::FlightData;
use arrow_flight::decode::DecodedPayload;
use arrow_schema::SchemaRef;
use cairn_proto::ErrorKind;
use cairn_proto::command::{GetHistoricalFeatures, GetOnlineFeatures, Predict, ReadReply};
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::Status;

/// Rows of a training spine, and the bytes they may take: it is held in memory while it is joined.
const SPINE_ROWS_MAX: usize = 10_000_000;
const SPINE_BYTES_MAX: usize = 4 << 30;

type Sender = mpsc::Sender<Result<FlightData, Status>>;

/// One batch of entity rows up, one batch of features down: same rows, same order.
pub async fn online(
    node: &Arc<Node>,
    ask: &GetOnlineFeatures,
    mut upload: wire::Upload,
    replies: &Sender,
) -> Result<(), Status> {
    let mut encoder = Encoder::default();
    // Compiled once a stream, and again only when the catalog has moved on.
    let (mut plan, _) = features::prepare(node, ask).await?;
    let mut sent: Option<SchemaRef> = None;
    while let Some(message) = wire::next(&mut upload.messages).await? {
        match message.payload {
            DecodedPayload::Schema(_) if sent.is_none() => {
                let schema = plan.output_schema(ask.statuses).map_err(Error::from)?;
                if replies.send(Ok(encoder.schema(&schema))).await.is_err() {
                    return Ok(());
                }
                sent = Some(schema);
            }
            DecodedPayload::RecordBatch(batch) => {
                let mut reply;
                (plan, reply) = features::prepare(node, ask).await?;
                let answer = features::read(node, &plan, ask, &batch).await?;
                if sent.as_ref().is_some_and(|schema| schema.fields() != answer.schema_ref().fields()) {
                    let message = "the feature service changed its columns while this stream was open; open a new one";
                    return Err(Error::new(ErrorKind::Conflict, message).into());
                }
                node.seen(&mut reply);
                reply.id = request_id(&message.inner.app_metadata);
                let metadata = serde_json::to_vec(&reply).unwrap_or_default();
                if replies.send(Ok(encoder.batch(&answer, metadata)?)).await.is_err() {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The client's own id of a request: opaque text, given back.
fn request_id(metadata: &[u8]) -> Option<String> {
    (!metadata.is_empty()).then(|| String::from_utf8_lossy(metadata).into_owned())
}

/// A spine up, the training set down: one row a spine row, same order.
pub async fn historical(
    node: &Arc<Node>,
    ask: &GetHistoricalFeatures,
    mut upload: wire::Upload,
    replies: &Sender,
) -> Result<(), Status> {
    node.ensure(&ask.read, 0..=0).await?;
    let plan = features::historical_plan(node, ask)?;
    let mut spine: Vec<RecordBatch> = Vec::new();
    let mut schema: Option<SchemaRef> = None;
    let (mut rows, mut bytes) = (0usize, 0usize);
    while let Some(message) = wire::next(&mut upload.messages).await? {
        match message.payload {
            DecodedPayload::Schema(found) => schema = Some(found),
            DecodedPayload::RecordBatch(batch) => {
                rows += batch.num_rows();
                bytes += batch.get_array_memory_size();
                if rows > SPINE_ROWS_MAX || bytes > SPINE_BYTES_MAX {
                    let message = format!(
                        "the spine is over the limit of {SPINE_ROWS_MAX} rows or {} MiB; join it in parts",
                        SPINE_BYTES_MAX >> 20
                    );
                    return Err(Error::new(ErrorKind::TooLarge, message).into());
                }
                spine.push(batch);
            }
            DecodedPayload::None => {}
        }
    }
    let Some(schema) = schema else {
        return Err(Error::invalid("no spine was uploaded; send at least its schema").into());
    };
    let mut reply = node.ensure(&ask.read, 0..=node.shard_count()).await?;
    let options = features::historical_options(node, ask);
    let output = plan.historical(&schema, options.clone()).map_err(Error::from)?.output_schema();
    // The spine is whole before the join starts, since many clients send all before they read; the join then makes
    // batch by batch, and a slow reader slows it down instead of filling memory.
    let (batches, mut joined) = mpsc::channel::<RecordBatch>(2);
    let source = Arc::clone(&node.source);
    let permit = node.admit_join().await?;
    let work = tokio::spawn(crate::sql::behind(Arc::clone(node), move || {
        let _permit = permit;
        let mut join = plan.historical(&schema, options)?;
        let mut gone = false;
        let done = join.join(&spine, source.as_ref(), &mut |part| {
            gone = batches.blocking_send(part).is_err();
            if gone { Err(cairn_query::Error::Unavailable("the reader is gone".to_owned())) } else { Ok(()) }
        });
        if gone { Ok(()) } else { Ok(done?) }
    }));
    let mut encoder = Encoder::default();
    if replies.send(Ok(encoder.schema(&output))).await.is_err() {
        return Ok(());
    }
    while let Some(batch) = joined.recv().await {
        node.seen(&mut reply);
        let metadata = serde_json::to_vec(&reply).unwrap_or_default();
        if replies.send(Ok(encoder.batch(&batch, metadata)?)).await.is_err() {
            return Ok(());
        }
    }
    work.await.map_err(|error| Error::internal(format!("the join stopped: {error}")))??;
    Ok(())
}

/// Entity rows up, predictions down.
pub async fn predict(
    node: &Arc<Node>,
    ask: &Predict,
    mut upload: wire::Upload,
    replies: &Sender,
) -> Result<(), Status> {
    let mut encoder = Encoder::default();
    let mut sent: Option<SchemaRef> = None;
    while let Some(message) = wire::next(&mut upload.messages).await? {
        let DecodedPayload::RecordBatch(batch) = message.payload else { continue };
        let served = Served::resolve(node, ask).await?;
        let (answer, mut reply): (RecordBatch, ReadReply) = served.predict(node, ask, &batch).await?;
        match &sent {
            None => {
                if replies.send(Ok(encoder.schema(answer.schema_ref()))).await.is_err() {
                    return Ok(());
                }
                sent = Some(answer.schema());
            }
            Some(schema) if schema.fields() != answer.schema_ref().fields() => {
                let message = "another model version answers now, with other columns; open a new stream";
                return Err(Error::new(ErrorKind::Conflict, message).into());
            }
            Some(_) => {}
        }
        reply.id = request_id(&message.inner.app_metadata);
        let metadata = serde_json::to_vec(&reply).unwrap_or_default();
        if replies.send(Ok(encoder.batch(&answer, metadata)?)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
