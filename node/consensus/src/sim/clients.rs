//! What clients do: numbered commands and reads of every level, at the node they are on, one after the other.

use super::history::{self, Event, Level};
use super::host::{Machine, Process};
use super::operator;
use crate::types::GroupId;
use bytes::Bytes;
use cairn_proto::ErrorKind;
use rand::Rng;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// The group that clients use; meta has enough of its own.
pub const GROUP: GroupId = 1;
const CLIENTS: usize = 2;
const TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the clients of one machine until the power goes.
pub async fn run(machine: Arc<Machine>, process: Process) {
    let clients = (0..CLIENTS).map(|_| client(&machine, &process));
    futures::future::join(futures::future::join_all(clients), operator::run(&machine, &process)).await;
}

async fn client(machine: &Machine, process: &Process) {
    let mut token = 0;
    loop {
        let pause = rand::rng().random_range(10..200);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if !machine.world.busy.load(Ordering::Relaxed) {
            continue;
        }
        let dice = rand::rng().random_range(0..10);
        match dice {
            0..5 => {
                if let Some(index) = write(machine, process, dice % 2 == 0).await {
                    machine.acknowledged.fetch_add(1, Ordering::Relaxed);
                    token = index;
                }
            }
            5..8 => read(machine, process, Level::Linearizable).await,
            8 => {
                let age = rand::rng().random_range(100..1000);
                read(machine, process, Level::Bounded(Duration::from_millis(age))).await;
            }
            _ => read(machine, process, Level::AtLeast(token)).await,
        }
    }
}

/// Proposes the next command; returns where it stands if it was acknowledged.
pub async fn write(machine: &Machine, process: &Process, idempotent: bool) -> Option<u64> {
    let operation = machine.world.operations.fetch_add(1, Ordering::Relaxed) + 1;
    let command = Bytes::from(format!("{}{operation}", if idempotent { 'i' } else { 'n' }));
    history::see(&Event::Proposed { operation, idempotent });
    let deadline = Instant::now() + TIMEOUT;
    match process.cluster.propose(GROUP, command.clone(), idempotent, deadline).await {
        Ok(proposed) => {
            assert_eq!(proposed.outcome, command, "another command's answer");
            history::see(&Event::Acknowledged { operation, index: proposed.index });
            Some(proposed.index)
        }
        Err(error) => {
            let unknown = matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Internal);
            history::see(&if unknown { Event::Unknown { operation } } else { Event::Refused { operation } });
            None
        }
    }
}

async fn read(machine: &Machine, process: &Process, level: Level) {
    let read = machine.world.reads.fetch_add(1, Ordering::Relaxed) + 1;
    history::see(&Event::ReadBegan { read, level });
    let deadline = Instant::now() + TIMEOUT;
    let cluster = &process.cluster;
    let ready = match level {
        Level::Linearizable => cluster.linearizable(GROUP, deadline).await,
        Level::Bounded(age) => cluster.bounded(GROUP, age, deadline).await,
        Level::AtLeast(index) => cluster.wait_applied(GROUP, index, deadline).await,
    };
    if ready.is_ok() {
        history::see(&Event::ReadEnded { read, seen: process.host.applied(GROUP) });
    }
}
