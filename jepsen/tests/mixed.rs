//! The short form of `make jepsen`: every promise under every kind of fault, on three nodes.

use cairn_jepsen::mixed::{Plan, run};
use cairn_jepsen::nemesis::SMALL_DISKS_ONLY;
use cairn_jepsen::net::Kind;
use cairn_jepsen::{Result, nemesis, workloads};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn every_promise_holds_under_mixed_faults() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let seed = std::env::var("CAIRN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(3);
    let plan = Plan {
        cairnd: cairn_client::local::cairnd()?,
        nodes: 3,
        network: Kind::Proxy,
        small_disks: false,
        lasts: Duration::from_secs(30),
        seed,
        nemeses: nemesis::ALL.iter().filter(|kind| **kind != SMALL_DISKS_ONLY).map(|kind| (*kind).to_owned()).collect(),
        workloads: workloads::ALL.map(str::to_owned).to_vec(),
    };
    let verdict = run(&plan, folder.path()).await?;
    print!("{}", verdict.print());
    if !verdict.holds() {
        println!("kept in {}", folder.keep().display());
    }
    assert!(verdict.holds(), "{}", verdict.print());
    Ok(())
}
