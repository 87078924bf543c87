//! Lets the program, and its own tests, find libtorch where it was built against. An rpath by
//! `RUSTFLAGS` would mark the plugins' libraries as well, which must not know libtorch.

fn main() {
    let lib = std::env::var("DEP_HOST_TORCH_SHIM_LIBTORCH_LIB")
        .expect("host-train's build script tells where libtorch is");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    println!("cargo::rerun-if-changed=build.rs");
}
