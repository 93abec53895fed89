//! What an agent answers at once.

use tcptracer_event::printable;
use tcptracer_proto::v1;

use crate::dial::{Connection, Dialer, Way};
use crate::error::Error;
use crate::request::Filters;

impl<W: Way> Dialer<W> {
    /// What is open now. `convert` makes of a connection, and of the node as it calls itself, what is returned.
    pub async fn connections<T>(
        &self,
        target: &W::Target,
        filters: Filters,
        convert: impl Fn(&str, v1::Connection) -> T,
    ) -> Result<Vec<T>, Error> {
        let Connection { mut agent, tunnel } = self.dial(target).await?;
        let request = v1::ListConnectionsRequest {
            allow: filters.allow,
            deny: filters.deny,
        };
        let listed = async {
            let ask = async { Ok(agent.list_connections(request).await?.into_inner()) };
            let mut stream = self.within(ask).await?;
            let mut found = Vec::new();
            while let Some(batch) = self.within(async { Ok(stream.message().await?) }).await? {
                let node = printable(&batch.node).into_owned();
                let convert = |connection| convert(&node, connection);
                found.extend(batch.connections.into_iter().map(convert));
            }
            Ok(found)
        };
        tunnel.guard(listed).await
    }

    /// What the agent is, and how it fares.
    pub async fn server_info(
        &self,
        target: &W::Target,
    ) -> Result<v1::GetServerInfoResponse, Error> {
        let Connection { mut agent, tunnel } = self.dial(target).await?;
        let ask = async { Ok(agent.get_server_info(v1::GetServerInfoRequest {}).await?) };
        Ok(self.within(tunnel.guard(ask)).await?.into_inner())
    }
}
