//! What the fault tests share: a node with a little in it that must come through unharmed, and refusals as short text.
//!
//! Always true: [`Victim::unharmed`] ends every test that sends something wrong: no log entry was made, what was stored
//! reads as before, new rows are taken, and the process stops cleanly.

pub mod process;
pub mod wire;

use crate::support::rows::{at, batch, floats32, ints, show, times};
use crate::support::{Story, TestResult, service};
use arrow_array::RecordBatch;
use cairn_client::{Error, ErrorKind};

/// One view, one service that reads it, a model and a deployment without versions.
pub const DEFINITIONS: &str = r#"kind: Entity
name: driver
spec: {join_keys: [{name: driver_id, type: int64}]}
---
kind: FeatureView
name: stats
spec:
  entities: [driver]
  features:
    - {name: rating, type: float32}
    - {name: trips, type: int64}
---
kind: FeatureService
name: eta
spec: {features: [stats]}
---
kind: Model
name: fare
spec: {feature_service: eta}
---
kind: Deployment
name: quote
spec: {model: fare, champion: {alias: champion}}
"#;

/// A row of `stats`.
pub fn row(driver: i64, rating: f32, trips: i64) -> RecordBatch {
    batch(&[
        ("driver_id", ints([driver])),
        ("event_timestamp", times([at(0)])),
        ("rating", floats32([rating])),
        ("trips", ints([trips])),
    ])
}

pub fn driver(id: i64) -> RecordBatch {
    batch(&[("driver_id", ints([id]))])
}

/// A node with [`DEFINITIONS`] and one row, about to be treated badly.
pub struct Victim {
    pub story: Story,
    log: Vec<(u32, u64)>,
}

impl Victim {
    pub async fn new() -> TestResult<Self> {
        let story = Story::one_node().await?;
        story.apply(DEFINITIONS).await?;
        story.store("stats", row(7, 4.5, 3)).await?;
        let log = log(&story).await?;
        Ok(Self { story, log })
    }

    pub fn address(&self) -> &str {
        &self.story.cluster.nodes()[0].address
    }

    pub fn peer_address(&self) -> &str {
        &self.story.cluster.nodes()[0].peer_address
    }

    /// Nothing was written since the node was made ready.
    pub async fn unchanged(&self) -> TestResult {
        assert_eq!(log(&self.story).await?, self.log, "a refused request left a log entry (group, last index)");
        Ok(())
    }

    /// A read of what was stored, as everybody else makes it meanwhile.
    pub async fn serves(&self) -> TestResult {
        let read = self.story.online(service("eta"), &driver(7)).await?;
        assert_eq!(show(&read), "driver_id | rating | trips\n7 | 4.5 | 3\n");
        Ok(())
    }

    /// Nothing was written, everything works, and the process ends cleanly.
    pub async fn unharmed(self) -> TestResult {
        self.unchanged().await?;
        self.works().await
    }

    /// Everything works, and the process ends cleanly.
    pub async fn works(self) -> TestResult {
        self.serves().await?;
        self.story.store("stats", row(8, 5.0, 1)).await?;
        let read = self.story.online(service("eta"), &driver(8)).await?;
        assert_eq!(show(&read), "driver_id | rating | trips\n8 | 5.0 | 1\n");
        self.story.end().await
    }
}

/// Last log index of every group.
async fn log(story: &Story) -> TestResult<Vec<(u32, u64)>> {
    let status = story.client.status().await?;
    Ok(status.groups.iter().map(|group| (group.group, group.last_log_index)).collect())
}

/// A refusal as `kind: message`.
///
/// # Panics
/// When the request was taken, or failed on the way and not by the node's refusal.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(outcome: Result<T, Error>) -> String {
    match outcome {
        Err(Error::Refused { kind, message }) => format!("{kind}: {message}"),
        Err(other) => panic!("no refusal by the node: {other:?}"),
        Ok(taken) => panic!("taken: {taken:?}"),
    }
}

/// A gRPC status as `kind: message`.
pub fn told(status: &tonic::Status) -> String {
    format!("{}: {}", ErrorKind::of_status(status), status.message())
}
