//! The ceiling of online reads: a Flight server that does nothing but answer.
//!
//! Always true: it is a process of its own, asked by the same client over the same transport; it decodes the question
//! to know its id and row count, as any server must, and answers with bytes prepared before: the schema, the row count
//! and the metadata of a real answer. What Cairn takes longer is spent on finding and encoding features.

use crate::error::{Error, Result};
use crate::workload::{Columns, FEATURES, JOIN_KEY};
use arrow_array::{ArrayRef, Float32Array, Int64Array, RecordBatch};
use arrow_flight::decode::{DecodedFlightData, DecodedPayload, FlightDataDecoder};
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse,
    PollInfo, PutResult, SchemaResult, Ticket,
};
use cairn_client::Timestamp;
use cairn_client::command::{Level, ReadReply, ShardPosition};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

pub const SYSTEM: &str = "echo (ceiling)";
const READY: &str = "echo ready: ";
/// Flow control as wide as a node's, so that it is no bound.
const WINDOW_BYTES: u32 = 16 << 20;

/// The server as a child process; ends with this value.
#[derive(Debug)]
pub struct EchoProcess {
    pub address: String,
    _process: Child,
}

impl EchoProcess {
    /// # Errors
    /// `Peer` when it does not come up.
    pub async fn start() -> Result<Self> {
        let program = std::env::current_exe().map_err(Error::system("this program's path"))?;
        let mut command = Command::new(program);
        command.arg("echo").stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().map_err(Error::system("the echo server"))?;
        let output = process.stdout.take().ok_or_else(|| Error::Internal("the echo has no output".to_owned()))?;
        let line = BufReader::new(output).lines().next_line().await.map_err(Error::system("the echo server"))?;
        let address = line.as_deref().and_then(|line| line.strip_prefix(READY));
        let address = address.ok_or_else(|| Error::peer(SYSTEM, "did not come up"))?.to_owned();
        Ok(Self { address, _process: process })
    }
}

/// Serves until killed.
///
/// # Errors
/// `Peer` when it cannot listen or serve.
pub async fn serve() -> Result<()> {
    let broken = |error: String| Error::peer(SYSTEM, error);
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let incoming = TcpIncoming::bind(address).map_err(|error| broken(error.to_string()))?.with_nodelay(Some(true));
    println!("{READY}{}", incoming.local_addr().map_err(|error| broken(error.to_string()))?);
    tonic::transport::Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .add_service(FlightServiceServer::new(Echo::default()))
        .serve_with_incoming(incoming)
        .await
        .map_err(|error| broken(error.to_string()))
}

/// Prepared answers by row count.
#[derive(Debug, Default, Clone)]
struct Echo {
    prepared: Arc<Mutex<BTreeMap<usize, Prepared>>>,
}

#[derive(Debug, Clone)]
struct Prepared {
    schema: FlightData,
    rows: FlightData,
}

impl Echo {
    fn answer(&self, question: DecodedFlightData) -> Result<FlightData, Status> {
        let id = question.app_metadata();
        match question.payload {
            DecodedPayload::RecordBatch(rows) => {
                let id = String::from_utf8_lossy(&id);
                Ok(self.prepared(rows.num_rows())?.rows.with_app_metadata(metadata(&id)))
            }
            DecodedPayload::Schema(_) | DecodedPayload::None => Ok(self.prepared(0)?.schema),
        }
    }

    fn prepared(&self, rows: usize) -> Result<Prepared, Status> {
        let mut all = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(prepared) = all.get(&rows) {
            return Ok(prepared.clone());
        }
        let prepared = prepare(rows).map_err(|error| Status::internal(error.to_string()))?;
        all.insert(rows, prepared.clone());
        Ok(prepared)
    }
}

fn prepare(rows: usize) -> Result<Prepared> {
    let columns = Columns::plain(FEATURES);
    let ids = 0..i64::try_from(rows).unwrap_or(0);
    let mut answer: Vec<(String, ArrayRef)> =
        vec![(JOIN_KEY.to_owned(), Arc::new(Int64Array::from_iter_values(ids.clone())))];
    for (at, name) in columns.names().enumerate() {
        let values = Float32Array::from_iter_values(ids.clone().map(|id| columns.value(at, id)));
        answer.push((name.to_owned(), Arc::new(values)));
    }
    let answer = RecordBatch::try_from_iter(answer)?;
    let mut messages = batches_to_flight_data(answer.schema_ref(), vec![answer.clone()])?.into_iter();
    match (messages.next(), messages.next()) {
        (Some(schema), Some(rows)) => Ok(Prepared { schema, rows }),
        _ => Err(Error::Internal("a batch is two messages".to_owned())),
    }
}

/// As long as the metadata of a node with four shards.
fn metadata(id: &str) -> Vec<u8> {
    let position =
        |shard| ShardPosition { shard, applied_index: 12_345, applied_time: Timestamp(1_764_547_200_123_456) };
    let reply = ReadReply {
        id: Some(id.to_owned()),
        level: Some(Level::Bounded),
        shards: (1..=4).map(position).collect(),
        token: "1:12345,2:12345,3:12345,4:12345".to_owned(),
        model: None,
    };
    serde_json::to_vec(&reply).unwrap_or_default()
}

type Replies<T> = BoxStream<'static, Result<T, Status>>;

fn not_offered<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("the echo answers DoExchange only"))
}

#[tonic::async_trait]
impl FlightService for Echo {
    type HandshakeStream = Replies<HandshakeResponse>;
    type ListFlightsStream = Replies<FlightInfo>;
    type DoGetStream = Replies<FlightData>;
    type DoPutStream = Replies<PutResult>;
    type DoExchangeStream = Replies<FlightData>;
    type DoActionStream = Replies<arrow_flight::Result>;
    type ListActionsStream = Replies<ActionType>;

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        let uploads = request.into_inner().map_err(|status| FlightError::Tonic(Box::new(status)));
        let echo = self.clone();
        let answers = FlightDataDecoder::new(uploads).map(move |question| match question {
            Ok(question) => echo.answer(question),
            Err(error) => Err(Status::invalid_argument(error.to_string())),
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        not_offered()
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        not_offered()
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        not_offered()
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        not_offered()
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        not_offered()
    }

    async fn do_get(&self, _: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        not_offered()
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        not_offered()
    }

    async fn do_action(&self, _: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        not_offered()
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        not_offered()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cairn::{Asking, Ring};
    use crate::load::Turn;
    use crate::workload::question;

    #[tokio::test]
    async fn the_echo_answers_as_a_node_does() {
        let incoming = TcpIncoming::bind(std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = incoming.local_addr().unwrap().to_string();
        let server = tonic::transport::Server::builder().add_service(FlightServiceServer::new(Echo::default()));
        let serving = tokio::spawn(server.serve_with_incoming(incoming));
        let batches = [question(&[3, 1, 2]).unwrap(), question(&[7]).unwrap()].into();
        let mut asking = Asking::of_echo(&address, Ring { batches, at: 0 }).await.unwrap();
        assert_eq!(asking.turn().await.unwrap(), 3);
        assert_eq!(asking.turn().await.unwrap(), 1);
        serving.abort();
    }
}
