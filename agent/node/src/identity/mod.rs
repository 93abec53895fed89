/*!
Whose a process is: from cgroups and pods to names.

[`Index`] owns what is known of the containers of this node, and only the node's task changes it. It does
no input or output, so every rule can be tested as a function of what it was told.
*/

mod attribution;
#[cfg(test)]
mod fixtures;
mod index;

pub use attribution::{Attributed, Attribution, ContainerKey, Encoded, Evidence, Names, Owner};
pub use index::{Container, Index, LINGER, Sizes, TRAIL};
