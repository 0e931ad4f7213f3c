//! What the system says of this machine and this process.

use std::fs;
use std::process::Command;

/// The processor's model, or `unknown`.
pub fn cpu() -> String {
    let from_proc = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    from_proc.or_else(|| sysctl("machdep.cpu.brand_string")).unwrap_or_else(|| "unknown".to_owned())
}

/// Bytes of memory of the machine, where the system tells it.
pub fn memory() -> Option<u64> {
    let from_proc = fs::read_to_string("/proc/meminfo").ok().and_then(|text| kib_line(&text, "MemTotal:"));
    from_proc.or_else(|| sysctl("hw.memsize")?.parse().ok())
}

/// Largest resident memory of this process so far, in bytes, where the system tells it.
pub fn peak_memory() -> Option<u64> {
    kib_line(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Bytes that this process has mapped, where the system tells it.
pub fn mapped_memory() -> Option<u64> {
    kib_line(&fs::read_to_string("/proc/self/status").ok()?, "VmSize:")
}

/// A value that macOS tells.
fn sysctl(name: &str) -> Option<String> {
    let output = Command::new("sysctl").args(["-n", name]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Bytes, where a line says so many kB.
fn kib_line(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_by_their_names() {
        let text = "MemFree:    7 kB\nMemTotal:       24500000 kB\nVmPeak:\t12\n";
        assert_eq!(kib_line(text, "MemTotal:"), Some(24_500_000 * 1024));
        assert_eq!([kib_line(text, "VmPeak:"), kib_line(text, "VmHWM:")], [None, None]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_smaller_than_the_machine() {
        let (peak, machine) = (peak_memory().unwrap(), memory().unwrap());
        assert!(1 << 20 < peak && peak < machine && peak < mapped_memory().unwrap(), "{peak} {machine}");
    }
}
