//! What keytide's memory is, and may be.

use std::fs;

/// What the chart asks for, in KiB, and where the kernel would end it.
pub(crate) const REQUEST: u64 = 16 * 1024;
pub(crate) const LIMIT: u64 = 64 * 1024;

/// What a process and its control group hold now, and the most that they ever held, in KiB: the larger of the two, since
/// pages of the program itself are counted where they were read first, and files in memory are not the process's. None once it ended.
pub(crate) fn memory(process: &str) -> Option<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let resident = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    let path = |prefix: &str| groups.lines().find_map(|line| Some(line.split_once(prefix)?.1.to_owned()));
    // The older and the newer kind of control groups.
    let (folder, now, most) = match path(":memory:") {
        Some(path) => (format!("memory{path}"), "usage_in_bytes", "max_usage_in_bytes"),
        None => (path("0::")?, "current", "peak"),
    };
    let group = |name: &str| {
        let text = fs::read_to_string(format!("/sys/fs/cgroup/{folder}/memory.{name}")).ok()?;
        Some(text.trim().parse::<u64>().ok()? / 1024)
    };
    Some((resident("VmRSS:")?.max(group(now)?), resident("VmHWM:")?.max(group(most)?)))
}
