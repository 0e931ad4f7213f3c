//! Makes sure that libtorch is of the version that tch binds.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// The libtorch release the pinned tch binds.
const EXPECTED: &str = "2.11.0";

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    let lib = env::var_os("DEP_TCH_LIBTORCH_LIB")
        .map(PathBuf::from)
        .ok_or("torch-sys did not say where libtorch is; run `cargo xtask setup`")?;
    let header = lib.join("../include/torch/headeronly/version.h");
    println!("cargo::rerun-if-changed={}", header.display());
    let version = version(&header).unwrap_or("of an unknown version".to_owned());
    if version != EXPECTED {
        return Err(format!(
            "libtorch in {} is {version}, but tch 0.24 needs {EXPECTED}; run `cargo xtask setup`",
            lib.display()
        ));
    }
    println!("cargo::rustc-env=LIBTORCH_VERSION={EXPECTED}");
    Ok(())
}

/// The version a header of libtorch declares, or `None` where it does not say.
fn version(header: &Path) -> Option<String> {
    let header = fs::read_to_string(header).ok()?;
    let number = |name: &str| {
        let prefix = format!("#define TORCH_VERSION_{name} ");
        header.lines().find_map(|line| line.strip_prefix(&prefix).map(str::trim).map(str::to_owned))
    };
    Some(format!("{}.{}.{}", number("MAJOR")?, number("MINOR")?, number("PATCH")?))
}
