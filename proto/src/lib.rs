/*!
The gRPC API of the agent: messages and client as generated, and a server whose stream carries [`Frame`]s.

An event is encoded once, and all subscribers share its bytes; so what the server streams is not a
message but the bytes of one. [`EncodedEvent`] and [`Frame`] are the only places that know the wire format.

With the feature `selector`, [`LabelSelector`] is the grammar of `Filter.label_selector`, for both ends: what a client
accepts, the agent does.
*/

mod frame;
mod names;
#[cfg(feature = "selector")]
mod selector;
#[allow(missing_docs, clippy::all, clippy::use_self)]
pub mod v1;

pub use frame::{EncodedEvent, Frame, FrameCodec};
#[cfg(feature = "selector")]
pub use selector::{InvalidSelector, LabelSelector};

/// The server of `tcptracer.v1`.
#[allow(missing_docs, clippy::all, clippy::use_self)]
pub mod server {
    include!(concat!(
        env!("OUT_DIR"),
        "/tcptracer.v1.TcpTracerService.rs"
    ));
    pub use tcp_tracer_service_server::{TcpTracerService, TcpTracerServiceServer};
}

/// The encoded `FileDescriptorSet` of the API, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
