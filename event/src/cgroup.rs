//! What happens to cgroups.

/// A cgroup came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupChange {
    /// It was made; nothing runs in it yet.
    Made {
        /// Its id: the inode of its directory.
        id: u64,
        /// Its path from the root of its hierarchy, cut off after 511 bytes.
        path: String,
    },
    /// It was removed; nothing runs in it any more.
    Removed {
        /// Its id.
        id: u64,
    },
}
