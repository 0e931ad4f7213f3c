//! Compiles the C++ in `src` against the libtorch that torch-sys found, and the kernels once for each set of
//! instructions.

use std::env;
use std::path::{Path, PathBuf};

fn main() -> Result<(), String> {
    println!("cargo::rustc-check-cfg=cfg(libtorch_cuda)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src");
    // The variables torch-sys reads for the same purpose, with its defaults.
    println!("cargo::rerun-if-env-changed=LIBTORCH_INCLUDE");
    println!("cargo::rerun-if-env-changed=LIBTORCH_CXX11_ABI");
    if env::var_os("CARGO_FEATURE_DOC_ONLY").is_some() {
        return Ok(());
    }
    let lib = env::var_os("DEP_TCH_LIBTORCH_LIB")
        .map(PathBuf::from)
        .ok_or("torch-sys did not say where libtorch is; run `cargo xtask setup`")?;
    let root = env::var_os("LIBTORCH_INCLUDE").map_or_else(|| lib.join(".."), PathBuf::from);
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or("1".to_owned());

    let mut build = cc::Build::new();
    let cuda = lib.join("libtorch_cuda.so");
    if cuda.exists() {
        println!("cargo::rerun-if-changed={}", cuda.display());
        println!("cargo::rustc-cfg=libtorch_cuda");
        build.define("TORCH_EXT_CUDA", None);
    }
    build.cpp(true).pic(true).std("c++17").define("_GLIBCXX_USE_CXX11_ABI", abi.as_str());
    // As a system directory, so that warnings are about this file and not about libtorch.
    build.flag("-isystem").flag(root.join("include"));
    // Whole, also where nothing of it is called: it carries libtorch_cuda into every program that uses this crate (see
    // torch_ext.cpp). A `rustc-link-arg` would reach the tests of this package alone.
    build.link_lib_modifier("+whole-archive");
    // libtorch's vectors inside a tensor iterator; the compiler cannot see that they are written.
    build.flag_if_supported("-Wno-maybe-uninitialized");
    build.files(
        ["torch_ext", "ops", "winograd", "batch_norm", "cuda_graph", "frozen", "jit"]
            .map(|name| format!("src/{name}.cpp")),
    );
    build.try_compile("torch_ext").map_err(|error| error.to_string())?;
    process_group(&root, &abi)?;
    let x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let sets = INSTRUCTION_SETS.iter().take(if x86 { INSTRUCTION_SETS.len() } else { 1 });
    sets.into_iter().try_for_each(|(name, flags)| kernels(name, flags))
}

/// Several processes: libtorch's headers for them name gloo's, of which libtorch has the code alone.
fn process_group(root: &Path, abi: &str) -> Result<(), String> {
    let mut build = cc::Build::new();
    build.cpp(true).pic(true).std("c++17").define("_GLIBCXX_USE_CXX11_ABI", abi);
    build.flag("-isystem").flag(root.join("include"));
    build.flag("-isystem").flag(root.join("include/torch/csrc/api/include"));
    build.include("src/gloo_types").files(["src/process_group.cpp", "src/nccl.cpp"]);
    build.try_compile("torch_ext_process_group").map_err(|error| error.to_string())
}

/// Sets of instructions, and the compiler's flags for them. The first is the target's own.
const INSTRUCTION_SETS: [(&str, &[&str]); 4] = [
    ("plain", &[]),
    ("avx2", &["-mavx2", "-mfma"]),
    ("avx512", &["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]),
    ("avx512_bf16", &["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mfma"]),
];

/// The kernels for a set of instructions. They include nothing of libtorch.
fn kernels(name: &str, flags: &[&str]) -> Result<(), String> {
    let table = format!("kernels_{name}");
    let mut build = cc::Build::new();
    build.cpp(true).pic(true).std("c++17").opt_level(3).define("KERNELS", table.as_str());
    // Products and sums as one instruction, which the strict standard forbids the compiler to make of them.
    build.flag("-ffp-contract=fast").flags(flags).file("src/kernels/kernels.cpp");
    build.try_compile(&table).map_err(|error| error.to_string())
}
