//! CPU and memory of pods: from their cgroups, else summed over their processes.

use std::collections::HashMap;

use jiff::Timestamp;

use super::cgroups::Group;
use super::{PodUsage, Usage};

/// One process of `/proc`.
#[derive(Clone, Debug, PartialEq)]
struct Process {
    parent: i32,
    cpu_ticks: u64,
    rss_pages: u64,
}

/// The usage of a pod: its shim, its group, and its running containers as (id, name, pid).
pub fn pod(shim: Option<i32>, group: &Group, containers: &[(String, String, i32)]) -> PodUsage {
    let at = Timestamp::now();
    if let Some(total) = group.usage() {
        let of = |id: &str| group.below(id).usage().unwrap_or_default();
        let containers = containers.iter().map(|(id, name, _)| (name.clone(), of(id))).collect();
        return PodUsage { at, pod: total, containers };
    }
    let processes = processes();
    let children = |pid: i32| processes.iter().filter(move |(_, p)| p.parent == pid).map(|(pid, _)| *pid);
    let mut list: Vec<(String, Usage)> =
        containers.iter().map(|(_, name, pid)| (name.clone(), tree(&processes, *pid))).collect();
    // What was exec'd is the shim's child: it belongs to the container whose pid namespace it is in.
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    for extra in shim.into_iter().flat_map(children).filter(|pid| containers.iter().all(|(.., own)| own != pid)) {
        let owner =
            namespace(extra).and_then(|ns| containers.iter().position(|(.., p)| namespace(*p).as_ref() == Some(&ns)));
        if let Some(at) = owner {
            add(&mut list[at].1, &tree(&processes, extra));
        }
    }
    let mut total = shim.map(|pid| tree(&processes, pid)).unwrap_or_default();
    total.processes = total.processes.saturating_sub(1); // the shim itself
    PodUsage { at, pod: total, containers: list }
}

fn add(to: &mut Usage, more: &Usage) {
    to.cpu_nanoseconds += more.cpu_nanoseconds;
    to.memory_rss += more.memory_rss;
    to.memory_working_set += more.memory_working_set;
    to.processes += more.processes;
}

fn tree(processes: &HashMap<i32, Process>, root: i32) -> Usage {
    const NANOSECONDS_PER_TICK: u64 = 10_000_000; // USER_HZ is 100 on every Linux
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
    let mut usage = Usage::default();
    let mut todo = vec![root];
    while let Some(pid) = todo.pop() {
        let Some(process) = processes.get(&pid) else { continue };
        let memory = process.rss_pages * page;
        let cpu_nanoseconds = process.cpu_ticks * NANOSECONDS_PER_TICK;
        add(&mut usage, &Usage { cpu_nanoseconds, memory_working_set: memory, memory_rss: memory, processes: 1 });
        todo.extend(processes.iter().filter(|(_, p)| p.parent == pid).map(|(pid, _)| *pid));
    }
    usage
}

fn processes() -> HashMap<i32, Process> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect()
}

/// proc_pid_stat(5): after the name, field 4 is the parent, 14 to 17 the times (with those of waited-for children),
/// 24 the resident pages.
fn parse_stat(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Process {
        parent: fields.get(1)?.parse().ok()?,
        cpu_ticks: number(14)? + number(15)? + number(16)? + number(17)?,
        rss_pages: number(24)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_summed() {
        let stat = "7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 10 20 1 2 20 0 1 0 5 1000 3 18446744073709551615 0";
        let process = parse_stat(stat).expect("a stat line");
        assert_eq!(process, Process { parent: 1, cpu_ticks: 33, rss_pages: 3 });
        let child = Process { parent: 7, ..process.clone() };
        let all = HashMap::from([(7, process), (8, child.clone()), (9, Process { parent: 1, ..child })]);
        let usage = tree(&all, 7);
        assert_eq!((usage.processes, usage.cpu_nanoseconds), (2, 660_000_000));
    }
}
