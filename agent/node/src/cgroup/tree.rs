//! The cgroups that there are.

use std::collections::VecDeque;
use std::fs::{self, DirEntry, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use procfs::process::Process;
use rustix::fs::statfs;
use rustix::io::Errno;

use super::processes::MAX_PROCESSES;

/// `CGROUP2_SUPER_MAGIC`.
const CGROUP2: u64 = 0x6367_7270;
/// `CGROUP_SUPER_MAGIC`.
const CGROUP1: u64 = 0x27_e0eb;

/// Cgroups to look at; with more, something is wrong.
const MAX_CGROUPS: usize = 100_000;

/// How deep to look.
const MAX_DEPTH: usize = 64;

/// Cgroups of a container in which to look for processes: it may make as many as it likes.
const MAX_LOOKS: usize = 1024;

/// The inode of the root of every hierarchy.
const ROOT: u64 = 1;

/// Controllers of v1 in whose hierarchy every container has a cgroup; the first that is there is used.
const V1_CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu,cpuacct", "cpu"];

/// How the host's cgroups are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// v2 only.
    V2,
    /// v1 for the controllers, and v2 beside them.
    Hybrid,
    /// v1 only: a process' cgroup says nothing to tracing programs, its mount namespace has to.
    V1,
}

/// A cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Its id: the inode of its folder.
    pub id: u64,
    /// From the root of the hierarchy; the root's own is `/`.
    pub path: String,
}

/// The hierarchy that tells of containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    mode: Mode,
    /// Where it is mounted.
    root: PathBuf,
    /// v1 hierarchies, where a hybrid host may have a container's processes.
    others: Vec<PathBuf>,
}

impl Hierarchy {
    /// Finds out how cgroups are mounted below `root`, usually `/sys/fs/cgroup`.
    pub fn detect(root: &Path) -> Result<Self> {
        let kind = |path: &Path| statfs(path).map(|s| s.f_type as u64);
        let shown = root.display();

        if kind(root).with_context(|| format!("cannot look at the cgroups in {shown}"))? == CGROUP2
        {
            return Ok(Self {
                mode: Mode::V2,
                root: root.into(),
                others: Vec::new(),
            });
        }
        let v1: Vec<PathBuf> = V1_CONTROLLERS
            .iter()
            .map(|controller| root.join(controller))
            .filter(|path| kind(path).is_ok_and(|k| k == CGROUP1))
            .collect();
        let unified = root.join("unified");
        let hybrid = kind(&unified).is_ok_and(|k| k == CGROUP2).then(|| Self {
            mode: Mode::Hybrid,
            root: unified,
            others: v1.clone(),
        });
        let v1 = v1.into_iter().next().map(|first| Self {
            mode: Mode::V1,
            root: first,
            others: Vec::new(),
        });
        match (hybrid, v1) {
            // Some runtimes make containers' cgroups for the controllers only.
            (Some(hybrid), Some(v1)) if v1.has_containers() && !hybrid.has_containers() => Ok(v1),
            (Some(found), _) | (None, Some(found)) => Ok(found),
            (None, None) => bail!(
                "no cgroups are mounted at {shown}: mount them (mount -t cgroup2 cgroup2 {shown}), or name \
                 the place with --cgroupfs"
            ),
        }
    }

    /// How cgroups are mounted.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The number by which the kernel knows the hierarchy; v2 is 0.
    pub fn number(&self) -> Result<u32> {
        if self.mode != Mode::V1 {
            return Ok(0);
        }
        let controllers = self.root.file_name().unwrap_or_default();
        Process::myself()
            .and_then(|this| this.cgroups())
            .context("cannot read /proc/self/cgroup")?
            .into_iter()
            .find(|cgroup| cgroup.controllers.join(",").as_str() == controllers)
            .map(|cgroup| cgroup.hierarchy)
            .with_context(|| format!("/proc/self/cgroup does not have {}", controllers.display()))
    }

    /// Whether the hierarchy is mounted from its very root, so that all of it can be seen.
    pub fn is_whole(&self) -> bool {
        fs::metadata(&self.root).is_ok_and(|m| m.ino() == ROOT)
    }

