/*!
The gRPC service `tcptracer.v1`. Read-only.

A call turns its request into a typed filter, or refuses it naming the field, and asks the node's task
for the rest. Nothing here holds state but the limits on streams and connections.
*/

mod connection;
mod listen;
mod service;

pub use connection::Door;
pub use listen::{Address, Listener, Tls};
pub use service::{About, Service, serve};
