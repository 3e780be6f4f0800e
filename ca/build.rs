//! Generates the gRPC code of `ca.v1`; the compiler of the definitions is a library, so nothing need be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/ca.proto");
    let definitions = protox::compile(["proto/ca.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(definitions)?;
    Ok(())
}
