//! Cgroups that last as long as the value that stands for them.

use tcptracer_agent::cgroup::Cgroup;
use tcptracer_testing as testing;

/// Real cgroups below one of the test's own. Processes in them have to end before they do.
pub struct Tree {
    /// The path of the test's own.
    pub top: String,
    /// The test's own, and those below: those above before those below.
    made: Vec<testing::Cgroup>,
}

impl Tree {
    pub fn new() -> Self {
        let own = testing::Cgroup::new();
        Self {
            top: own.path_in_hierarchy(),
            made: vec![own],
        }
    }

    /// Makes the cgroup at this path below the test's own, and those above it.
    pub fn cgroup(&mut self, path: &str) -> Cgroup {
        let mut at = 0;
        for name in path.split('/').skip(1) {
            let above = &self.made[at];
            let below = above.path().join(name);
            at = match self.made.iter().position(|made| made.path() == below) {
                Some(there) => there,
                None => {
                    self.made.push(above.child(name));
                    self.made.len() - 1
                }
            };
        }
        Cgroup {
            id: self.made[at].id(),
            path: format!("{}{path}", self.top),
        }
    }

    /// Removes a cgroup, which has to be empty.
    pub fn remove(&mut self, cgroup: &Cgroup) {
        let at = self.position(cgroup);
        let removed = self.made.remove(at).path().to_path_buf();
        assert!(!removed.exists(), "{} is left", removed.display());
    }

    pub fn add(&self, pid: u32, cgroup: &Cgroup) {
        self.made[self.position(cgroup)].add(pid);
    }

    fn position(&self, cgroup: &Cgroup) -> usize {
        let found = self.made.iter().position(|made| made.id() == cgroup.id);
        found.expect("the cgroup is the test's own")
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        while self.made.pop().is_some() {}
    }
}
