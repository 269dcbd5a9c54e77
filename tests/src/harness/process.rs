//! Another process, seen through `/proc`.

use std::time::Duration;

/// A process, known by its id.
pub struct Process(u32);

impl Process {
    /// The process with this id.
    pub fn new(pid: u32) -> Self {
        Self(pid)
    }

    /// Its resident memory.
    pub fn rss_kib(&self) -> Option<u64> {
        self.status_kib("VmRSS:")
    }

    /// Its resident memory when that was largest.
    pub fn rss_kib_peak(&self) -> Option<u64> {
        self.status_kib("VmHWM:")
    }

    fn status_kib(&self, name: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches("kB").trim().parse().ok()
    }

    /// Its CPU time, user and system.
    pub fn cpu(&self) -> Option<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?;
        // The name in parentheses may hold anything: fields are counted from behind it.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let user: u64 = fields.next()?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        // SAFETY: asks for a constant of the system.
        let ticks = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok()?;
        Some(Duration::from_millis((user + system) * 1000 / ticks.max(1)))
    }

    /// Processor time of its threads for tenants' work, in ticks of the system, and their nice values.
    pub fn workers(&self) -> (u64, Vec<i64>) {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0)).expect("its threads");
        let stat = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat")).ok();
        let stats = tasks.filter_map(|task| stat(task.ok()?));
        let (mut ticks, mut nices) = (0, Vec::new());
        for stat in stats.filter(|stat| stat.contains("(worker)")) {
            // Behind the name there are the state, a letter, and numbers from the fourth field on
            // (proc_pid_stat(5)).
            let (_, rest) = stat.rsplit_once(") ").expect("a name");
            let fields: Vec<i64> = rest.split(' ').filter_map(|field| field.parse().ok()).collect();
            ticks += u64::try_from(fields[14 - 4] + fields[15 - 4]).expect("a time");
            nices.push(fields[19 - 4]);
        }
        (ticks, nices)
    }

    /// File descriptors it has open.
    pub fn descriptors(&self) -> usize {
        let listing = std::fs::read_dir(format!("/proc/{}/fd", self.0));
        listing.expect("the descriptors of a process that runs").count()
    }
}
