/*!
Where the node's pods come from: the API server, the kubelet, or a file.

A source feeds [`Update`]s to the node's task and keeps nothing itself but what it needs to notice a change.
Kubernetes' types exist only here; a [`Pod`] is what is kept of one.
*/

mod api;
mod file;
#[cfg(test)]
pub(crate) mod fixtures;
mod kubelet;
mod pod;
mod run;
mod source;
#[cfg(test)]
mod tests;

pub use pod::{Container, ContainerKind, Pod, Workload};
pub use run::run;
pub use source::{Kubelet, Source, Update};
