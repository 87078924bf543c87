//! Fuzz tests of the code that reads plugins before any plugin code runs. For any input this code must return
//! a plugin or one clear error, without a panic and with little memory. `PROPTEST_CASES` increases the number
//! of cases.

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

/// The path that errors report for the inspected bytes.
const PATH: &str = "/a/plugin.so";

/// Returns a configuration with `8 * factor` times the usual number of cases. The usual number is
/// `PROPTEST_CASES` if it is set, otherwise 256. With 256, all tests together take a few seconds.
fn times(factor: u32) -> Config {
    let config = Config::default();
    Config {
        cases: config.cases.saturating_mul(8 * factor),
        max_shrink_iters: 10_000,
        ..config
    }
}

/// Checks that an error is readable. Its message must be one line of moderate length, with the path (if
/// given) at the end. The error must also have a hint.
fn assert_readable(error: &Error, path: Option<&str>) {
    let message = error.message();
    assert!(message.len() < 2000, "{} bytes: {message}", message.len());
    assert!(!message.contains(char::is_control), "{message:?}");
    if let Some(path) = path {
        assert!(message.ends_with(&format!(": {path}")), "{message}");
    }
    assert!(error.hint_text().is_some_and(|hint| !hint.is_empty()));
}

/// Inspects a library and checks the result.
fn look(bytes: &[u8]) -> Option<PluginManifest> {
    let (outcome, peak) = allocation::peak(|| host_plugin::inspect(bytes, Path::new(PATH)));
    // The file's ELF tables are not copied. Memory is needed only for a manifest of up to 1 MiB, which is
    // copied, and for its schema, which is compiled.
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
