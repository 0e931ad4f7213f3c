//! How much memory this process may have: the machine's, or what a control group or a limit of the shell leaves it.

use std::fmt;
use std::fs;
use std::path::Path;

use run_record::machine;
use rustix::process::{Resource, getrlimit};
use tch::Device;
use torch_ext::memory_info;

use crate::Error;

/// The least of the limits on this process's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Bytes.
    pub bytes: u64,
    /// Who sets it.
    pub by: LimitedBy,
}

/// What a run takes of the memory, in bytes, activations left out: those are known only once a step was made.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// All pictures.
    pub pictures: u64,
    /// Weights, gradients, what the optimiser keeps, averaged weights.
    pub network: u64,
    /// What this process may have.
    pub limit: Option<Limit>,
    /// What is free on the card, if a run is on one.
    pub card: Option<Limit>,
}

impl Budget {
    /// Of so much, in this process and on this device.
    ///
    /// # Errors
    /// What libtorch says of the device.
    pub fn new(pictures: u64, network: u64, device: Device) -> Result<Self, Error> {
        let card = memory_info(device)?.map(|(free, _)| Limit { bytes: free, by: LimitedBy::Card });
        Ok(Self { pictures, network, limit: limit(), card })
    }

    /// Refuses a network that cannot be trained in what there is.
    ///
    /// # Errors
    /// The network takes more by itself.
    pub fn check(&self) -> Result<(), Error> {
        match self.card.or(self.limit) {
            Some(Limit { bytes, by }) if self.network > bytes => Err(Error::Usage(format!(
                "the network's weights, gradients and optimiser take {}, more than {}, {by}",
                in_words(self.network),
                in_words(bytes)
            ))),
            _ => Ok(()),
        }
    }

    /// The limit that pictures which are held would use up more than half of, the network set apart.
    pub fn short_of(&self) -> Option<Limit> {
        let is_short = |limit: &Limit| self.pictures > limit.bytes.saturating_sub(self.network) / 2;
        [self.card, self.limit].into_iter().flatten().find(is_short)
    }
}

/// Bytes as `9.4 MB` or `1.2 GB`.
pub fn in_words(bytes: u64) -> String {
    let megabytes = bytes as f64 / 1e6;
    match megabytes {
        ..9.95 => format!("{megabytes:.1} MB"),
        ..999.5 => format!("{megabytes:.0} MB"),
        _ => format!("{:.1} GB", megabytes / 1000.0),
    }
}

/// Who limits a process's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitedBy {
    /// There is no more of it.
    Machine,
    /// A container, Slurm or systemd.
    ControlGroup,
    /// `ulimit -v`.
    AddressSpace,
    /// That much is free on it.
    Card,
}

impl fmt::Display for LimitedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "this machine's memory",
            Self::ControlGroup => "the limit of this process's control group",
            Self::AddressSpace => "the limit that ulimit -v sets, less what is mapped",
            Self::Card => "what is free on the card",
        })
    }
}

/// What this process may have at most, where the system tells it.
pub fn limit() -> Option<Limit> {
    let machine = machine::memory().map(|bytes| Limit { bytes, by: LimitedBy::Machine });
    let groups = fs::read_to_string("/proc/self/cgroup").ok();
    let group = groups.and_then(|groups| control_group(&groups, Path::new("/sys/fs/cgroup")));
    let group = group.map(|bytes| Limit { bytes, by: LimitedBy::ControlGroup });
    // Libraries are mapped before anything is allocated.
    let addresses = getrlimit(Resource::As).current.map(|most| {
        let bytes = most.saturating_sub(machine::mapped_memory().unwrap_or_default());
        Limit { bytes, by: LimitedBy::AddressSpace }
    });
    [machine, group, addresses].into_iter().flatten().min_by_key(|limit| limit.bytes)
}

/// Bytes of [`limit`]; any number where the system tells none.
pub fn most() -> u64 {
    limit().map_or(u64::MAX, |limit| limit.bytes)
}

/// The least limit of a process's control group and those it lies in. `groups` is `/proc/PID/cgroup`, `root` where the
/// hierarchies are mounted: version 1 has one for memory alone, version 2 one for everything. A container may see
/// its own group as the root, whatever its path is outside.
fn control_group(groups: &str, root: &Path) -> Option<u64> {
    let limits = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let (mount, file) = match controllers {
            "" => (root.to_path_buf(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        let group = mount.join(path.trim_start_matches('/'));
        let within = group.ancestors().take_while(|group| group.starts_with(&mount));
        // `max` is no number, and no limit.
        let read = |group: &Path| fs::read_to_string(group.join(file)).ok()?.trim().parse().ok();
        within.filter_map(read).collect::<Vec<u64>>()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_all_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/job/memory.limit_in_bytes", "900\n");
        write("memory/job/step/memory.limit_in_bytes", "1000\n");
        write("slice/memory.max", "max\n");
        write("slice/job/memory.max", "800\n");
        let limit = |groups: &str| control_group(groups, root.path());
        assert_eq!(limit("4:cpu:/\n3:cpuacct,memory:/job/step\n0::/nowhere\n"), Some(900));
        assert_eq!(limit("0::/slice/job/step/deep\n"), Some(800));
        assert_eq!(limit("0::/slice\n"), None);
        // As a container sees a path of the host.
        assert_eq!(limit("9:memory:/docker/0123\n"), Some(9_223_372_036_854_771_712));
        assert_eq!(limit("garbage\n::\n"), None);
    }

    #[test]
    fn pictures_are_held_where_they_leave_half_of_what_the_network_does() {
        let limit = |bytes, by| Some(Limit { bytes, by });
        let budget = |pictures, network, card| Budget {
            pictures,
            network,
            limit: limit(1000, LimitedBy::ControlGroup),
            card: limit(card, LimitedBy::Card),
        };
        assert_eq!(budget(450, 100, 1000).short_of(), None);
        assert_eq!(budget(451, 100, 2000).short_of(), limit(1000, LimitedBy::ControlGroup));
        assert_eq!(budget(300, 100, 600).short_of(), limit(600, LimitedBy::Card));
        assert!(budget(0, 601, 600).check().unwrap_err().to_string().contains("what is free on the card"));
        assert!(budget(0, 600, 600).check().is_ok());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_less_than_its_limit() {
        let (limit, peak) = (limit().unwrap(), machine::peak_memory().unwrap());
        assert!(peak > 1 << 20 && limit.bytes > peak, "{limit:?} {peak}");
    }
}
