//! Who makes the connections.

use tcptracer_testing::{Actor, Netns};

/// The two that most scenarios have.
pub fn server_and_client(netns: &Netns) -> (Actor, Actor) {
    (
        Actor::inside(netns, "server"),
        Actor::inside(netns, "client"),
    )
}
