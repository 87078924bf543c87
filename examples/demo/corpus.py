"""Prints the source folders of this project's own dependencies, as cargo keeps them: a few MB of
Rust, the same on every machine that has the same Cargo.lock.

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

# Of a crate in several versions the newest: its twin would tell the evaluation's answers.
newest = {}
for package in json.load(sys.stdin)["packages"]:
    if package["name"] in WANTED:
        version = [int(part) for part in package["version"].split("+")[0].split(".")]
        newest[package["name"]] = max(
            (version, package["manifest_path"]), newest.get(package["name"], ([], ""))
        )
for _, manifest in sorted(newest.values(), key=lambda entry: entry[1]):
    print(pathlib.Path(manifest).parent / "src")
