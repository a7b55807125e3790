//! Flight messages made by hand, and plain sockets: what no client of ours would send.

use crate::support::TestResult;
use arrow_array::RecordBatch;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{FlightData, FlightDescriptor};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

pub async fn connect(address: &str) -> TestResult<FlightServiceClient<Channel>> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
    Ok(FlightServiceClient::new(channel).max_encoding_message_size(usize::MAX))
}

/// `rows` under a command: the schema with the descriptor, then the batch.
pub fn messages(command: &str, rows: &RecordBatch) -> TestResult<Vec<FlightData>> {
    let mut messages = batches_to_flight_data(rows.schema_ref(), vec![rows.clone()])?;
    messages[0].flight_descriptor = Some(FlightDescriptor::new_cmd(command.to_owned()));
    Ok(messages)
}

/// The refusal of an upload, however far it came; `None` when every message of it was answered well.
pub async fn put(address: &str, messages: Vec<FlightData>) -> TestResult<Option<Status>> {
    let mut client = connect(address).await?;
    let put = async {
        let mut replies = client.do_put(futures::stream::iter(messages)).await?.into_inner();
        while replies.message().await?.is_some() {}
        Ok::<_, Status>(())
    };
    Ok(tokio::time::timeout(PATIENCE, put).await?.err())
}

/// As [`put`], for `DoExchange`.
pub async fn exchange(address: &str, messages: Vec<FlightData>) -> TestResult<Option<Status>> {
    let mut client = connect(address).await?;
    let exchange = async {
        let mut replies = client.do_exchange(futures::stream::iter(messages)).await?.into_inner();
        while replies.message().await?.is_some() {}
        Ok::<_, Status>(())
    };
    Ok(tokio::time::timeout(PATIENCE, exchange).await?.err())
}

/// Sends bytes, ends the sending half, and returns what comes back until the other side closes too.
pub async fn throw(address: &str, bytes: &[u8]) -> TestResult<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    // The other side may close before it has taken all of it.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await?;
    Ok(answer)
}

/// A connection that has sent `bytes` and keeps silent from then on.
pub async fn hold(address: &str, bytes: &[u8]) -> TestResult<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(bytes).await?;
    Ok(stream)
}
