//! `doctor`: what this machine has, what is wrong with it, and the command that mends it. It
//! changes nothing and downloads nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::machine::datasets::{CIFAR10, CIFAR100, Layout};
use crate::machine::disk::{free_space, megabytes};
use crate::machine::download::INSTALL_CURL;
use crate::machine::gpu::{Card, DRIVER, Gpus, numbers};
use crate::machine::libtorch;
use crate::machine::pins::{Flavor, platform_here};
use crate::machine::pip;
use crate::machine::tree::{Tree, VERSION};
use crate::process::{Place, output, python, say};

/// Below this much free disk a build or a run is likely to fail.
const COMFORTABLE_SPACE: u64 = 3_000_000_000;

/// One finding; a mending command makes it a problem.
struct Finding {
    what: &'static str,
    found: String,
    mend: Option<String>,
}

fn good(what: &'static str, found: impl Into<String>) -> Finding {
    Finding { what, found: found.into(), mend: None }
}

fn bad(what: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { what, found: found.into(), mend: Some(mend.into()) }
}

pub(crate) fn doctor(place: &Place) -> Result<u8> {
    let mut problems = 0;
    // One after the other as they are found: some are asked of programs that take their time.
    let mut tell = |finding: Finding| {
        let Finding { what, found, mend } = finding;
        match mend {
            None => say(format!("ok       {what}: {found}")),
            Some(mend) => {
                problems += 1;
                say(format!("PROBLEM  {what}: {found}"));
                say(format!("         mend it with: {mend}"));
            }
        }
    };
    tell(platform());
    tell(rust());
    tell(compiler());
    let tree = libtorch::in_use(place);
    let flavor = tree.as_ref().ok().and_then(|tree| tree.as_ref()).map(|tree| tree.flavor);
    tell(pip(flavor.is_some()));
    tell(curl());
    tell(libtorch(&tree));
    cards(&Gpus::here(), flavor).into_iter().for_each(&mut tell);
    tell(trainer(&place.trainer(), flavor));
    tell(good("processor", processor()));
    tell(space("free disk, cache", &place.cache));
    tell(space("free disk, workspace", &place.root));
    tell(digits(&place.root.join("datasets/digits/digits.csv")));
    tell(downloaded(place, &CIFAR10));
    tell(downloaded(place, &CIFAR100));
    say(match problems {
        0 => "nothing is wrong".to_owned(),
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    });
    Ok(u8::from(problems > 0))
}

fn platform() -> Finding {
    match platform_here() {
        Some(platform) => good("platform", platform.name),
        None => bad(
            "platform",
            format!("{} {}, for which no libtorch is pinned", std::env::consts::OS, std::env::consts::ARCH),
            "export LIBTORCH=/path/to/libtorch, or cargo xtask setup --archive FILE_OR_URL --sha256 HEX",
        ),
    }
}

fn rust() -> Finding {
    let needed = env!("CARGO_PKG_RUST_VERSION");
    let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    let found =
        output(Command::new(rustc).arg("--version")).unwrap_or_else(|| "rustc cannot be started".to_owned());
    // "rustc 1.95.0 (…)"
    let version = found.split_whitespace().nth(1).unwrap_or_default();
    if numbers(version) >= numbers(needed) {
        good("Rust", format!("{version} ({needed} is needed)"))
    } else {
        bad("Rust", format!("{found}, and {needed} is needed"), "rustup update stable")
    }
}

fn compiler() -> Finding {
    let mend =
        "apt install g++ (Debian and Ubuntu), dnf install gcc-c++ (Fedora), xcode-select --install (macOS)";
    let name = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    // CXX may carry arguments, such as a wrapper and the compiler it wraps.
    let mut words = name.split_whitespace();
    let program = words.next().unwrap_or("c++");
    let arguments: Vec<&str> = words.collect();
    let Some(version) = output(Command::new(program).args(&arguments).arg("--version")) else {
        return bad("C++ compiler", format!("{name} cannot be started"), mend);
    };
    let version = version.lines().next().unwrap_or_default().to_owned();
    // Its input is empty: this asks only whether the standard is known and its library there.
    let asks = ["-std=c++17", "-include", "optional", "-fsyntax-only", "-x", "c++", "/dev/null"];
    match output(Command::new(program).args(&arguments).args(asks)) {
        Some(_) => good("C++ compiler", format!("{version}, C++17")),
        None => bad("C++ compiler", format!("{version} does not compile C++17"), mend),
    }
}

fn pip(libtorch_is_there: bool) -> Finding {
    match pip::problem() {
        None => good(
            "Python with pip",
            output(Command::new(python()).args(["-m", "pip", "--version"])).unwrap_or_default(),
        ),
        Some(_) if libtorch_is_there => {
            good("Python with pip", "not found, and not needed: libtorch is there")
        }
        Some(problem) => bad("Python with pip", problem, "apt install python3-pip, or python3 -m ensurepip"),
    }
}

fn curl() -> Finding {
    match output(Command::new("curl").arg("--version")) {
        Some(version) => good("curl", version.lines().next().unwrap_or_default()),
        None => bad("curl", "cannot be started, and data sets are downloaded with it", INSTALL_CURL),
    }
}

fn libtorch(tree: &Result<Option<Tree>>) -> Finding {
    match tree {
        Ok(Some(tree)) => {
            good("libtorch", format!("{VERSION} ({}) at {}", tree.flavor.as_str(), tree.dir.display()))
        }
        Ok(None) => bad("libtorch", "not set up", "cargo xtask setup"),
        Err(error) => {
            let mend = "unset LIBTORCH and LIBTORCH_USE_PYTORCH if they are set, then cargo xtask setup";
            bad("libtorch", format!("{error:#}"), mend)
        }
    }
}

