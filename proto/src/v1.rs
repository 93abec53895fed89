//! Messages and client of `tcptracer.v1`.

tonic::include_proto!("tcptracer.v1");
