//! Whom the plugin asks in a cluster.
