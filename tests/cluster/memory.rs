//! What keytide uses, and may use.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// What the chart asks for, in KiB, and where the kernel would end it.
pub(crate) const REQUEST: u64 = 16 * 1024;
pub(crate) const LIMIT: u64 = 64 * 1024;
/// What it asks for of a processor.
const CPU: f64 = 0.010;
/// A start, which takes more, does not count beside a life of this.
const LONG: Duration = Duration::from_secs(30);

/// What a process and its control group use.
pub(crate) struct Usage {
    /// What they hold now, and the most that they ever held, in KiB: the larger of the two, since pages of the program
    /// itself are counted where they were read first, and files in memory are not the process's.
    now: u64,
    peak: u64,
    /// The time of processors that they took in their life.
    cpu: Duration,
    life: Duration,
}

// === impl Usage ===

impl Usage {
    /// None once the process ended.
    pub(crate) fn of(process: &str) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let resident = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse::<u64>().ok()
        };
        let (memory, older) = group(process, "memory")?;
        let [now, most] = if older { ["usage_in_bytes", "max_usage_in_bytes"] } else { ["current", "peak"] };
        let held = |name: &str| Some(number(&memory.join(format!("memory.{name}")))? / 1024);
        let (cpu, older) = group(process, "cpuacct")?;
        let cpu = if older {
            Duration::from_nanos(number(&cpu.join("cpuacct.usage"))?)
        } else {
            let text = fs::read_to_string(cpu.join("cpu.stat")).ok()?;
            Duration::from_micros(text.lines().find_map(|line| line.strip_prefix("usage_usec "))?.parse().ok()?)
        };
        Some(Self {
            now: resident("VmRSS:")?.max(held(now)?),
            peak: resident("VmHWM:")?.max(held(most)?),
            cpu,
            life: life(process)?,
        })
    }

    #[track_caller]
    #[expect(clippy::print_stderr, reason = "figures, for people")]
    pub(crate) fn assert_within_limits(&self, who: &str) {
        let share = self.cpu.as_secs_f64() / self.life.as_secs_f64();
        let said = format!(
            "{who} holds {} KiB, held {} KiB (requested {REQUEST}, limit {LIMIT}), and took {:.1} m of a processor for {:.0} s \
             (requested {:.0} m)",
            self.now,
            self.peak,
            share * 1000.0,
            self.life.as_secs_f64(),
            CPU * 1000.0
        );
        if self.life >= LONG {
            eprintln!("    {said}");
        }
        assert!(self.now <= REQUEST && self.peak <= LIMIT, "{said}");
        assert!(self.life < LONG || share <= CPU, "{said}");
    }
}

/// The folder of a process's control group with this controller, and whether it is of the older kind.
fn group(process: &str, controller: &str) -> Option<(PathBuf, bool)> {
    let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    let all: Vec<(&str, &str)> = groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')).collect();
    let older = all.iter().find(|(controllers, _)| controllers.split(',').any(|one| one == controller));
    let (controllers, path) = older.or_else(|| all.iter().find(|(controllers, _)| controllers.is_empty()))?;
    Some((Path::new("/sys/fs/cgroup").join(controllers).join(path.trim_start_matches('/')), older.is_some()))
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// How long ago a process started.
fn life(process: &str) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the program's name, which may have anything in it. The unit is a hundredth of a second on every Linux.
    let started: f64 = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
    let up: f64 = fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
    Duration::try_from_secs_f64(up - started / 100.0).ok()
}
