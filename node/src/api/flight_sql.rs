//! Flight SQL: what ADBC and JDBC drivers and BI tools speak, in the same Flight service as Cairn's own commands.
//!
//! Its commands are protobuf and Cairn's are JSON, which the first byte tells apart. Nothing is kept between calls: a
//! ticket or a prepared statement is the query itself, with the values of its parameters once they are bound, so any node
//! takes any step of it. Unqualified names are of the project in the call header `cairn-project`, else of `default`.

use super::wire::{self, Encoder, Replies};
use crate::error::{Error, Result};
use crate::node::Node;
use crate::sql::{self, Statement};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_flight::decode::DecodedPayload;
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::sql::{
    ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any, Command,
    DoPutPreparedStatementResult, ProstMessageExt, SqlInfo, TicketStatementQuery,
};
use arrow_flight::{
    Action, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, IpcMessage, PutResult, SchemaAsIpc, Ticket,
};
use arrow_schema::{Schema, SchemaRef};
use bytes::Bytes;
use cairn_proto::{DEFAULT_PROJECT, ErrorKind};
use cairn_query::sql::{CATALOG, Parameter, SYSTEM};
use futures::{StreamExt, stream};
use prost::Message;
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::metadata::MetadataMap;

/// Call header with the project of names that have none.
pub const PROJECT_HEADER: &str = "cairn-project";
/// Of a message, roughly: what clients take by default is 4 MiB.
const MESSAGE_BYTES: usize = 2 << 20;
/// A statement with the values of its parameters, as tickets and handles carry it.
const HANDLE_BYTES_MAX: usize = 512 << 10;
const CREATE_PREPARED: &str = "CreatePreparedStatement";
const CLOSE_PREPARED: &str = "ClosePreparedStatement";
const TABLE: &str = "TABLE";

enum Asked {
    Statement(Statement),
    /// Answered at once.
    Batch(RecordBatch),
}

/// The Flight SQL command in a descriptor or ticket; `None` when it is none.
pub fn command(bytes: &[u8]) -> Option<Command> {
    if bytes.first().is_none_or(|byte| *byte == b'{') {
        return None;
    }
    let any = Any::decode(bytes).ok().filter(|any| any.type_url.contains("/arrow.flight.protocol.sql."))?;
    Command::try_from(any).ok()
}

fn project(metadata: &MetadataMap) -> Result<String> {
    match metadata.get(PROJECT_HEADER) {
        None => Ok(DEFAULT_PROJECT.to_owned()),
        Some(name) => {
            let text = name.to_str().map_err(|_| Error::invalid(format!("header `{PROJECT_HEADER}` is no text")))?;
            Ok(text.to_owned())
        }
    }
}

/// # Errors
/// As [`sql::describe`].
pub async fn info(
    node: &Arc<Node>,
    command: Command,
    metadata: &MetadataMap,
    descriptor: FlightDescriptor,
) -> Result<FlightInfo> {
    let (schema, ticket) = match asked(node, command, metadata).await? {
        Asked::Statement(statement) => {
            let schema = sql::describe(node, &statement).await?.schema;
            let ticket = TicketStatementQuery { statement_handle: handle(&statement)? };
            (schema, ticket.as_any().encode_to_vec().into())
        }
        Asked::Batch(batch) => (batch.schema(), descriptor.cmd.clone()),
    };
    // Without an address: where this was asked.
    let info = FlightInfo::new()
        .with_descriptor(descriptor)
        .with_endpoint(FlightEndpoint::new().with_ticket(Ticket { ticket }));
    info.try_with_schema(&schema).map_err(|error| Error::internal(error.to_string()))
}

/// # Errors
/// As [`sql::describe`].
pub async fn schema(node: &Arc<Node>, command: Command, metadata: &MetadataMap) -> Result<SchemaRef> {
    match asked(node, command, metadata).await? {
        Asked::Statement(statement) => Ok(sql::describe(node, &statement).await?.schema),
        Asked::Batch(batch) => Ok(batch.schema()),
    }
}

