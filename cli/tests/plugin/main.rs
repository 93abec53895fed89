//! The plugin against fake agents: the real program, exact output.

mod agent;
mod api;
mod cluster;
mod deadline;
mod ends;
mod one_agent;
mod pauses;
mod plugin;
mod proxy;
mod tls;
