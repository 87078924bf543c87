use std::path::PathBuf;
use std::time::Instant;

use procfs::process::Process;
use procfs::{Current as _, CurrentSI as _, KernelStats, Meminfo, WithCurrentSystemInfo as _};

/// Measures the machine and this process. Keeps the counters of the last measurement.
pub(super) struct Machine {
    run_dir: PathBuf,
    before: Counters,
}

/// Counters that only grow. The metrics are the rates at which they grow. `None` means that the kernel does
/// not provide the value.
struct Counters {
    at: Instant,
    /// Busy time and total time, summed over all cores.
    cpu: Option<(u64, u64)>,
    /// Processor time of this process in seconds.
    process_secs: Option<f64>,
    /// Bytes that this process read from disks and wrote to disks.
    disk: Option<(u64, u64)>,
    /// Bytes received and sent on all interfaces except the loopback.
    network: Option<(u64, u64)>,
}

impl Machine {
    /// Reads the counters, so that the first measurement covers the time from now on.
    pub(super) fn new(run_dir: PathBuf) -> Self {
        Self {
            run_dir,
            before: Counters::read(),
        }
    }

    /// Measures the machine and this process. Rates cover the time since the last measurement. Omits values
    /// that the kernel does not provide.
    pub(super) fn look(&mut self) -> Vec<(String, f64)> {
        let now = Counters::read();
        let before = std::mem::replace(&mut self.before, now);
        let now = &self.before;
        let secs = now.at.duration_since(before.at).as_secs_f64();
        let mut values = Vec::new();
        let mut put = |name: &str, value: Option<f64>| {
            values.extend(value.map(|value| (name.to_owned(), value)));
        };

        let cpu = now.cpu.zip(before.cpu);
        put(
            "cpu_percent",
            cpu.and_then(|(now, before)| {
                let all = now.1.saturating_sub(before.1);
                (all > 0).then(|| 100.0 * now.0.saturating_sub(before.0) as f64 / all as f64)
            }),
        );
        let process = now.process_secs.zip(before.process_secs);
        put(
            "process_cpu_percent",
            process.map(|(now, before)| 100.0 * (now - before) / secs),
        );

        let me = Process::myself().and_then(|me| me.stat());
        put(
            "memory_bytes",
            me.ok().map(|stat| stat.rss_bytes().get() as f64),
        );
        let memory = Meminfo::current().ok();
        let available = memory.and_then(|memory| memory.mem_available);
        put(
            "memory_available_bytes",
            available.map(|bytes| bytes as f64),
        );

        let disk = rustix::fs::statvfs(&self.run_dir).ok();
        put(
            "disk_free_bytes",
            disk.map(|disk| disk.f_bavail as f64 * disk.f_frsize as f64),
        );
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / secs;
        let disk = now.disk.zip(before.disk);
        put(
            "disk_read_bytes_per_sec",
            disk.map(|(now, before)| rate(now.0, before.0)),
        );
        put(
            "disk_write_bytes_per_sec",
            disk.map(|(now, before)| rate(now.1, before.1)),
        );
        let network = now.network.zip(before.network);
        put(
            "network_receive_bytes_per_sec",
            network.map(|(now, before)| rate(now.0, before.0)),
        );
        put(
            "network_send_bytes_per_sec",
            network.map(|(now, before)| rate(now.1, before.1)),
        );
        values
    }
}

impl Counters {
    fn read() -> Self {
        let cpu = KernelStats::current().ok().map(|stats| {
            let time = stats.total;
            let idle = time.idle + time.iowait.unwrap_or(0);
            let others = [time.irq, time.softirq, time.steal];
            let busy = time.user + time.nice + time.system + others.iter().flatten().sum::<u64>();
            (busy, busy + idle)
        });
        let me = Process::myself().ok();
        let stat = me.as_ref().and_then(|me| me.stat().ok());
        let io = me.as_ref().and_then(|me| me.io().ok());
        let interfaces = procfs::net::dev_status().ok();
        let network = interfaces.map(|interfaces| {
            let real = interfaces.values().filter(|device| device.name != "lo");
            real.fold((0, 0), |sum, device| {
                (sum.0 + device.recv_bytes, sum.1 + device.sent_bytes)
            })
        });
        Self {
            at: Instant::now(),
            cpu,
            process_secs: stat
                .map(|stat| (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64),
            disk: io.map(|io| (io.read_bytes, io.write_bytes)),
            network,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    #[test]
    fn a_measurement_has_processor_memory_and_disk_values() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut machine = Machine::new(dir.path().to_owned());
        // The kernel counts processor time in hundredths of a second, so this test must use the processor for
        // longer.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(200) {
            std::hint::black_box(begun.elapsed());
        }
        let values: BTreeMap<String, f64> = machine.look().into_iter().collect();
        let value = |name: &str| values.get(name).copied().expect(name);
        assert!(value("process_cpu_percent") > 0.0);
        assert!((0.0..=100.0).contains(&value("cpu_percent")));
        let memory = value("memory_bytes");
        assert!(memory > 1e5 && memory < 1e12, "{memory}");
        assert!(value("memory_available_bytes") > 0.0);
        assert!(value("disk_free_bytes") > 0.0);
        assert!(
            values
                .values()
                .all(|value| value.is_finite() && *value >= 0.0)
        );
    }
}
