//! Generates messages, client and server from `tcptracer/v1`, without protoc.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use tonic_prost_build::manual::{Builder, Method, Service};

const FILE: &str = "tcptracer/v1/tcptracer.proto";

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    println!("cargo:rerun-if-changed=tcptracer");

    let descriptors = protox::compile([FILE], ["."])?;
    fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(descriptors)?;

    // The server is generated apart, because its stream carries frames that are encoded already, and so is a client that
    // takes them as they are.
    Builder::new()
        .build_client(false)
        .compile(&[service("crate::FrameCodec")]);
    let client = out.join("client");
    fs::create_dir_all(&client)?;
    Builder::new()
        .build_server(false)
        .out_dir(client)
        .compile(&[service("crate::ClientFrameCodec")]);
    Ok(())
}

/// Watches with frames, by this codec.
fn service(frames: &str) -> Service {
    let method = |name: &str, route: &str, output: &str, codec: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type(format!("crate::v1::{route}Request"))
            .output_type(output)
            .codec_path(codec)
    };
    let prost = "tonic_prost::ProstCodec";
    Service::builder()
        .name("TcpTracerService")
        .package("tcptracer.v1")
        .comment("Tells about the TCP connections of a node.")
        .method(
            method("watch", "Watch", "crate::Frame", frames)
                .server_streaming()
                .build(),
        )
        .method(
            method(
                "end_watch",
                "EndWatch",
                "crate::v1::EndWatchResponse",
                prost,
            )
            .build(),
        )
        .method(
            method(
                "list_connections",
                "ListConnections",
                "crate::v1::ListConnectionsResponse",
                prost,
            )
            .server_streaming()
            .build(),
        )
        .method(
            method(
                "get_server_info",
                "GetServerInfo",
                "crate::v1::GetServerInfoResponse",
                prost,
            )
            .build(),
        )
        .build()
}
