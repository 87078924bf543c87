//! Parses generated locks after printing them, and texts that are not locks.

use std::path::Path;

use host_plugin::{LockedPlugin, PluginLock};
use proptest::prelude::*;

use crate::{assert_readable, times};

const PATH: &str = "/c/plugins.lock";

fn plugin() -> impl Strategy<Value = LockedPlugin> {
    (
        "[a-z][a-z0-9_-]{0,8}",
        any::<String>(),
        any::<(u32, u32)>(),
        "[0-9a-f]{64}",
        0u64..1 << 62,
    )
        .prop_map(|(id, version, abi, sha256, size)| LockedPlugin {
            id,
            version,
            abi,
            sha256,
            size,
        })
}

fn lock() -> impl Strategy<Value = PluginLock> {
    prop::collection::btree_map("[a-z]{1,9}", plugin(), 0..6).prop_map(|plugins| {
        let plugins = plugins
            .into_iter()
            .map(|(id, plugin)| LockedPlugin { id, ..plugin });
        PluginLock::new(PATH, plugins).unwrap()
    })
}

fn read(text: &str) -> Option<PluginLock> {
    PluginLock::parse(text, Path::new(PATH))
        .inspect_err(|error| {
            assert_readable(error, None);
            assert!(error.message().contains(PATH), "{error}");
        })
        .ok()
}

proptest! {
    #![proptest_config(times(2))]

    #[test]
    fn a_printed_lock_reads_as_the_same(lock in lock()) {
        let text = lock.to_toml();
        let same = read(&text).unwrap();
        prop_assert_eq!(&same, &lock);
        prop_assert_eq!(same.to_toml(), text);
        for plugin in lock.plugins() {
            prop_assert!(lock.check(plugin, Path::new("/a.so")).is_ok());
        }
    }

    #[test]
    fn any_text(text in any::<String>()) {
        prop_assert!(read(&text).is_none());
    }

    /// If a damaged lock is accepted, every entry in it is complete.
    #[test]
    fn a_lock_with_other_bytes(
        lock in lock(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..3, any::<char>()), 1..4),
    ) {
        let mut text: Vec<char> = lock.to_toml().chars().collect();
        for (at, how, c) in edits {
            let at = at.index(text.len());
            match how {
                0 => text[at] = c,
                1 => text.insert(at, c),
                _ => drop(text.remove(at)),
            }
        }
        if let Some(read) = read(&text.into_iter().collect::<String>()) {
            prop_assert_eq!(PluginLock::parse(&read.to_toml(), Path::new(PATH)).unwrap(), read);
        }
    }
}
