//! Generates the protobuf code from the `.proto` files beside this one, with no `protoc` and no network.

use std::path::PathBuf;

const FILES: [&str; 3] = ["cairn/api/v1/api.proto", "cairn/record/v1/record.proto", "cairn/peer/v1/peer.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let descriptors = protox::compile(FILES, [&root])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