    /// Where a cgroup is below the mount, given its path from the kernel's root; `None` if it is not below it, or gone.
    pub fn find<'a>(&self, id: u64, path: &'a str) -> Option<&'a str> {
        let is_there = |below: &&str| {
            let folder = self.root.join(&below[1..]);
            fs::metadata(folder).is_ok_and(|m| m.ino() == id)
        };
        path.match_indices('/')
            .map(|(at, _)| &path[at..])
            .find(is_there)
    }

    /// Every cgroup. What goes away meanwhile is left out.
    pub fn scan(&self) -> Result<Vec<Cgroup>> {
        let root = fs::metadata(&self.root)
            .with_context(|| format!("cannot look at {}", self.root.display()))?;
        let mut found = vec![Cgroup {
            id: root.ino(),
            path: "/".into(),
        }];
        let mut next = vec![(self.root.clone(), String::new(), 0)];

        while let Some((folder, path, depth)) = next.pop() {
            let entries = match folders(&folder) {
                Err(e) if depth > 0 && is_gone(&e) => continue,
                entries => entries.with_context(|| format!("cannot list {}", folder.display()))?,
            };
            for entry in entries {
                let name = entry.file_name();
                let path = format!("{path}/{}", name.to_string_lossy());
                found.push(Cgroup {
                    id: entry.ino(),
                    path: path.clone(),
                });
                if found.len() > MAX_CGROUPS {
                    bail!(
                        "more than {MAX_CGROUPS} cgroups below {}: find out what makes so many, and remove them",
                        self.root.display()
                    );
                }
                if depth + 1 < MAX_DEPTH {
                    next.push((folder.join(name), path, depth + 1));
                }
            }
        }
        Ok(found)
    }

    fn has_containers(&self) -> bool {
        let found = self.scan().unwrap_or_default();
        found.iter().any(|c| super::parse(&c.path).is_some())
    }

    /// A few of the processes in a cgroup or, if it has none itself, in one of those below.
    pub fn processes(&self, path: &str) -> Vec<u32> {
        let path = path.trim_start_matches('/');
        [&self.root]
            .into_iter()
            .chain(&self.others)
            .map(|root| processes_below(root.join(path)))
            .find(|pids| !pids.is_empty())
            .unwrap_or_default()
    }

    /// Whether the cgroup itself has processes that this pid namespace does not have.
    pub fn hides_processes(&self, path: &str) -> bool {
        let list = self
            .root
            .join(path.trim_start_matches('/'))
            .join("cgroup.procs");
        fs::read_to_string(list).is_ok_and(|list| list.lines().any(|pid| pid == "0"))
    }
}

/// A cgroup that is removed while it is looked at.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

/// What is in a folder and is a folder, not a link to one. What goes away meanwhile is left out.
fn folders(folder: &Path) -> io::Result<impl Iterator<Item = DirEntry>> {
    let entries = fs::read_dir(folder)?.flatten();
    Ok(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())))
}

/// From the outside in, so that a container's own processes come before those of containers that it runs.
fn processes_below(folder: PathBuf) -> Vec<u32> {
    let mut next = VecDeque::from([folder]);
    let mut queued = 1;
    while let Some(folder) = next.pop_front() {
        match processes_in(&folder) {
            Ok(pids) if !pids.is_empty() => return pids,
            _ => {}
        }
        let below = folders(&folder).into_iter().flatten();
        let before = next.len();
        next.extend(below.take(MAX_LOOKS - queued).map(|e| e.path()));
        queued += next.len() - before;
    }
    Vec::new()
}

