/*!
The gRPC API of the agent: messages and client as generated, and a server and a [`client`] whose streams carry [`Frame`]s.

An event is encoded once, and all subscribers share its bytes; so what the server streams is not a
message but the bytes of one. Who takes many events reads them where they are, as [`EventView`]s. [`EncodedEvent`],
[`EventBytes`] and [`Frame`] are the only places that know the wire format.

With the feature `selector`, [`LabelSelector`] is the grammar of `Filter.label_selector`, for both ends: what a client
accepts, the agent does.
*/

mod encoded;
mod frame;
mod names;
#[cfg(feature = "selector")]
mod selector;
#[allow(missing_docs, clippy::all, clippy::use_self)]
pub mod v1;
mod view;
mod wire;

pub use encoded::{EncodedEvent, EncodedIdentity};
pub use frame::{Batch, ClientFrameCodec, Frame, FrameCodec};
#[cfg(feature = "selector")]
pub use selector::{InvalidSelector, LabelSelector};
pub use view::{
    CloserView, ConnectionView, EndpointView, EventBytes, EventView, IdentityBytes, ProcessView,
};
pub use wire::Malformed;

/// The server of `tcptracer.v1`.
#[allow(missing_docs, clippy::all, clippy::use_self)]
pub mod server {
    include!(concat!(
        env!("OUT_DIR"),
        "/tcptracer.v1.TcpTracerService.rs"
    ));
    pub use tcp_tracer_service_server::{TcpTracerService, TcpTracerServiceServer};
}

/// A client of `tcptracer.v1` whose stream carries [`Frame`]s.
#[allow(missing_docs, clippy::all, clippy::use_self)]
pub mod client {
    include!(concat!(
        env!("OUT_DIR"),
        "/client/tcptracer.v1.TcpTracerService.rs"
    ));
    pub use tcp_tracer_service_client::TcpTracerServiceClient;
}

/// The encoded `FileDescriptorSet` of the API, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
