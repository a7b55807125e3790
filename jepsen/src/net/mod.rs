//! The network between the nodes: every directed pair can be cut, delayed, made lossy or slow on its own.
//!
//! - [`mesh`]: on one machine and without privileges: a TCP proxy before each peer port
//! - [`owner`]: which node a connection comes from

pub mod mesh;
pub mod owner;

/// How bytes travel from one node to another.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Shape {
    /// Nothing arrives, connections stay open: what is on its way arrives after the cut, as TCP sends again.
    pub cut: bool,
    pub delay_ms: u32,
    /// Added to the delay, at random up to this.
    pub jitter_ms: u32,
    /// Share of pieces that are lost and sent again 200 ms later, percent.
    pub loss_percent: u8,
    /// 0 = no limit.
    pub bytes_per_s: u32,
}