/// # Errors
/// As [`sql::run`].
pub async fn get(node: &Arc<Node>, command: Command, metadata: &MetadataMap) -> Result<Replies<FlightData>> {
    let mut encoder = Encoder::default();
    match asked(node, command, metadata).await? {
        Asked::Batch(batch) => {
            let messages = [Ok(encoder.schema(batch.schema_ref())), Ok(encoder.batch(&batch, Bytes::new())?)];
            Ok(stream::iter(messages).boxed())
        }
        Asked::Statement(statement) => {
            let answer = sql::run(node, &statement).await?;
            let first = stream::iter([Ok(encoder.schema(&answer.schema))]);
            let parts = ReceiverStream::new(answer.batches).flat_map(|batch| match batch {
                Ok(batch) => stream::iter(in_parts(&batch).into_iter().map(Ok).collect::<Vec<_>>()),
                Err(error) => stream::iter(vec![Err(error)]),
            });
            let encode = move |batch: Result<RecordBatch>| Ok(encoder.batch(&batch?, Bytes::new())?);
            Ok(first.chain(parts.map(encode)).boxed())
        }
    }
}

/// Pieces of a batch that clients take in one message.
fn in_parts(batch: &RecordBatch) -> Vec<RecordBatch> {
    // Of the rows themselves: a slice shares its memory with others.
    let bytes = |column: &ArrayRef| {
        let size = column.to_data().get_slice_memory_size();
        size.unwrap_or_else(|_| column.get_array_memory_size())
    };
    let parts = batch.columns().iter().map(bytes).sum::<usize>().div_ceil(MESSAGE_BYTES).max(1);
    let step = batch.num_rows().div_ceil(parts).max(1);
    let starts = (0..batch.num_rows()).step_by(step);
    starts.map(|start| batch.slice(start, step.min(batch.num_rows() - start))).collect()
}

/// Prepared statements, which hold nothing here. `None` when the action is not of Flight SQL.
///
/// # Errors
/// As [`sql::describe`].
pub async fn action(
    node: &Arc<Node>,
    action: &Action,
    metadata: &MetadataMap,
) -> Result<Option<Vec<arrow_flight::Result>>> {
    match action.r#type.as_str() {
        CLOSE_PREPARED => Ok(Some(Vec::new())),
        CREATE_PREPARED => {
            let broken = |_| Error::invalid("the prepared statement does not decode");
            let any = Any::decode(&*action.body).map_err(broken)?;
            let request = any.unpack::<ActionCreatePreparedStatementRequest>().ok().flatten();
            let request = request.ok_or_else(|| Error::invalid("the prepared statement does not decode"))?;
            let statement = Statement { sql: request.query, project: project(metadata)?, parameters: None };
            let described = sql::describe(node, &statement).await?;
            let result = ActionCreatePreparedStatementResult {
                prepared_statement_handle: handle(&statement)?,
                dataset_schema: ipc(&described.schema)?,
                parameter_schema: ipc(&described.parameters)?,
            };
            Ok(Some(vec![arrow_flight::Result { body: result.as_any().encode_to_vec().into() }]))
        }
        _ => Ok(None),
    }
}

fn ipc(schema: &Schema) -> Result<Bytes> {
    let options = arrow_ipc::writer::IpcWriteOptions::default();
    let message = IpcMessage::try_from(SchemaAsIpc::new(schema, &options));
    message.map(|message| message.0).map_err(|error| Error::internal(error.to_string()))
}

