//! Builds the C++ side of the shim against libtorch's headers. Passes the path of libtorch to the linker.
//! Also passes it to the binary's build script, as `links` metadata.

use std::env;
use std::path::{Path, PathBuf};

const SOURCES: [&str; 4] = ["shim", "device", "collective", "buckets"];

fn main() {
    let lib = PathBuf::from(
        env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys sets the path of libtorch"),
    );
    let torch = lib.parent().unwrap_or(Path::new("/"));
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .flag_if_supported("-Wno-unused-parameter")
        .flag("-isystem")
        .flag(torch.join("include"))
        .flag("-isystem")
        .flag(torch.join("include/torch/csrc/api/include"))
        // The declarations of gloo in `torch_shim/gloo`.
        .flag("-isystem")
        .flag("torch_shim")
        .define("USE_C10D_GLOO", None)
        .define("FMT_HEADER_ONLY", None)
        .warnings_into_errors(true)
        .files(SOURCES.map(|name| format!("torch_shim/{name}.cpp")))
        .compile("host_torch_shim");
    // libtorch_cuda also defines some of gloo's functions. torch-sys links it first, and the program would then need
    // CUDA's libraries to start.
    println!("cargo::rustc-link-lib=torch_cpu");
    for name in SOURCES {
        println!("cargo::rerun-if-changed=torch_shim/{name}.cpp");
    }
    for name in ["shim.h", "collective.h", "gloo"] {
        println!("cargo::rerun-if-changed=torch_shim/{name}");
    }
    println!("cargo::metadata=LIBTORCH_LIB={}", lib.display());
    // Sets the library path for this crate's tests. The binary's build script does the same for the binary.
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
