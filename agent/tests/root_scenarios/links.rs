//! Network namespaces that are linked.

use std::net::{Ipv4Addr, SocketAddr};

use tcptracer_testing::Netns;

/// Two namespaces with a link between them: the first has 192.0.2.1 at its `eth0`, the other 192.0.2.2 at its `eth1`.
pub fn linked() -> (Netns, Netns) {
    let (near, far) = (Netns::new(), Netns::new());
    near.wire("192.0.2.1/24", &far, "192.0.2.2/24");
    (near, far)
}

/// A namespace, another that has to be kept, and an address from which no answer comes back.
pub fn black_hole() -> (Netns, Netns, SocketAddr) {
    let (near, far) = linked();
    far.ip(&["route", "replace", "blackhole", "192.0.2.1/32"]);
    (near, far, (Ipv4Addr::new(192, 0, 2, 2), 80).into())
}
