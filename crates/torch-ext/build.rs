//! Compiles `src/torch_ext.cpp` against the libtorch that torch-sys found.

use std::env;
use std::path::PathBuf;

fn main() -> Result<(), String> {
    println!("cargo::rustc-check-cfg=cfg(libtorch_cuda)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/torch_ext.cpp");
    // The variables torch-sys reads for the same purpose, with its defaults.
    println!("cargo::rerun-if-env-changed=LIBTORCH_INCLUDE");
    println!("cargo::rerun-if-env-changed=LIBTORCH_CXX11_ABI");
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
    build.file("src/torch_ext.cpp").try_compile("torch_ext").map_err(|error| error.to_string())
}