/// Binds the one row of an upload to the parameters of a prepared statement: the answer is the handle to go on with.
///
/// # Errors
/// `InvalidArgument` for a statement that is none, for another number of rows, values or types of them; `TooLarge`.
pub async fn bind(node: &Arc<Node>, command: Command, mut upload: wire::Upload) -> Result<PutResult, Status> {
    let Command::CommandPreparedStatementQuery(prepared) = command else {
        let message = "this node does not offer writes by SQL: it reads and changes nothing; ingest rows instead";
        return Err(Error::new(ErrorKind::Unsupported, message).into());
    };
    let mut statement = statement(&prepared.prepared_statement_handle)?;
    let mut parameters = None;
    while let Some(message) = wire::next(&mut upload.messages).await? {
        let DecodedPayload::RecordBatch(row) = message.payload else { continue };
        if parameters.is_some() {
            return Err(Error::invalid("parameters are bound as one row; run the statement once for each").into());
        }
        parameters = Some(Parameter::of_row(&row).map_err(Error::from)?);
    }
    if parameters.is_none() {
        return Err(Error::invalid("no row of parameters came; bind one value for each").into());
    }
    statement.parameters = parameters;
    let bound = handle(&statement)?;
    sql::describe(node, &statement).await?;
    let result = DoPutPreparedStatementResult { prepared_statement_handle: Some(bound) };
    Ok(PutResult { app_metadata: result.encode_to_vec().into() })
}

fn handle(statement: &Statement) -> Result<Bytes> {
    let handle = serde_json::to_vec(statement).map_err(|error| Error::internal(error.to_string()))?;
    match handle.len() {
        0..=HANDLE_BYTES_MAX => Ok(handle.into()),
        bytes => Err(Error::new(
            ErrorKind::TooLarge,
            format!("the query with its parameters takes {bytes} bytes, over the limit of {HANDLE_BYTES_MAX}"),
        )),
    }
}

fn statement(handle: &[u8]) -> Result<Statement> {
    serde_json::from_slice(handle).map_err(|_| Error::invalid("the statement was not made by this database"))
}

async fn asked(node: &Arc<Node>, command: Command, metadata: &MetadataMap) -> Result<Asked> {
    let internal = |error: arrow_flight::error::FlightError| Error::internal(error.to_string());
    let batch = match command {
        Command::CommandStatementQuery(it) => {
            let statement = Statement { sql: it.query, project: project(metadata)?, parameters: None };
            return Ok(Asked::Statement(statement));
        }
        Command::TicketStatementQuery(it) => return statement(&it.statement_handle).map(Asked::Statement),
        Command::CommandPreparedStatementQuery(it) => {
            return statement(&it.prepared_statement_handle).map(Asked::Statement);
        }
        Command::CommandGetCatalogs(it) => {
            let mut found = it.into_builder();
            found.append(CATALOG);
            found.build()
        }
        Command::CommandGetDbSchemas(it) => {
            let mut found = it.into_builder();
            let catalog = node.fresh_catalog().await?;
            catalog.projects().for_each(|project| found.append(CATALOG, project.name()));
            found.append(CATALOG, SYSTEM);
            found.build()
        }
        Command::CommandGetTables(it) => {
            let mut found = it.into_builder();
            let catalog = node.fresh_catalog().await?;
            for (schema, table, columns) in cairn_query::sql::tables(&catalog, &node.source)? {
                found.append(CATALOG, schema, table, TABLE, &columns).map_err(internal)?;
            }
            found.build()
        }
        Command::CommandGetTableTypes(it) => {
            let mut found = it.into_builder();
            found.append(TABLE);
            found.build()
        }
        Command::CommandGetSqlInfo(it) => it.into_builder(&sql_info()?).build(),
        other => {
            let message = format!("this node does not offer Flight SQL's {}", other.type_url());
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
    };
    batch.map(Asked::Batch).map_err(internal)
}

fn sql_info() -> Result<SqlInfoData> {
    let mut info = SqlInfoDataBuilder::new();
    info.append(SqlInfo::FlightSqlServerName, "Cairn");
    info.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    info.append(SqlInfo::FlightSqlServerReadOnly, true);
    info.append(SqlInfo::FlightSqlServerSql, true);
    info.append(SqlInfo::FlightSqlServerSubstrait, false);
    info.append(SqlInfo::FlightSqlServerTransaction, 0i32);
    info.append(SqlInfo::FlightSqlServerCancel, false);
    info.build().map_err(|error| Error::internal(error.to_string()))
}
