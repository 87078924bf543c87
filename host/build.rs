//! Adds an rpath, so that the program and its tests find the libtorch that they were built with. An rpath in
//! `RUSTFLAGS` would also be added to the plugins' libraries, which must not depend on libtorch.

fn main() {
    let lib = std::env::var("DEP_HOST_TORCH_SHIM_LIBTORCH_LIB")
        .expect("host-train's build script sets the path of libtorch");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo::rerun-if-changed=build.rs");
}