fn processes_in(folder: &Path) -> io::Result<Vec<u32>> {
    let list = BufReader::new(File::open(folder.join("cgroup.procs"))?);
    let pids = list.lines().map_while(Result::ok);
    // 0 stands for a process that this pid namespace does not have.
    let pids = pids.filter_map(|line| line.parse().ok().filter(|pid| *pid != 0));
    Ok(pids.take(MAX_PROCESSES).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// Plain folders in place of cgroups.
    struct Tree(TempDir);

    impl Tree {
        fn new() -> Self {
            Self(TempDir::new().expect("a directory for the test"))
        }

        fn hierarchy(&self) -> Hierarchy {
            Hierarchy {
                mode: Mode::V2,
                root: self.0.path().into(),
                others: Vec::new(),
            }
        }

        /// Makes a cgroup and those above it.
        fn cgroup(&self, path: &str) -> Cgroup {
            let folder = self.0.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(&folder).expect("a folder");
            Cgroup {
                id: fs::metadata(&folder).expect("the folder").ino(),
                path: path.into(),
            }
        }

        /// Makes a cgroup with these processes.
        fn processes(&self, path: &str, pids: &[u32]) {
            self.cgroup(path);
            let list: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
            let file = self.0.path().join(&path[1..]).join("cgroup.procs");
            fs::write(file, list).expect("a list of processes");
        }

        fn scan(&self) -> Vec<Cgroup> {
            let mut found = self.hierarchy().scan().expect("the tree can be scanned");
            found.sort_by(|a, b| a.path.cmp(&b.path));
            found
        }
    }

    #[test]
    fn every_folder_is_found_with_its_inode() {
        let tree = Tree::new();
        let paths = ["/", "/a", "/a/b", "/a/b/c", "/a/d", "/e"];
        let expected = paths.map(|path| tree.cgroup(path));

        assert_eq!(tree.scan(), expected);
    }

    #[test]
    fn a_cgroup_is_found_by_the_end_of_its_path() {
        let tree = Tree::new();
        let cgroup = tree.cgroup("/kubepods/a");
        tree.cgroup("/a");
        let hierarchy = tree.hierarchy();
        for path in [
            "/kubepods/a",
            "/docker/0123/kubepods/a",
            "/kubepods/kubepods/a",
        ] {
            assert_eq!(
                hierarchy.find(cgroup.id, path),
                Some("/kubepods/a"),
                "{path}"
            );
        }
        assert_eq!(hierarchy.find(cgroup.id, "/docker/0123/kubepods/b"), None);
        assert_eq!(hierarchy.find(u64::MAX, "/kubepods/a"), None);
        assert_eq!(hierarchy.find(cgroup.id, ""), None);
    }

    #[test]
    fn files_and_links_are_not_cgroups() {
        let tree = Tree::new();
        let expected = [tree.cgroup("/"), tree.cgroup("/a")];
        fs::write(tree.0.path().join("a/cgroup.procs"), "1\n").expect("a file");
        symlink("..", tree.0.path().join("a/up")).expect("a link");
        symlink("nowhere", tree.0.path().join("gone")).expect("a link");

        assert_eq!(tree.scan(), expected);
    }

    #[test]
    fn deeper_than_64_is_not_looked_at() {
        let tree = Tree::new();
        let deepest = "/d".repeat(MAX_DEPTH);
        tree.cgroup(&format!("{deepest}/d"));

        let found = tree.scan();
        assert_eq!(found.len(), 1 + MAX_DEPTH);
        assert_eq!(found.last().map(|c| &c.path), Some(&deepest));
    }

    #[test]
    fn a_hierarchy_that_is_gone_is_an_error() {
        let tree = Tree::new();
        let hierarchy = tree.hierarchy();
        let root = hierarchy.root.display().to_string();
        drop(tree);

        let error = hierarchy.scan().expect_err("there is nothing to scan");
        assert_eq!(error.to_string(), format!("cannot look at {root}"));
        assert!(hierarchy.processes("/a").is_empty());
    }

    #[test]
    fn a_cgroups_own_processes_come_first() {
        let tree = Tree::new();
        tree.processes("/a", &[3, 1, 2]);
        tree.processes("/a/b", &[4]);

        assert_eq!(tree.hierarchy().processes("/a"), [3, 1, 2]);
        assert_eq!(tree.hierarchy().processes("/a/b"), [4]);
    }

    #[test]
    fn without_processes_of_its_own_the_nearest_below_count() {
        let tree = Tree::new();
        tree.processes("/a", &[]);
        tree.processes("/a/docker/inner", &[7]);
        tree.processes("/a/init", &[5, 6]);
        tree.processes("/b", &[8]);

        assert_eq!(tree.hierarchy().processes("/a"), [5, 6]);
        assert_eq!(tree.hierarchy().processes("/a/docker"), [7]);
    }

    #[test]
    fn only_a_few_processes_are_looked_at_and_only_those_of_this_pid_namespace() {
        let tree = Tree::new();
        tree.processes("/a", &[0, 1, 2, 3, 0, 4, 5, 6, 7, 8, 9, 10]);
        tree.processes("/b", &[0, 0]);

        assert_eq!(tree.hierarchy().processes("/a"), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(tree.hierarchy().processes("/b").is_empty());
        assert!(tree.hierarchy().processes("/gone").is_empty());
        let hidden = ["/a", "/b", "/gone"].map(|path| tree.hierarchy().hides_processes(path));
        assert_eq!(hidden, [true, true, false]);
    }

    #[test]
    fn the_search_for_processes_is_bounded() {
        let tree = Tree::new();
        for outer in 0..MAX_LOOKS - 2 {
            tree.cgroup(&format!("/a/{outer}"));
        }
        tree.processes("/a/0/within", &[1]);
        assert_eq!(tree.hierarchy().processes("/a"), [1]);

        tree.cgroup("/a/one-more");
        assert!(tree.hierarchy().processes("/a").is_empty());
    }

    #[test]
    fn processes_may_be_in_another_hierarchy() {
        let [unified, memory, pids] = [Tree::new(), Tree::new(), Tree::new()];
        unified.processes("/empty", &[]);
        unified.processes("/both", &[1]);
        memory.processes("/both", &[2]);
        memory.cgroup("/empty");
        pids.processes("/empty", &[3]);
        memory.processes("/only", &[4]);
        let hierarchy = Hierarchy {
            mode: Mode::Hybrid,
            others: vec![memory.0.path().into(), pids.0.path().into()],
            ..unified.hierarchy()
        };

        assert_eq!(hierarchy.processes("/both"), [1]);
        assert_eq!(hierarchy.processes("/empty"), [3]);
        assert_eq!(hierarchy.processes("/only"), [4]);
    }

    #[test]
    fn without_cgroups_the_error_says_what_to_mount() {
        let tree = Tree::new();
        let root = tree.0.path();
        fs::create_dir(root.join("unified")).expect("a folder");
        fs::create_dir(root.join("memory")).expect("a folder");

        let error = Hierarchy::detect(root).expect_err("no cgroups are mounted");
        let shown = root.display();
        assert_eq!(
            error.to_string(),
            format!(
                "no cgroups are mounted at {shown}: mount them (mount -t cgroup2 cgroup2 {shown}), or name \
                 the place with --cgroupfs"
            )
        );

        let error = Hierarchy::detect(&root.join("gone")).expect_err("there is nothing");
        assert_eq!(
            error.to_string(),
            format!("cannot look at the cgroups in {shown}/gone")
        );
    }
}
