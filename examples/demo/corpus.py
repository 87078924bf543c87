"""Prints where cargo's registry keeps the sources of some of this project's dependencies. These sources are a few MB
of Rust, identical on every machine with the same Cargo.lock.

Usage: corpus.py < `cargo metadata` JSON
"""

import json
import pathlib
import sys

WANTED = {
    "anyhow",
    "bytes",
    "clap_builder",
    "indexmap",
    "itertools",
    "memchr",
    "serde",
    "serde_core",
    "serde_json",
    "toml",
    "walkdir",
}

# Only the newest version of each crate is used, because an older version would leak evaluation text into the training
# data.
newest = {}
for package in json.load(sys.stdin)["packages"]:
    if package["name"] in WANTED:
        version = [int(part) for part in package["version"].split("+")[0].split(".")]
        newest[package["name"]] = max(
            (version, package["manifest_path"]), newest.get(package["name"], ([], ""))
        )
for _, manifest in sorted(newest.values(), key=lambda entry: entry[1]):
    print(pathlib.Path(manifest).parent / "src")
