//! What most tests begin with.

use std::net::SocketAddr;

use crate::{Actor, End, Netns};

/// A client and a server in a network namespace of their own.
pub struct World {
    pub client: Actor,
    pub server: Actor,
    pub netns: Netns,
}

impl World {
    pub fn new() -> Self {
        let netns = Netns::new();
        Self {
            client: Actor::inside(&netns, "client"),
            server: Actor::inside(&netns, "server"),
            netns,
        }
    }

    /// Its namespace, as an argument of the tool.
    pub fn inode(&self) -> String {
        self.netns.inode.to_string()
    }

    /// The client's end and the server's.
    pub fn open(&mut self, to: SocketAddr) -> (End, End) {
        let client = self.client.connect(to);
        (client, self.server.accept())
    }

    /// First the client, then the server.
    pub fn close(&mut self) {
        self.client.close();
        self.server.close_after_peer();
    }

    /// Opened and closed.
    pub fn visit(&mut self, to: SocketAddr) -> (End, End) {
        let ends = self.open(to);
        self.close();
        ends
    }
}
