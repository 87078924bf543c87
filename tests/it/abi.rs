//! The ABI: its C header, its layout, its promises, and other versions.

mod header;
mod layout;
mod lock;
mod versions;

use std::path::{Path, PathBuf};

/// The source files of the ABI crate, in the order of their declarations in the header.
const SOURCES: [&str; 11] = [
    "lib",
    "string",
    "host_api",
    "tensor",
    "out",
    "param_groups",
    "metric",
    "checkpoint_sink",
    "event",
    "observer",
    "descriptor",
];

/// Returns the folder of the ABI crate.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/abi")
}

/// Generates the header from the crate's sources.
fn generate() -> String {
    let config =
        cbindgen::Config::from_file(folder().join("cbindgen.toml")).expect("cbindgen.toml");
    let builder = SOURCES
        .iter()
        .map(|source| folder().join("src").join(source).with_extension("rs"))
        .fold(cbindgen::Builder::new(), cbindgen::Builder::with_src);
    let mut header = Vec::new();
    let bindings = builder.with_config(config).generate();
    bindings.expect("the header").write(&mut header);
    without_links(&String::from_utf8(header).expect("UTF-8"))
}

/// Replaces the links in Rust's doc comments, [`X`] and [`X`](crate::X), with plain names.
fn without_links(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, link)) = rest.split_once("[`") {
        let (name, after) = link.split_once("`]").expect("a link ends");
        plain.push_str(before);
        plain.push_str(name);
        rest = match after.strip_prefix("(crate::") {
            Some(target) => target.split_once(')').expect("a target ends").1,
            None => after,
        };
    }
    plain + rest
}
