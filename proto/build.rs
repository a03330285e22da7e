//! Compiles the .proto files without protoc; the descriptor set is kept for gRPC reflection.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "thinbak/v1/common.proto",
        "thinbak/v1/repository.proto",
        "thinbak/v1/access.proto",
        "thinbak/v1/agent.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("thinbak.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        // It shows no secret: see `redacted`.
        .skip_debug(["thinbak.v1.CreateTokenResponse"])
        .codec_path("crate::codec::MessageCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
