/*!
Containers as the file systems show them: which cgroups there are, whose they are by their paths, and in
which mount namespace their processes live.

Nothing here keeps state, but a [`MountNamespace`] keeps the namespace.
*/

mod namespace;
mod path;
mod processes;
mod tree;

pub use namespace::{MountNamespace, host_mount_namespace, mount_namespace};
pub use path::{ContainerPath, parse};
pub use processes::{processes_of, shares_pids_with_host, shows_our_pids};
pub use tree::{Cgroup, Hierarchy, Mode};
