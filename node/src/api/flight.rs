//! Arrow Flight: the calls, each handed to the module that does the work.
//!
//! `DoPut` ingests; `DoExchange` reads online features, joins a spine, predicts, backtests; `DoGet` does the one-shot forms, and SQL.

use super::wire::{self, Encoder, Replies};
use super::{backtests, entities, exchange, flight_sql};
use crate::error::{Error, Result};
use crate::ingest::{Prepared, Target};
use crate::node::Node;
use crate::{features, predict};
use arrow_flight::decode::DecodedPayload;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, SchemaAsIpc, SchemaResult, Ticket,
};
use cairn_proto::command::{Command, Ingest};
use futures::{FutureExt, StreamExt};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Replies a stream may be ahead of its reader.
const REPLIES_AHEAD: usize = 8;

#[derive(Debug, Clone)]
pub struct Flight {
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl FlightService for Flight {
    type HandshakeStream = Replies<HandshakeResponse>;
    type ListFlightsStream = Replies<FlightInfo>;
    type DoGetStream = Replies<FlightData>;
    type DoPutStream = Replies<PutResult>;
    type DoExchangeStream = Replies<FlightData>;
    type DoActionStream = Replies<arrow_flight::Result>;
    type ListActionsStream = Replies<ActionType>;

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        let permit = self.node.admit_stream()?;
        let upload = wire::open(request.into_inner(), &self.node.stopping).await?;
        if let Some(command) = flight_sql::command(&upload.descriptor.cmd) {
            let bound = flight_sql::bind(&self.node, command, upload).await?;
            return Ok(Response::new(futures::stream::iter([Ok(bound)]).boxed()));
        }
        let Command::Ingest(ask) = wire::command(&upload.descriptor)? else {
            return Err(Error::invalid(
                "DoPut takes the command {\"op\":\"ingest\"}; reads go over DoExchange or DoGet",
            )
            .into());
        };
        let (replies, stream) = mpsc::channel(REPLIES_AHEAD);
        let node = Arc::clone(&self.node);
        work(replies.clone(), async move {
            let _permit = permit;
            ingest(&node, &ask, upload, &replies).await
        });
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        let permit = self.node.admit_stream()?;
        let upload = wire::open(request.into_inner(), &self.node.stopping).await?;
        let (replies, stream) = mpsc::channel(REPLIES_AHEAD);
        let node = Arc::clone(&self.node);
        let command = wire::command(&upload.descriptor)?;
        work(replies.clone(), async move {
            let _permit = permit;
            match command {
                Command::GetOnlineFeatures(ask) => exchange::online(&node, &ask, upload, &replies).await,
                Command::GetHistoricalFeatures(ask) => exchange::historical(&node, &ask, upload, &replies).await,
                Command::Predict(ask) => exchange::predict(&node, &ask, upload, &replies).await,
                Command::Backtest(ask) => backtests::exchange(&node, *ask, upload, &replies).await,
                Command::Ingest(_) => Err(Error::invalid("rows are ingested by DoPut, not DoExchange").into()),
            }
        });
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        if let Some(command) = flight_sql::command(&request.get_ref().ticket) {
            let permit = self.node.admit_stream()?;
            let answer = flight_sql::get(&self.node, command, request.metadata()).await?;
            return Ok(Response::new(answer.inspect(move |_| _ = &permit).boxed()));
        }
        let command = Command::parse(&request.into_inner().ticket).map_err(Error::invalid)?;
        let mut encoder = Encoder::default();
        let (batch, reply) = match command {
            Command::GetOnlineFeatures(ask) => {
                let (plan, mut reply) = features::prepare(&self.node, &ask).await?;
                let rows = entities::from_json(&plan, ask.entities.as_ref())?;
                let answer = features::read(&self.node, &plan, &ask, &rows).await?;
                self.node.seen(&mut reply);
                (answer, reply)
            }
            Command::Predict(ask) => {
                let served = predict::Served::resolve(&self.node, &ask).await?;
                let rows = entities::from_json(&served.plan, ask.entities.as_ref())?;
                served.predict(&self.node, &ask, &rows).await?
            }
            Command::GetHistoricalFeatures(_) => {
                return Err(Error::invalid("a historical join uploads its spine: use DoExchange").into());
            }
            Command::Backtest(_) => return Err(Error::invalid("a backtest uploads its spine: use DoExchange").into()),
            Command::Ingest(_) => return Err(Error::invalid("rows are ingested by DoPut").into()),
        };
        let metadata = serde_json::to_vec(&reply).unwrap_or_default();
        let messages = [Ok(encoder.schema(batch.schema_ref())), Ok(encoder.batch(&batch, metadata)?)];
        Ok(Response::new(futures::stream::iter(messages).boxed()))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        if let Some(command) = flight_sql::command(&request.get_ref().cmd) {
            let (metadata, _, descriptor) = request.into_parts();
            return Ok(Response::new(flight_sql::info(&self.node, command, &metadata, descriptor).await?));
        }
        let descriptor = request.into_inner();
        let command = wire::command(&descriptor)?;
        let schema = self.schema_of(&command).await?;
        let ticket = Ticket::new(descriptor.cmd.clone());
        // Every node answers for every shard: one endpoint each, this node first.
        let mut info = FlightInfo::new().with_descriptor(descriptor);
        for address in self.node.client_addresses() {
            let endpoint =
                FlightEndpoint::new().with_ticket(ticket.clone()).with_location(format!("grpc+tcp://{address}"));
            info = info.with_endpoint(endpoint);
        }
        let info = info.try_with_schema(&schema).map_err(|error| Error::internal(error.to_string()))?;
        Ok(Response::new(info))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let schema = match flight_sql::command(&request.get_ref().cmd) {
            Some(command) => flight_sql::schema(&self.node, command, request.metadata()).await?.as_ref().clone(),
            None => self.schema_of(&wire::command(&request.into_inner())?).await?,
        };
        let options = arrow_ipc::writer::IpcWriteOptions::default();
        let encoded = SchemaAsIpc::new(&schema, &options).try_into();
        Ok(Response::new(encoded.map_err(|error: arrow_schema::ArrowError| Error::internal(error.to_string()))?))
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        Err(unsupported("handshakes; send requests at once"))
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(unsupported("ListFlights; ask GetFlightInfo with a command"))
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(unsupported("PollFlightInfo; use GetFlightInfo"))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        match flight_sql::action(&self.node, request.get_ref(), request.metadata()).await? {
            Some(results) => Ok(Response::new(futures::stream::iter(results.into_iter().map(Ok)).boxed())),
            None => Err(unsupported(&format!("the action `{}`", request.into_inner().r#type))),
        }
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Ok(Response::new(futures::stream::empty().boxed()))
    }
}

/// Runs what answers a stream. Its failure is the stream's last word, and a bug of ours is one too: a stream that just
/// ended would look complete.
fn work<T: Send + 'static>(
    replies: mpsc::Sender<Result<T, Status>>,
    answering: impl Future<Output = Result<(), Status>> + Send + 'static,
) {
    tokio::spawn(async move {
        let done = AssertUnwindSafe(answering).catch_unwind().await;
        let bug = |_| Err(Error::internal("a bug in this node stopped the request; its log says where").into());
        if let Err(status) = done.unwrap_or_else(bug) {
            let _ = replies.send(Err(status)).await;
        }
    });
}

fn unsupported(what: &str) -> Status {
    Error::new(cairn_proto::ErrorKind::Unsupported, format!("this node does not offer {what}")).into()
}

impl Flight {
    /// What a command answers with; for `ingest`, what it takes.
    async fn schema_of(&self, command: &Command) -> Result<arrow_schema::Schema> {
        match command {
            Command::GetOnlineFeatures(ask) => {
                let (plan, _) = features::prepare(&self.node, ask).await?;
                Ok(plan.output_schema(ask.statuses)?.as_ref().clone())
            }
            Command::GetHistoricalFeatures(ask) => {
                self.node.ensure(&ask.read, 0..=0).await?;
                let plan = features::historical_plan(&self.node, ask)?;
                Ok(plan.output_schema(ask.statuses)?.as_ref().clone())
            }
            Command::Ingest(ask) => {
                self.node.fresh_catalog().await?;
                Ok(Target::new(&self.node, ask)?.schema())
            }
            Command::Predict(ask) => {
                let served = predict::Served::resolve(&self.node, ask).await?;
                Ok(served.plan.required_schema())
            }
            Command::Backtest(ask) => crate::backtest::required_schema(&self.node, ask).await,
        }
    }
}

/// One batch in, one reply out, in order, each as soon as it is committed. The next batch is decoded and cut while the
/// last one commits; whatever goes wrong with it, the one before is answered first.
async fn ingest(
    node: &Arc<Node>,
    ask: &Ingest,
    upload: wire::Upload,
    replies: &mpsc::Sender<Result<PutResult, Status>>,
) -> Result<(), Status> {
    // A view that another node has just acknowledged is there for the first row.
    node.fresh_catalog().await?;
    let target = Arc::new(Target::new(node, ask)?);
    let (batches, prepared) = mpsc::channel(1);
    let mut preparing = std::pin::pin!(prepare(node, &target, upload, batches));
    let mut committing = std::pin::pin!(commit(node, &target, prepared, replies));
    let mut uploading = true;
    loop {
        tokio::select! {
            done = &mut committing => return done,
            () = &mut preparing, if uploading => uploading = false,
        }
    }
}

/// Cuts batches by shard until the upload ends; its failure is passed on behind the batches before it.
async fn prepare(
    node: &Arc<Node>,
    target: &Arc<Target>,
    mut upload: wire::Upload,
    batches: mpsc::Sender<Result<Prepared, Status>>,
) {
    loop {
        let prepared = match wire::next(&mut upload.messages).await {
            Ok(None) => return,
            Err(status) => Err(status),
            Ok(Some(message)) => {
                let DecodedPayload::RecordBatch(batch) = message.payload else { continue };
                let (node, target) = (Arc::clone(node), Arc::clone(target));
                let cut = move || {
                    node.writes.check()?;
                    let catalog = node.meta.catalog();
                    target.check_current(&catalog)?;
                    target.prepare(&batch, &node.write_routes())
                };
                blocking(cut).await.map_err(Status::from)
            }
        };
        let last = prepared.is_err();
        if batches.send(prepared).await.is_err() || last {
            return;
        }
    }
}

async fn commit(
    node: &Arc<Node>,
    target: &Target,
    mut prepared: mpsc::Receiver<Result<Prepared, Status>>,
    replies: &mpsc::Sender<Result<PutResult, Status>>,
) -> Result<(), Status> {
    let mut ordinal = 0u64;
    while let Some(batch) = prepared.recv().await {
        let reply = target.commit(node, batch?, ordinal, node.write_deadline()).await?;
        ordinal += 1;
        node.metrics.ingested(&reply);
        let metadata = serde_json::to_vec(&reply).unwrap_or_default();
        if replies.send(Ok(PutResult { app_metadata: metadata.into() })).await.is_err() {
            return Ok(()); // the client has gone; what was sent is committed
        }
    }
    Ok(())
}

/// Runs CPU work off the async threads.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::internal(format!("a worker stopped: {error}"))),
    }
}
