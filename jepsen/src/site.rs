//! What every workload works with: clients of each node, the history, and the sign to stop.

use crate::Result;
use crate::history::{History, Moment, Outcome, Stamp};
use cairn_client::{Client, Options};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// One operation may take this long; then its outcome is unknown.
const PATIENCE: Duration = Duration::from_secs(4);
/// Reads of the final checks may take this long.
const FINAL_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub struct Site {
    /// One client a node: an operation goes to this node or nowhere.
    nodes: Arc<[(String, Client)]>,
    /// Goes to any node.
    pub any: Client,
    /// One patient client a node, for the checks in the end.
    finals: Arc<[(String, Client)]>,
    pub history: Arc<History>,
    stop: Arc<AtomicBool>,
    seed: u64,
}

/// An operation and what came of it.
#[derive(Debug)]
pub struct Done<T> {
    pub began: Moment,
    pub ended: Moment,
    pub outcome: Outcome,
    /// The answer; the node's own words otherwise.
    pub answer: Result<T, cairn_client::Error>,
}

/// Who asks what of whom.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a, W> {
    pub workload: &'static str,
    pub client: u32,
    pub node: &'a str,
    pub what: W,
    /// A failed read changed nothing, whatever the error.
    pub writes: bool,
}

impl Site {
    /// # Errors
    /// Addresses that are none.
    pub async fn new(nodes: &[(String, String)], history: Arc<History>, seed: u64) -> Result<Self> {
        let mut each = Vec::new();
        let mut finals = Vec::new();
        for (name, address) in nodes {
            let options = Options { deadline: PATIENCE, ..Options::default() };
            each.push((name.clone(), Client::with_options(address, options).await?));
            let options = Options { deadline: FINAL_PATIENCE, ..Options::default() };
            finals.push((name.clone(), Client::with_options(address, options).await?));
        }
        let all = nodes.iter().map(|(_, address)| address.as_str()).collect::<Vec<_>>().join(",");
        let any = Client::with_options(&all, Options { deadline: PATIENCE * 2, ..Options::default() }).await?;
        let stop = Arc::new(AtomicBool::new(false));
        Ok(Self { nodes: each.into(), any, finals: finals.into(), history, stop, seed })
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The chance of one client of one workload.
    pub fn random(&self, workload: &str, client: u32) -> StdRng {
        let name = workload.bytes().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        StdRng::seed_from_u64(self.seed ^ name.rotate_left(20) ^ u64::from(client).rotate_left(44))
    }

    /// Any node's own client and name; one time in four a client that may use all of them.
    pub fn pick(&self, random: &mut StdRng) -> (&str, &Client) {
        if random.random_range(0..4) == 0 {
            return ("any", &self.any);
        }
        let (name, client) = &self.nodes[random.random_range(0..self.nodes.len())];
        (name, client)
    }

    /// Every node with a patient client, for final checks.
    pub fn finals(&self) -> impl Iterator<Item = (&str, &Client)> {
        self.finals.iter().map(|(name, client)| (name.as_str(), client))
    }

    /// Carries out one operation and keeps it; `say` puts its answer into words.
    pub async fn act<T, W: Serialize>(
        &self,
        ask: Ask<'_, W>,
        call: impl Future<Output = cairn_client::Result<T>>,
        say: impl FnOnce(&T) -> String,
    ) -> Done<T> {
        let began = self.history.now();
        let answer = call.await;
        let ended = self.history.now();
        let (outcome, told) = match &answer {
            Ok(answer) => (Outcome::Ok, say(answer)),
            Err(error) if ask.writes => (Outcome::of_write(error), error.to_string()),
            Err(error) => (Outcome::Failed, error.to_string()),
        };
        let stamp = Stamp { workload: ask.workload, client: ask.client, began, ended, outcome };
        self.history.note(stamp, ask.node, &ask.what, &told);
        Done { began, ended, outcome, answer }
    }

    /// A pause between two operations of a client, so that many clients fit on few cores.
    pub async fn breathe(&self, random: &mut StdRng, longest_ms: u64) {
        tokio::time::sleep(Duration::from_millis(random.random_range(0..=longest_ms))).await;
    }
}

impl<'a> Ask<'a, ()> {
    pub fn with<W>(self, what: W, writes: bool) -> Ask<'a, W> {
        Ask { workload: self.workload, client: self.client, node: self.node, what, writes }
    }
}