/// Whether the trainer was linked with CUDA, and should have been.
fn trainer(trainer: &Path, flavor: Option<Flavor>) -> Finding {
    let again = "cargo clean --release -p torch-sys, then cargo build --release --workspace --bin trainer";
    let built = fs::read(trainer).ok().map(|binary| needs_cuda(&binary));
    match (built, flavor) {
        (None, _) => good("trainer", "not built yet"),
        (Some(false), Some(Flavor::Cuda)) => bad("trainer", "built without CUDA", again),
        (Some(true), Some(Flavor::Cpu)) => {
            bad("trainer", "built with CUDA, and libtorch is the cpu flavour now", again)
        }
        (Some(true), _) => good("trainer", "built with CUDA"),
        (Some(false), _) => good("trainer", "built for the processor"),
    }
}

/// The cards. One that cannot be used is only a problem to a libtorch that is there to use it.
fn cards(gpus: &Gpus, flavor: Option<Flavor>) -> Vec<Finding> {
    const WHAT: &str = "NVIDIA GPU";
    let judged = |found: String, mend: &str| match flavor {
        Some(Flavor::Cuda) => bad(WHAT, found, format!("{mend}, or cargo xtask setup --flavor cpu")),
        _ => good(WHAT, format!("{found}; training runs on the processor")),
    };
    let driver = format!("install NVIDIA's driver {DRIVER} or later");
    match gpus {
        Gpus::None => vec![judged("none".to_owned(), &driver)],
        Gpus::Unclear(why) => vec![judged(why.clone(), &driver)],
        Gpus::Cards(cards) => {
            let finding = |card: &Card| match card.problem() {
                // Beside another that can be used it does no harm.
                Some(problem) if gpus.usable() => good(WHAT, format!("{card}: {problem}; unused")),
                Some(problem) if card.old_driver().as_ref() == Some(&problem) => {
                    judged(format!("{card}: {problem}"), &driver)
                }
                Some(problem) => judged(format!("{card}: {problem}"), "another card"),
                None if flavor == Some(Flavor::Cpu) => {
                    good(WHAT, format!("{card}; unused, `cargo xtask setup --flavor cuda` would use it"))
                }
                None => good(WHAT, card.to_string()),
            };
            cards.iter().map(finding).collect()
        }
    }
}

/// Whether a Linux binary asks for libtorch_cuda. The names of needed libraries stand between zero
/// bytes in its string table; a text in the program does not.
fn needs_cuda(binary: &[u8]) -> bool {
    const NEEDED: &[u8] = b"\0libtorch_cuda.so\0";
    binary.windows(NEEDED.len()).any(|window| window == NEEDED)
}

/// Name, threads, and the extensions that decide about speed.
fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |names: &[&str]| {
        let line = info.lines().find(|line| names.iter().any(|name| line.starts_with(name)))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let sysctl = |name: &str| output(Command::new("sysctl").args(["-n", name]));
    let name =
        field(&["model name"]).or_else(|| sysctl("machdep.cpu.brand_string")).unwrap_or("unknown".to_owned());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let known = ["avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16", "i8mm"];
    let flags = field(&["flags", "Features"]).unwrap_or_default();
    let mut present: Vec<&str> =
        known.into_iter().filter(|k| flags.split_whitespace().any(|flag| flag == *k)).collect();
    for (feature, short) in [("hw.optional.arm.FEAT_BF16", "bf16"), ("hw.optional.AdvSIMD", "asimd")] {
        if cfg!(target_os = "macos") && sysctl(feature).as_deref() == Some("1") {
            present.push(short);
        }
    }
    let present =
        if present.is_empty() { "none of the known extensions".to_owned() } else { present.join(" ") };
    format!("{name}, {threads} threads, {present}")
}

fn digits(file: &Path) -> Finding {
    if file.is_file() {
        good("digits", "there")
    } else {
        bad("digits", format!("{} is missing", file.display()), "git checkout -- datasets/digits")
    }
}

/// A data set that is downloaded. One that was not is no problem.
fn downloaded(place: &Place, layout: &Layout) -> Finding {
    let link = layout.link(place);
    match layout.check_sizes(&link) {
        Ok(()) => good(layout.name, link.display().to_string()),
        Err(_) if link.symlink_metadata().is_err() => {
            good(layout.name, format!("not fetched; `cargo xtask fetch {}` does", layout.name))
        }
        Err(error) => bad(layout.name, format!("{error:#}"), format!("cargo xtask fetch {}", layout.name)),
    }
}

fn space(what: &'static str, path: &Path) -> Finding {
    match free_space(path) {
        Ok(free) if free >= COMFORTABLE_SPACE => {
            good(what, format!("{} at {}", megabytes(free), path.display()))
        }
        Ok(free) => {
            let found = format!("{} at {}, and a build takes up to 3 GB", megabytes(free), path.display());
            bad(what, found, "free some, or set COMPACT_VISION_CACHE or CARGO_TARGET_DIR to another disk")
        }
        Err(error) => bad(what, format!("{error:#}"), "set COMPACT_VISION_CACHE to a directory that exists"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_in_the_program_is_not_a_needed_library() {
        assert!(needs_cuda(b"x\0libc10.so\0libtorch_cuda.so\0y"));
        assert!(!needs_cuda(b"warning: libtorch_cuda.so was dropped\0"));
    }
}
