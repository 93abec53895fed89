//! What a process has in the kernel.

use std::collections::HashMap;
use std::fs;

use libbpf_rs::query::ProgInfoIter;

/// The names of the programs that a running process has attached, in order. The kernel keeps the first 15 bytes of each.
pub fn attached_programs(pid: u32) -> Vec<String> {
    let names: HashMap<_, _> = ProgInfoIter::default()
        .map(|program| (program.id, program.name.to_string_lossy().into_owned()))
        .collect();
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the process runs");
    // One that has been closed meanwhile is none.
    let infos = files
        .flatten()
        .filter_map(|file| fs::read_to_string(file.path()).ok());
    let links = infos.filter(|info| info.contains("link_id:"));
    let ids = links.filter_map(|info| {
        let id = info
            .lines()
            .find_map(|line| line.strip_prefix("prog_id:"))?;
        id.trim().parse().ok()
    });
    let mut attached: Vec<String> = ids.map(|id: u32| names[&id].clone()).collect();
    attached.sort();
    attached
}
