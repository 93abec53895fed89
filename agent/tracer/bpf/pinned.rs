//! Filter maps that we own: pinned, so that other tools can use them, and kept equal to what is wanted.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::mem::size_of;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result};
use libbpf_rs::libbpf_sys::bpf_map_create_opts;
use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle, MapType};

use super::maps;

/// The folder of our pins. Who has it locked is the only one to write there, and goes on with what is in it.
#[derive(Debug)]
pub struct PinDir {
    path: PathBuf,
    _lock: File,
}

impl PinDir {
    /// Makes the folder. Maps that an earlier run left there for other `sets` than these are removed.
    pub fn open(path: &Path, sets: &[&str]) -> Result<Self> {
        let shown = path.display();
        make_folder(path)?;
        let lock = File::open(path).with_context(|| format!("cannot open {shown}"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => anyhow::bail!(
                "another agent uses {shown}: end it, or give this one a --pin-dir of its own"
            ),
            Err(TryLockError::Error(e)) => {
                return Err(e).with_context(|| format!("cannot lock {shown}"));
            }
        }
        for entry in fs::read_dir(path)?.flatten() {
            let name = entry.file_name();
            if !sets.iter().any(|set| name == *set) {
                for of in [SetOf::Cgroups, SetOf::MountNamespaces] {
                    let _ = fs::remove_file(entry.path().join(of.name()));
                }
                // What is not ours stays.
                let _ = fs::remove_dir(entry.path());
            }
        }
        Ok(Self {
            path: path.into(),
            _lock: lock,
        })
    }

    /// Whether maps can be pinned in the folder, which need not be there, also while an agent uses it. Leaves nothing behind.
    pub fn attempt(folder: &Path) -> Result<()> {
        let there = folder.ancestors().find(|f| f.exists());
        let there = there.context("its path is no path")?;
        anyhow::ensure!(
            maps::is_on_bpffs(there)?,
            "{} is not on a bpf file system: mount one (mount -t bpf bpf /sys/fs/bpf), or name another \
             place with --pin-dir",
            folder.display()
        );
        // Nothing else in there has a name like this, and file systems of this type allow no dots.
        let trial = there.join(format!("tcptracer-check-{}", process::id()));
        let made = PinnedSet::open(&trial, SetOf::Cgroups, 1).map(drop);
        if made.is_err() {
            let _ = fs::remove_dir(&trial);
        }
        made
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        // As long as somebody else has something there, it stays.
        let _ = fs::remove_dir(&self.path);
    }
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| {
        format!(
            "cannot make {}: is the bpf file system mounted? (mount -t bpf bpf /sys/fs/bpf)",
            path.display()
        )
    })
}

/// What bcc looks up in a map; the key is 8 bytes in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetOf {
    /// Ids of cgroups; values of 8 bytes.
    Cgroups,
    /// Inodes of mount namespaces; values of 4 bytes.
    MountNamespaces,
}

impl SetOf {
    fn name(self) -> &'static str {
        match self {
            Self::Cgroups => "cgroupmap",
            Self::MountNamespaces => "mntnsmap",
        }
    }

    /// A one; bcc never looks at it.
    fn value(self) -> Vec<u8> {
        match self {
            Self::Cgroups => 1u64.to_ne_bytes().into(),
            Self::MountNamespaces => 1u32.to_ne_bytes().into(),
        }
    }
}

/// A pinned map as a set of numbers. It alone writes to the map. Its pin goes with it; who still uses the map finds
/// it empty.
#[derive(Debug)]
pub struct PinnedSet {
    of: SetOf,
    path: PathBuf,
    map: MapHandle,
    members: HashSet<u64>,
    /// Of those that were wanted the last time.
    without_room: usize,
}

/// How a set becomes another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Change {
    remove: Vec<u64>,
    add: Vec<u64>,
}

impl Change {
    /// From the one to the other, in order: if there is not room for all, it does not depend on chance for whom.
    fn between(members: &HashSet<u64>, wanted: &HashSet<u64>) -> Self {
        let but = |set: &HashSet<u64>, other: &HashSet<u64>| {
            let mut rest: Vec<u64> = set.difference(other).copied().collect();
            rest.sort_unstable();
            rest
        };
        Self {
            remove: but(members, wanted),
            add: but(wanted, members),
        }
    }
}

/// What became of a change of the content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the map was to be changed at all.
    pub changed: bool,
    /// Members that there was no room for.
    pub no_room: usize,
    /// Members that could not be added or removed for another reason.
    pub failed: usize,
}

impl Outcome {
    /// All of these.
    pub fn missing(&self) -> usize {
        self.no_room + self.failed
    }
}

