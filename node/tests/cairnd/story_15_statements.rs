//! Story 15: statements with parameters, from a stock driver and from node to node; and counters tell what was asked in SQL.

use crate::faults_support::told;
use crate::faults_support::wire::connect;
use crate::pyarrow::python;
use crate::support::http::get;
use crate::support::rows::{at, batch, ints, texts, times};
use crate::support::sql::number;
use crate::support::{Story, TestResult};
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::sql::{
    ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any, CommandPreparedStatementQuery,
    CommandStatementUpdate, DoPutPreparedStatementResult, ProstMessageExt,
};
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{Action, FlightData, FlightDescriptor, Ticket};
use bytes::Bytes;
use cairn_client::{DEFAULT_PROJECT, ErrorKind};
use expect_test::expect;
use futures::TryStreamExt;
use prost::Message;
use std::time::Duration;
use tonic::Status;

const DRIVERS: &str = r#"
kind: Entity
name: driver
spec: {join_keys: [{name: driver_id, type: int64}]}
---
kind: FeatureView
name: stats
spec: {entities: [driver], features: [{name: trips, type: int64}, {name: city, type: string}]}
"#;
const KEYS: i64 = 100;

fn drivers(event_us: i64, trips: i64) -> RecordBatch {
    batch(&[
        ("driver_id", ints(0..KEYS)),
        ("event_timestamp", times((0..KEYS).map(|_| event_us))),
        ("trips", ints((0..KEYS).map(|key| key + trips))),
        ("city", texts((0..KEYS).map(|key| if key % 2 == 0 { "Oslo" } else { "Bergen" }))),
    ])
}

/// What a stock driver does: `?` and `$1`, values of every kind, and what is wrong with them.
const SCRIPT: &str = r#"
import datetime, os
import adbc_driver_flightsql.dbapi as flightsql

def refused(cursor, sql, parameters=None):
    try:
        cursor.execute(sql, parameters)
        print("taken", cursor.fetchall())
    except flightsql.Error as error:
        print("refused", str(error).split("[FlightSQL] ")[-1].split(" (InvalidArgument")[0])

with flightsql.connect("grpc://" + os.environ["CAIRN_NODE"], autocommit=True) as db, db.cursor() as cursor:
    def ask(sql, parameters=None):
        cursor.execute(sql, parameters)
        print(cursor.fetchall())
    ask("select trips from stats where driver_id = $1", (7,))
    ask("select trips from stats where driver_id = ?", (8,))
    ask("select count(*) from stats where city = ? and trips < ?", ("Oslo", 20))
    then = datetime.datetime.fromtimestamp(int(os.environ["THEN"]), tz=datetime.timezone.utc)
    ask("select trips from as_of('stats', ?) where driver_id = ?", (then, 7))
    ask("select count(*) from stats where city = ?", ("Oslo' or 'a' = 'a",))
    ask("select count(*) from stats where city = ?", (None,))
    # The same statement with other values, as it was prepared once.
    for key in (1, 2):
        ask("select driver_id from stats where driver_id = $1", (key,))
    refused(cursor, "select trips from stats where driver_id = $1", (1, 2))
    refused(cursor, "select trips from stats where driver_id = $1", ("seven",))
    refused(cursor, "select trips from stats where driver_id = $1", (1.5,))
    refused(cursor, "select trips, city from stats where driver_id = $1")
    refused(cursor, "delete from stats where driver_id = $1", (1,))
    try:
        cursor.executemany("select trips from stats where driver_id = $1", [(1,), (2,)])
        print("taken")
    except flightsql.Error as error:
        print("refused", type(error).__name__)
    ask("select count(*) from stats")
"#;

