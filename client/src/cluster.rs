//! Nodes and groups: who is there, who leads, who should leave.
//!
//! Nodes are named by name or by id. Every call here may be sent again: what is done already is done.

use crate::api::cluster_client::ClusterClient;
use crate::connection::limited;
use crate::error::Result;
use crate::retry::Repeat;
use crate::{Client, api};

impl Client {
    /// The nodes and groups as all nodes see them: every node is asked.
    ///
    /// # Errors
    /// `Unavailable` when no node can be reached.
    pub async fn cluster_status(&self) -> Result<api::StatusReply> {
        let request = api::StatusRequest { all_nodes: true };
        self.call(Repeat::Harmless, request, |channel, request| async move {
            limited!(ClusterClient, channel).status(request).await
        })
        .await
    }

    /// Makes `node` the leader of `group` (0 = meta); returns once it leads.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument` or `Conflict` for a node that cannot lead, `Unavailable` for one that is away or behind.
    pub async fn transfer_leader(&self, group: u32, node: &str) -> Result<api::TransferLeaderReply> {
        let request = api::TransferLeaderRequest { group, node: node.to_owned() };
        self.call(Repeat::Harmless, request, |channel, request| async move {
            limited!(ClusterClient, channel).transfer_leader(request).await
        })
        .await
    }

    /// Moves every lead away from `node` and gives it none, until that is undone. Returns before the leads have moved.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for the last active node.
    pub async fn drain_node(&self, node: &str, undo: bool) -> Result<api::MembersReply> {
        let request = api::DrainRequest { node: node.to_owned(), undo };
        self.call(Repeat::Harmless, request, |channel, request| async move {
            limited!(ClusterClient, channel).drain(request).await
        })
        .await
    }

    /// Takes `node` out of the cluster, for good. Returns when that has begun; [`Client::cluster_status`] names the node
    /// until it is out.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for the last active node; `Conflict` where it would cost a quorum and `force` is not set.
    pub async fn remove_node(&self, node: &str, force: bool) -> Result<api::MembersReply> {
        let request = api::RemoveRequest { node: node.to_owned(), force };
        self.call(Repeat::Harmless, request, |channel, request| async move {
            limited!(ClusterClient, channel).remove(request).await
        })
        .await
    }

    /// Spreads leads and voters evenly over the active nodes, now; returns what was moved.
    ///
    /// # Errors
    /// `Unavailable` without a leader of meta; `Overloaded` while another rebalance is under way.
    pub async fn rebalance(&self) -> Result<api::RebalanceReply> {
        self.call(Repeat::Harmless, api::RebalanceRequest {}, |channel, request| async move {
            limited!(ClusterClient, channel).rebalance(request).await
        })
        .await
    }

    /// Moves the slots `first`…=`last`, all of one shard, to shard `to` while reads and writes go on. Returns when that has
    /// begun; [`Client::cluster_status`] names the move until it is over.
    ///
    /// # Errors
    /// `InvalidArgument` for a range that is not in one shard, or is in `to` already; `NotFound` for an unknown shard;
    /// `Conflict` while another move is under way.
    pub async fn move_slots(&self, first: u32, last: u32, to: u32) -> Result<api::SlotMove> {
        let request = api::MoveSlotsRequest { first, last, to };
        let reply = self.call(Repeat::Harmless, request, |channel, request| async move {
            limited!(ClusterClient, channel).move_slots(request).await
        });
        Ok(reply.await?.r#move.unwrap_or_default())
    }

    /// Gives up the move of slots that is under way. If it is past that, it is completed all the same: the slot map of
    /// [`Client::cluster_status`] tells, once no move is named any more.
    ///
    /// # Errors
    /// `NotFound` when none is under way; `Conflict` when the slots have moved already.
    pub async fn cancel_slot_move(&self) -> Result<api::SlotMove> {
        let request = api::CancelSlotMoveRequest { id: 0 };
        let reply = self.call(Repeat::Harmless, request, |channel, request| async move {
            limited!(ClusterClient, channel).cancel_slot_move(request).await
        });
        Ok(reply.await?.r#move.unwrap_or_default())
    }
}
