//! Determines how much memory is available.

use std::fs;
use std::path::{Path, PathBuf};

use procfs::process::{LimitValue, Process};
use procfs::{Current as _, Meminfo};
use tch::Device;

use crate::torch_shim;

/// The available memory of one kind, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// What this process can allocate in addition to what it uses now.
    pub(crate) free: u64,
    /// The total amount, including used memory.
    pub(crate) total: u64,
    /// The source of the limit.
    pub(crate) of: &'static str,
}

impl Room {
    /// Returns the main memory available to this process. There are three limits: the machine's memory,
    /// including swap; the limit of a control group, such as a container or a Slurm job; and `ulimit -v`. The
    /// limit that leaves the least memory counts. Returns `None` if the system reports none of these limits.
    pub(crate) fn main() -> Option<Self> {
        let rooms = [machine(), control_group(), address_space()];
        rooms.into_iter().flatten().min_by_key(|room| room.free)
    }

    /// Returns the memory of a CUDA device, or `None` for the CPU, which uses main memory.
    pub(crate) fn of_device(device: Device) -> Option<Self> {
        let Device::Cuda(index) = device else {
            return None;
        };
        let (free, total) = torch_shim::cuda_memory(index).ok()?;
        let of = "the device";
        Some(Self { free, total, of })
    }
}

/// Returns the main memory that this process uses now, and its peak usage.
pub(crate) fn resident() -> Option<(u64, u64)> {
    let status = Process::myself().and_then(|me| me.status()).ok()?;
    Some((status.vmrss? << 10, status.vmhwm? << 10))
}

fn machine() -> Option<Room> {
    let memory = Meminfo::current().ok()?;
    Some(Room {
        free: memory.mem_available? + memory.swap_free,
        total: memory.mem_total + memory.swap_total,
        of: "the machine",
    })
}

fn address_space() -> Option<Room> {
    let me = Process::myself().ok()?;
    let LimitValue::Value(total) = me.limits().ok()?.max_address_space.soft_limit else {
        return None;
    };
    let taken = me.status().ok()?.vmsize? << 10;
    Some(Room {
        free: total.saturating_sub(taken),
        total,
        of: "ulimit -v",
    })
}

/// Returns the tightest limit. This process's control groups and all their ancestors can have limits.
fn control_group() -> Option<Room> {
    let groups = Process::myself().and_then(|me| me.cgroups()).ok()?;
    let below = |base: &str, path: &str| {
        let base = Path::new(base);
        let group = base.join(path.trim_start_matches('/'));
        let inside = |folder: &&Path| folder.starts_with(base);
        let folders: Vec<PathBuf> = group
            .ancestors()
            .take_while(inside)
            .map(Path::to_path_buf)
            .collect();
        folders
    };
    let mut rooms = Vec::new();
    for group in groups {
        if group.controllers.iter().any(|name| name == "memory") {
            let folders = below("/sys/fs/cgroup/memory", &group.pathname);
            rooms.extend(folders.iter().filter_map(|folder| {
                limited(
                    folder,
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                    "total_inactive_file",
                )
            }));
        } else if group.hierarchy == 0 {
            let folders = below("/sys/fs/cgroup", &group.pathname);
            rooms.extend(folders.iter().filter_map(|folder| {
                limited(folder, "memory.max", "memory.current", "inactive_file")
            }));
        }
    }
    rooms.into_iter().min_by_key(|room| room.free)
}

/// Returns a control group's available memory. The reported usage includes the page cache. The kernel can
/// reclaim the inactive part of the cache, so that part counts as free.
fn limited(folder: &Path, limit: &str, usage: &str, cache: &str) -> Option<Room> {
    // If there is no limit, cgroup v1 reports a number near `i64::MAX`, and cgroup v2 reports the word
    // `max`.
    const NO_LIMIT: u64 = 1 << 60;
    let number = |file: &str| -> Option<u64> {
        let text = fs::read_to_string(folder.join(file)).ok()?;
        text.trim().parse().ok()
    };
    let total = number(limit).filter(|&limit| limit < NO_LIMIT)?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let cached = stat
        .lines()
        .find_map(|line| line.strip_prefix(cache)?.trim().parse().ok())
        .unwrap_or(0);
    let taken = number(usage)?.saturating_sub(cached);
    Some(Room {
        free: total.saturating_sub(taken),
        total,
        of: "the control group",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_free_memory_and_this_process_uses_some() {
        let room = Room::main().expect("known on Linux");
        assert!(room.free > 1 << 20 && room.free <= room.total, "{room:?}");
        let (now, most) = resident().expect("known on Linux");
        assert!(now > 1 << 20 && now <= most);
        assert_eq!(Room::of_device(Device::Cpu), None);
    }

    #[test]
    fn a_control_group_counts_its_page_cache_as_free() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |file: &str, text: &str| {
            fs::write(folder.path().join(file), text).expect("written");
        };
        let v2 = || {
            limited(
                folder.path(),
                "memory.max",
                "memory.current",
                "inactive_file",
            )
        };
        assert_eq!(v2(), None);
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        write(
            "memory.stat",
            "anon 400\ninactive_file 200\nactive_file 100\n",
        );
        assert_eq!(v2(), None);
        write("memory.max", "1000\n");
        let of = "the control group";
        assert_eq!(
            v2(),
            Some(Room {
                free: 500,
                total: 1000,
                of
            })
        );
        // The number that cgroup v1 reports if there is no limit.
        write("memory.limit_in_bytes", "9223372036854771712\n");
        write("memory.usage_in_bytes", "700\n");
        let v1 = limited(
            folder.path(),
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        );
        assert_eq!(v1, None);
    }
}