#[tokio::test]
async fn a_stock_adbc_driver_binds_values() -> TestResult {
    let python = python();
    let story = Story::one_node().await?;
    story.apply(DRIVERS).await?;
    story.store("stats", drivers(at(10), 0)).await?;
    story.store("stats", drivers(at(20), 5)).await?;
    let mut script = tokio::process::Command::new(python);
    let address = &story.cluster.nodes()[0].address;
    script.args(["-c", SCRIPT]).env("CAIRN_NODE", address).env("THEN", (at(15) / 1_000_000).to_string());
    script.kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(60), script.output()).await??;
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{errors}");
    expect![[r#"
        [(12,)]
        [(13,)]
        [(8,)]
        [(7,)]
        [(0,)]
        [(0,)]
        [(1,)]
        [(2,)]
        refused the query takes 1 parameter ($1), and 2 values were bound; bind one value for each
        refused parameter $1 is Int64 in this query, and a string was bound; bind such a value, or cast in the query
        refused parameter $1 is Int64 in this query, and a float was bound; bind such a value, or cast in the query
        refused the query takes 1 parameter ($1), and no values were bound; prepare it, and bind a row with one value for each
        refused SQL here reads and changes nothing; Delete is refused
        refused NotSupportedError
        [(100,)]
    "#]].assert_eq(&out);
    story.end().await
}

type Handle = Bytes;

/// Prepares a query on a node: the handle.
async fn prepare(address: &str, sql: &str) -> TestResult<Result<Handle, Status>> {
    let request = ActionCreatePreparedStatementRequest { query: sql.to_owned(), transaction_id: None };
    let action = Action::new("CreatePreparedStatement", request.as_any().encode_to_vec());
    let answer = match connect(address).await?.do_action(action).await {
        Ok(answer) => answer.into_inner().try_collect::<Vec<_>>().await?,
        Err(status) => return Ok(Err(status)),
    };
    let result: ActionCreatePreparedStatementResult = Any::decode(&*answer[0].body)?.unpack()?.ok_or("no statement")?;
    Ok(Ok(result.prepared_statement_handle))
}

fn under(command: Vec<u8>, rows: &[RecordBatch]) -> TestResult<Vec<FlightData>> {
    let mut messages = batches_to_flight_data(rows[0].schema_ref(), rows.to_vec())?;
    messages[0].flight_descriptor = Some(FlightDescriptor::new_cmd(command));
    Ok(messages)
}

async fn put(address: &str, messages: Vec<FlightData>) -> TestResult<Result<Handle, Status>> {
    let put = async {
        let mut client = connect(address).await.map_err(|error| Status::internal(error.to_string()))?;
        let mut replies = client.do_put(futures::stream::iter(messages)).await?.into_inner();
        replies.message().await?.ok_or_else(|| Status::internal("no answer"))
    };
    Ok(match put.await {
        Ok(reply) => {
            Ok(DoPutPreparedStatementResult::decode(&*reply.app_metadata)?.prepared_statement_handle.ok_or("none")?)
        }
        Err(status) => Err(status),
    })
}

/// Binds rows to a prepared statement: the handle to go on with.
async fn bind(address: &str, handle: &Handle, rows: &[RecordBatch]) -> TestResult<Result<Handle, Status>> {
    let command = CommandPreparedStatementQuery { prepared_statement_handle: handle.clone() };
    put(address, under(command.as_any().encode_to_vec(), rows)?).await
}

async fn fetch(address: &str, handle: &Handle) -> TestResult<Result<Vec<i64>, Status>> {
    let command = CommandPreparedStatementQuery { prepared_statement_handle: handle.clone() };
    let answer = match connect(address).await?.do_get(Ticket::new(command.as_any().encode_to_vec())).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    let rows = FlightRecordBatchStream::new_from_flight_data(answer.map_err(Into::into)).try_collect::<Vec<_>>().await;
    let rows: Vec<RecordBatch> = match rows {
        Ok(rows) => rows,
        Err(arrow_flight::error::FlightError::Tonic(status)) => return Ok(Err(*status)),
        Err(error) => return Err(error.into()),
    };
    Ok(Ok(rows.iter().flat_map(|rows| rows.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()))
}

#[tokio::test]
async fn a_statement_goes_from_node_to_node() -> TestResult {
    let story = Story::nodes(3, &[]).await?;
    story.apply(DRIVERS).await?;
    story.store("stats", drivers(at(10), 0)).await?;
    let [a, b, c] = [0, 1, 2].map(|node| story.cluster.nodes()[node].address.clone());
    let handle = prepare(&a, "select trips from stats where driver_id = $1 and city <> $2").await??;
    let values = |key: i64, city: &str| batch(&[("0", ints([key])), ("1", texts([city]))]);
    let bound = bind(&b, &handle, &[values(41, "Oslo")]).await??;
    assert_eq!(fetch(&c, &bound).await??, [41]);
    // The one that was prepared stays without values, and is bound anew.
    let again = bind(&c, &handle, &[values(41, "Bergen")]).await??;
    assert_eq!(fetch(&a, &again).await??, [0_i64; 0]);
    let refused = |status: Result<Handle, Status>| told(&status.unwrap_err());
    expect!["invalid_argument: the query takes 2 parameters ($1, $2), and no values were bound; prepare it, and bind a row with one value for each"].assert_eq(&told(&fetch(&b, &handle).await?.unwrap_err()));
    let two = [values(1, "Oslo"), values(2, "Oslo")];
    expect!["invalid_argument: parameters are bound as one row; run the statement once for each"]
        .assert_eq(&refused(bind(&b, &handle, &two).await?));
    let none = [values(1, "Oslo").slice(0, 0)];
    expect!["invalid_argument: parameters are bound as one row, and 0 came; run the statement once for each"]
        .assert_eq(&refused(bind(&b, &handle, &none).await?));
    let swapped = batch(&[("0", texts(["Oslo"])), ("1", ints([1]))]);
    expect!["invalid_argument: parameter $1 is Int64 in this query, and a string was bound; bind such a value, or cast in the query"].assert_eq(&refused(bind(&b, &handle, &[swapped]).await?));
    let much = "x".repeat(600 << 10);
    expect!["too_large: the query with its parameters takes 614532 bytes, over the limit of 524288"]
        .assert_eq(&refused(bind(&b, &handle, &[values(1, &much)]).await?));
    expect!["invalid_argument: the statement was not made by this database"]
        .assert_eq(&refused(bind(&b, &Bytes::from_static(b"{}"), &two[..1]).await?));
    expect!["invalid_argument: SQL here reads and changes nothing; Delete is refused"]
        .assert_eq(&refused(prepare(&b, "delete from stats where driver_id = $1").await?));
    let update = CommandStatementUpdate { query: "delete from stats".to_owned(), transaction_id: None };
    let update = under(update.as_any().encode_to_vec(), &two[..1])?;
    expect!["unsupported: this node does not offer writes by SQL: it reads and changes nothing; ingest rows instead"]
        .assert_eq(&refused(put(&b, update).await?));
    story.end().await
}

#[tokio::test]
async fn counters_tell_what_was_asked() -> TestResult {
    let story = Story::nodes(1, &["--sql-rows-max", "150"]).await?;
    story.apply(DRIVERS).await?;
    story.store("stats", drivers(at(10), 0)).await?;
    story.store("stats", drivers(at(20), 0)).await?;
    let address = story.cluster.nodes()[0].address.clone();
    let counters = || -> TestResult<Vec<String>> {
        let text = get(&address, "/metrics")?.body;
        let zero = |line: &&str| !line.ends_with(" 0");
        let ours =
            text.lines().filter(|line| line.starts_with("cairn_sql_") && !line.contains("duration")).filter(zero);
        Ok(ours.map(str::to_owned).collect())
    };
    assert_eq!(counters()?, [""; 0]);
    assert_eq!(number(&story.client, "select count(*) from stats").await?, KEYS);
    let mut rows = story.client.sql("select * from stats", DEFAULT_PROJECT).await?;
    while rows.next().await?.is_some() {}
    assert_eq!(counters()?, ["cairn_sql_queries_total 2", "cairn_sql_rows_total 101"]);
    let refused = async |sql: &str| {
        let rows = story.client.sql(sql, DEFAULT_PROJECT).await;
        let mut rows = match rows {
            Ok(rows) => rows,
            Err(error) => return error.kind(),
        };
        loop {
            match rows.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("{sql} is answered"),
                Err(error) => return error.kind(),
            }
        }
    };
    assert_eq!(refused("select * from nothing").await, ErrorKind::InvalidArgument);
    assert_eq!(refused("delete from stats").await, ErrorKind::InvalidArgument);
    assert_eq!(refused("select * from history('stats')").await, ErrorKind::TooLarge);
    // One that is read is under way until its reader is gone.
    let endless =
        "with recursive n as (select 1 as i union all select i + 1 from n where i > 0) select count(*) from n";
    let held = story.client.sql(endless, DEFAULT_PROJECT).await?;
    let with = |under_way: bool| {
        let lines = [
            "cairn_sql_queries_total 6",
            "cairn_sql_queries_under_way 1",
            "cairn_sql_refused_total{kind=\"invalid_argument\"} 2",
            "cairn_sql_refused_total{kind=\"too_large\"} 1",
        ];
        lines.into_iter().filter(|line| under_way || !line.contains("under_way")).collect::<Vec<_>>()
    };
    // Of the answer that was too large a part was sent.
    let but_rows = || -> TestResult<Vec<String>> {
        Ok(counters()?.into_iter().filter(|line| !line.starts_with("cairn_sql_rows_total")).collect())
    };
    assert_eq!(but_rows()?, with(true));
    drop(held);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let mut looks = tokio::time::interval(Duration::from_millis(10));
    while but_rows()? != with(false) {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", counters()?);
        looks.tick().await;
    }
    let text = get(&address, "/metrics")?.body;
    assert!(text.contains("\ncairn_sql_duration_seconds_count 6\n"), "{text}");
    story.end().await
}
