//! Who leads, drains, leaves and comes back: orders that the nemesis draws, carried out through whatever node runs.

use super::history::note;
use super::host::{Machine, Process};
use crate::META_COMMAND_VERSION;
use crate::types::{GroupId, NodeId};
use cairn_proto::record::v1::{self as record, NodeState, meta_command::Change};
use prost::Message;
use std::time::Duration;
use tokio::time::Instant;

const LOOK: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(3);
/// Orders that wait at one machine; one more takes the place of the oldest.
const WAITING_MAX: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Transfer { group: GroupId, to: NodeId },
    Become { node: NodeId, state: NodeState },
    Rebalance,
}

impl Machine {
    pub fn order(&self, order: Order) {
        let mut orders = self.orders.lock();
        if orders.len() == WAITING_MAX {
            orders.pop_front();
        }
        orders.push_back(order);
    }
}

/// Carries out the orders given to a machine, one after the other, until the power goes.
pub async fn run(machine: &Machine, process: &Process) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(order) = machine.orders.lock().pop_front() else { continue };
        let outcome = match carry_out(process, order).await {
            Ok(()) => "done".to_owned(),
            Err(error) => error.to_string(),
        };
        note(format!("{order:?} through {}: {outcome}", machine.name()));
    }
}

async fn carry_out(process: &Process, order: Order) -> crate::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    match order {
        Order::Transfer { group, to } => process.cluster.transfer_lead(group, to, deadline).await.map(drop),
        Order::Rebalance => process.cluster.rebalance(deadline).await.map(drop),
        Order::Become { node, state } => {
            let change = record::ChangeNodeState { id: node, state: state as i32, forced: false };
            let command = record::MetaCommand {
                version: META_COMMAND_VERSION,
                change: Some(Change::ChangeNodeState(change)),
                ..record::MetaCommand::default()
            };
            // The same again changes nothing, but later it might: it is sent once.
            process.cluster.propose(0, command.encode_to_vec().into(), false, deadline).await.map(drop)
        }
    }
}
