//! Generates the client of etcd from the `.proto` file in `peers/`, with no `protoc` and no network.

use std::path::PathBuf;

const FILE: &str = "etcd.proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=peers/{FILE}");
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("peers");
    let descriptors = protox::compile([FILE], [&root])?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    Ok(())
}
