//! Whatever is given to what reads plugins before any code of theirs runs, it ends in a plugin or in
//! one clear error: without a panic, without much memory. `PROPTEST_CASES` makes it longer.

#![expect(clippy::unwrap_used, reason = "these are tests")]

#[path = "../it/elf.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod elf;
#[path = "../it/fixture.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod fixture;

mod allocation;
mod config;
mod gate;
mod json;
mod lock;
mod manifest;
mod spec;

use std::path::Path;

use host_core::Error;
use host_plugin::{PluginManifest, is_plugin_id};
use host_plugin_abi::HOST_ABI_MINOR;
use proptest::test_runner::Config;

/// What the files are called in errors.
const PATH: &str = "/a/plugin.so";

/// Some thousands of cases, or as the environment says; the whole takes seconds.
fn times(factor: u32) -> Config {
    let config = Config::default();
    Config {
        cases: config.cases.saturating_mul(8 * factor),
        max_shrink_iters: 10_000,
        ..config
    }
}

/// An error that a person can read: one line of a bearable length, the path last, and a way out.
fn assert_readable(error: &Error, path: Option<&str>) {
    let message = error.message();
    assert!(message.len() < 2000, "{} bytes: {message}", message.len());
    assert!(!message.contains(char::is_control), "{message:?}");
    if let Some(path) = path {
        assert!(message.ends_with(&format!(": {path}")), "{message}");
    }
    assert!(error.hint_text().is_some_and(|hint| !hint.is_empty()));
}

/// Looks at a library and holds the outcome to what is promised of it.
fn look(bytes: &[u8]) -> Option<PluginManifest> {
    let (outcome, peak) = allocation::peak(|| host_plugin::inspect(bytes, Path::new(PATH)));
    // The tables are not copied; a manifest of up to 1 MiB is, and its schema is compiled.
    let most = (16 << 20) + 64 * bytes.len().min(1 << 20);
    assert!(peak < most, "{peak} bytes for a file of {}", bytes.len());
    match outcome {
        Ok(manifest) => {
            assert!(is_plugin_id(&manifest.id), "{}", manifest.id);
            let version = &manifest.version;
            assert!((1..=64).contains(&version.len()) && version.is_ascii());
            assert!(!version.contains(|c: char| c.is_ascii_control() || c == ' '));
            assert_eq!(manifest.abi.0, 1);
            assert!(manifest.min_host_minor <= HOST_ABI_MINOR);
            assert!(!manifest.kinds.is_empty());
            for (at, kind) in manifest.kinds.iter().enumerate() {
                assert!(!manifest.kinds[..at].contains(kind));
            }
            Some(manifest)
        }
        Err(error) => {
            assert_readable(&error, Some(PATH));
            None
        }
    }
}
