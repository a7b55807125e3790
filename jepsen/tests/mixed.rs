//! The short form of `make jepsen`: every promise, on three nodes. What needs root or a library of its own is left to the
//! long form.

use cairn_jepsen::mixed::{Plan, run};
use cairn_jepsen::net::Kind;
use cairn_jepsen::{Result, workloads};
use std::time::Duration;

const FAULTS: [&str; 10] =
    ["kill", "pause", "leader-alone", "majority", "one-way", "slow", "flip", "cut-file", "transfers", "renew"];

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
        nemeses: FAULTS.map(str::to_owned).to_vec(),
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
