//! Maps as a whole: filter maps that somebody else made, pinned and edits while we trace, and emptying ours.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use procfs::process::{FDTarget, Process};
use rustix::fs::statfs;
use rustix::io;

/// Entries to write or delete with one system call.
const BATCH: u32 = 1024;

/// `BPF_FS_MAGIC`.
const BPF_FS: u64 = 0xcafe_4a11;

/// Whether what is at the path is on a bpf file system.
pub fn is_on_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.f_type as u64 == BPF_FS)
}

/// Opens the map pinned at `path`. It is used as it is: key of 8 bytes, values never looked at.
///
/// A path without a map is an error. bcc makes a new, empty map there instead, which then lets
/// nothing pass.
pub fn open_pinned(option: &str, path: &Path) -> Result<MapHandle> {
    let shown = path.display();
    // Only so much of a missing path exists, so look at its directory.
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };

    if path.as_os_str().as_encoded_bytes().contains(&0) {
        bail!("{option}: the path contains a NUL byte");
    }
    if !path.exists() {
        match is_on_bpffs(parent) {
            Ok(true) => bail!(
                "{option}: there is no map at {shown}: create it first, for example with \
                 'bpftool map create {shown} type hash key 8 value 8 entries 128 name filter'"
            ),
            Ok(false) => bail!("{option}: {shown} does not exist and is not on a bpf file system"),
            Err(_) => bail!(
                "{option}: {shown} does not exist: is the bpf file system mounted? \
                 (mount -t bpf bpf /sys/fs/bpf)"
            ),
        }
    }
    if !is_on_bpffs(path).with_context(|| format!("{option}: cannot look at {shown}"))? {
        bail!("{option}: {shown} is not on a bpf file system: pin the map below /sys/fs/bpf");
    }
    if path.is_dir() {
        bail!("{option}: {shown} is a directory, not a pinned map");
    }
    let map = MapHandle::from_pinned_path(path)
        .with_context(|| format!("{option}: {shown} is not a pinned map that can be opened"))?;
    // libbpf takes what it gets for a map; the kernel knows better.
    let a_map = FDTarget::AnonInode("bpf-map".into());
    let fd = Process::myself().and_then(|this| this.fd_from_fd(map.as_fd().as_raw_fd()));
    if fd.is_ok_and(|fd| fd.target != a_map) {
        bail!("{option}: {shown} is not a pinned map");
    }
    match map.map_type() {
        MapType::Hash | MapType::LruHash | MapType::PercpuHash | MapType::LruPercpuHash => {}
        other => bail!("{option}: the map at {shown} is not a hash but {other:?}"),
    }
    if map.key_size() != 8 {
        bail!(
            "{option}: the keys of the map at {shown} are {} bytes long; they have to be 8",
            map.key_size()
        );
    }
    Ok(map)
}

/// Writes zeros to all of an array.
pub fn clear(map: &impl MapCore) -> libbpf_rs::Result<()> {
    let all: Vec<u32> = (0..map.max_entries()).collect();
    for places in all.chunks(BATCH as usize) {
        let keys: Vec<u8> = places
            .iter()
            .flat_map(|place| place.to_ne_bytes())
            .collect();
        let values = vec![0; places.len() * map.value_size() as usize];
        map.update_batch(
            &keys,
            &values,
            places.len() as u32,
            MapFlags::ANY,
            MapFlags::ANY,
        )?;
    }
    Ok(())
}

/// Deletes all entries of a hash.
pub fn empty(map: &impl MapCore) -> libbpf_rs::Result<()> {
    let entries = map.lookup_and_delete_batch(BATCH, MapFlags::ANY, MapFlags::ANY)?;
    entries.for_each(drop);
    Ok(())
}
