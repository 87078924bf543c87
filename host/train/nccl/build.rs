//! Compiles `nccl.cpp` if the headers of CUDA and NCCL are installed. Otherwise, the library reports that they were missing.

use std::env;
use std::path::{Path, PathBuf};

/// Headers that `ProcessGroupNCCL.hpp` includes. They are in different packages.
const HEADERS: [&str; 4] = [
    "nccl.h",
    "cuda_runtime_api.h",
    "crt/host_config.h",
    "nv/target",
];

fn main() {
    println!("cargo::rerun-if-changed=nccl.cpp");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    println!("cargo::rustc-check-cfg=cfg(has_nccl)");
    let lib = PathBuf::from(
        env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys sets the path of libtorch"),
    );
    let torch = lib.parent().unwrap_or(Path::new("/"));
    let packages = torch.parent().unwrap_or(Path::new("/")).join("nvidia");
    let cuda = env::var_os("CUDA_HOME").map_or("/usr/local/cuda".into(), PathBuf::from);
    let folders = [
        packages.join("nccl/include"),
        packages.join("cu13/include"),
        packages.join("cu13/include/cccl"),
        cuda.join("include"),
        cuda.join("include/cccl"),
        PathBuf::from("/usr/include"),
    ];
    let has = |header: &&str| folders.iter().any(|folder| folder.join(header).exists());
    // The build script runs again when packages are installed.
    for folder in [&packages, &cuda.join("include")] {
        if folder.exists() {
            println!("cargo::rerun-if-changed={}", folder.display());
        }
    }
    if !lib.join("libtorch_cuda.so").exists() || !HEADERS.iter().all(has) {
        return;
    }
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++20")
        .flag("-isystem")
        .flag(torch.join("include"))
        .flag("-isystem")
        .flag(torch.join("include/torch/csrc/api/include"))
        .define("USE_C10D_NCCL", None)
        .define("FMT_HEADER_ONLY", None)
        .warnings_into_errors(true);
    for folder in folders.iter().filter(|folder| folder.exists()) {
        // The compiler has /usr/include already, and its order matters.
        if folder != Path::new("/usr/include") {
            build.flag("-isystem").flag(folder);
        }
    }
    build.file("nccl.cpp").compile("host_nccl_cpp");
    println!("cargo::rustc-cfg=has_nccl");
    println!("cargo::rustc-link-search=native={}", lib.display());
    for library in ["torch_cuda", "torch_cpu", "c10_cuda", "c10"] {
        println!("cargo::rustc-link-lib={library}");
    }
}