impl PinnedSet {
    /// Makes an empty set at `FOLDER/cgroupmap` or `FOLDER/mntnsmap`, making the folder as well; it has to be a [`PinDir`]
    /// or below one. A map that an earlier run left there is emptied and used on, if it is of this shape.
    pub fn open(folder: &Path, of: SetOf, capacity: u32) -> Result<Self> {
        let path = folder.join(of.name());
        make_folder(folder)?;
        let left = path.exists().then(|| Self::adopt(&path, of, capacity));
        let map = match left {
            Some(Ok(map)) => map,
            _ => Self::make(&path, of, capacity)?,
        };
        let mut set = Self {
            of,
            path,
            map,
            members: HashSet::new(),
            without_room: 0,
        };
        set.refresh();
        anyhow::ensure!(
            set.replace(&HashSet::new()).missing() == 0,
            "cannot empty the map at {}",
            set.path.display()
        );
        Ok(set)
    }

    /// Where it is pinned.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many members it has.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many members it can have.
    pub fn capacity(&self) -> u32 {
        self.map.max_entries()
    }

    /// For how many of those that are wanted there is no room.
    pub fn without_room(&self) -> usize {
        self.without_room
    }

    /// Makes `wanted` the content, removing first to make room.
    pub fn replace(&mut self, wanted: &HashSet<u64>) -> Outcome {
        let Change { remove, add } = Change::between(&self.members, wanted);
        let mut outcome = Outcome {
            changed: !(remove.is_empty() && add.is_empty()),
            ..Outcome::default()
        };
        for member in remove {
            match self.map.delete(&member.to_ne_bytes()) {
                Err(e) if e.kind() != ErrorKind::NotFound => outcome.failed += 1,
                _ => {
                    self.members.remove(&member);
                }
            }
        }
        let value = self.of.value();
        for member in add {
            match self
                .map
                .update(&member.to_ne_bytes(), &value, MapFlags::ANY)
            {
                Ok(()) => {
                    self.members.insert(member);
                }
                Err(e) if matches!(e.kind(), ErrorKind::TooBig | ErrorKind::OutOfMemory) => {
                    outcome.no_room += 1;
                }
                Err(_) => outcome.failed += 1,
            }
        }
        self.without_room = outcome.no_room;
        outcome
    }

    /// Looks at what the map really holds, in case somebody else wrote to it. The next
    /// [`Self::replace`] corrects it.
    pub fn refresh(&mut self) {
        self.members = self
            .map
            .keys()
            .filter_map(|key| Some(u64::from_ne_bytes(key.try_into().ok()?)))
            .collect();
    }

    fn adopt(path: &Path, of: SetOf, capacity: u32) -> Result<MapHandle> {
        let map = maps::open_pinned("--pin-dir", path)?;
        anyhow::ensure!(
            map.map_type() == MapType::Hash
                && map.value_size() as usize == of.value().len()
                && map.max_entries() == capacity
        );
        Ok(map)
    }

    fn make(path: &Path, of: SetOf, capacity: u32) -> Result<MapHandle> {
        let shown = path.display();
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot replace {shown}"));
            }
            _ => {}
        }
        let options = bpf_map_create_opts {
            sz: size_of::<bpf_map_create_opts>() as _,
            ..Default::default()
        };
        let value = of.value().len() as u32;
        let mut map = MapHandle::create(
            MapType::Hash,
            Some(of.name()),
            size_of::<u64>() as u32,
            value,
            capacity,
            &options,
        )
        .with_context(|| format!("cannot make the filter map for {shown}"))?;
        map.pin(path).with_context(|| {
            format!(
                "cannot pin {shown}: is it on a bpf file system? (mount -t bpf bpf /sys/fs/bpf)"
            )
        })?;
        Ok(map)
    }
}

impl Drop for PinnedSet {
    fn drop(&mut self) {
        let _ = self.replace(&HashSet::new());
        let _ = fs::remove_file(&self.path);
        // As long as there is another map in the folder, it stays.
        let _ = self.path.parent().map(fs::remove_dir);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change<const N: usize, const M: usize>(from: [u64; N], to: [u64; M]) -> Change {
        Change::between(&from.into(), &to.into())
    }

    #[test]
    fn only_what_differs_is_changed() {
        let both = Change {
            remove: vec![1, 2],
            add: vec![5, 9],
        };
        assert_eq!(change([2, 1, 3], [9, 3, 5]), both);
        assert_eq!(change([], []), Change::default());
        assert_eq!(change([1, 2], [2, 1]), Change::default());
        assert_eq!(change([1, 2], []).remove, [1, 2]);
        assert_eq!(change([], [u64::MAX, 0]).add, [0, u64::MAX]);
    }

    proptest! {
        #[test]
        fn a_change_leads_to_what_is_wanted_and_then_there_is_none(
            members: HashSet<u64>, wanted: HashSet<u64>, kept: HashSet<u64>,
        ) {
            let members = &members | &kept;
            let wanted = &wanted | &kept;
            let Change { remove, add } = Change::between(&members, &wanted);
            // What stays is not touched.
            prop_assert!(remove.iter().chain(&add).all(|member| !kept.contains(member)));
            let mut after = members;
            for member in &remove {
                prop_assert!(after.remove(member));
            }
            for member in &add {
                prop_assert!(after.insert(*member));
            }
            prop_assert_eq!(&after, &wanted);
            prop_assert_eq!(Change::between(&after, &wanted), Change::default());
        }
    }
}
