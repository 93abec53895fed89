//! Filter maps, as their owner makes, pins and edits them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use libbpf_rs::libbpf_sys::bpf_map_create_opts;
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, num_possible_cpus};
use rustix::mount::{MountFlags, mount};

use crate::{mount_points, own_mounts};

/// A pinned map; unpinned on drop.
pub struct Pin {
    map: MapHandle,
    path: PathBuf,
}

impl Pin {
    /// A path on the bpf file system at which nothing is.
    pub fn free_path() -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = mount_points("bpf");
        let root = root.first().expect("a bpf file system is mounted");
        root.join(format!(
            "tcptracer_test_{}_{}",
            process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ))
    }

    /// A map of any shape.
    pub fn new(kind: MapType, key: u32, value: u32, entries: u32) -> Self {
        Self::called("test", kind, key, value, entries)
    }

    /// The same, by this name.
    pub fn called(name: &str, kind: MapType, key: u32, value: u32, entries: u32) -> Self {
        let options = bpf_map_create_opts {
            sz: size_of::<bpf_map_create_opts>() as _,
            ..Default::default()
        };
        let mut map = MapHandle::create(kind, Some(name), key, value, entries, &options)
            .expect("a map can be made");
        let path = Self::free_path();
        map.pin(&path).expect("a map can be pinned");
        Self { map, path }
    }

    /// As bcc documents it for cgroups.
    pub fn hash() -> Self {
        Self::new(MapType::Hash, 8, 8, 128)
    }

    /// The same, with these keys.
    pub fn holding(keys: &[u64]) -> Self {
        let pin = Self::hash();
        keys.iter().for_each(|&key| pin.insert(key));
        pin
    }

    pub fn path(&self) -> &str {
        self.path.to_str().expect("the path is UTF-8")
    }

    pub fn insert(&self, key: u64) {
        let key = key.to_ne_bytes();
        let value = vec![0; self.map.value_size() as usize];
        let inserted = if self.map.map_type().is_percpu() {
            let cpus = num_possible_cpus().expect("a number of CPUs");
            let values = vec![value; cpus];
            self.map.update_percpu(&key, &values, MapFlags::ANY)
        } else {
            self.map.update(&key, &value, MapFlags::ANY)
        };
        inserted.expect("a key can be inserted");
    }

    pub fn delete(&self, key: u64) {
        self.map
            .delete(&key.to_ne_bytes())
            .expect("a key can be deleted");
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let _ = self.map.unpin(&self.path);
    }
}

/// Runs it with a bpf file system of its own, in which nobody else pins. What it pins goes with the process at the latest.
pub fn own_pins<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    own_mounts(|| {
        let root = mount_points("bpf").swap_remove(0);
        mount("bpf", root, "bpf", MountFlags::empty(), None).expect("a bpf file system");
        f()
    })
}

/// Runs it like that; nothing may be left that was not there before.
#[track_caller]
pub fn assert_no_pins(f: impl FnOnce() + Send) {
    own_pins(|| {
        let root = mount_points("bpf").swap_remove(0);
        let pins = || -> BTreeSet<OsString> {
            let entries = fs::read_dir(&root).expect("the bpf file system can be read");
            entries
                .map(|entry| entry.expect("an entry").file_name())
                .collect()
        };
        let before = pins();
        f();
        assert_eq!(pins(), before);
    });
}

/// Whether anything is at the path, even what cannot be opened.
pub fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
