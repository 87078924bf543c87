//! Checks the calls of a `ParamGroups` plugin.

#![expect(unsafe_code, reason = "one test violates the rules of the C interface")]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ptr;

use host_plugin_sdk::abi::{HOST_ERROR, HostGroupsOut};
use host_plugin_sdk::{Dtype, Groups, GroupsRequest, Host, ParamGroups, Result};
use host_plugin_sdk::{export_plugin, fake};

/// Creates one group for each number of dimensions that a parameter has.
struct ByRank {
    panics: bool,
}

#[derive(serde::Deserialize)]
struct Config {
    #[serde(default)]
    panics: bool,
}

impl ParamGroups for ByRank {
    type Config = Config;

    fn create(config: Config, _host: Host) -> Result<Self> {
        Ok(Self {
            panics: config.panics,
        })
    }

    fn group(&mut self, request: &GroupsRequest<'_>, groups: &mut Groups<'_>) -> Result<()> {
        assert!(!self.panics, "no groups today");
        let mut by_rank = BTreeMap::new();
        for (index, param) in request.params().iter().enumerate() {
            assert_eq!(param.dtype(), Dtype::F32);
            let rank = param.shape().len();
            if let Entry::Vacant(new) = by_rank.entry(rank) {
                let name = format!("rank-{rank}");
                new.insert(groups.add_group(&name, request.weight_decay(), 0.5)?);
            }
            groups.assign(index, by_rank[&rank])?;
        }
        if by_rank.is_empty() {
            groups.warn("no parameters");
        }
        Ok(())
    }
}

export_plugin! { description: "Groups by rank", param_groups: ByRank }

#[test]
fn groups_and_warnings_reach_the_host() {
    let plugin = fake::Plugin::load(&PLUGIN);
    let mut grouper = plugin.param_groups("{}").expect("created");
    let params = [
        fake::Param::new("w", &[2, 3]),
        fake::Param::new("b", &[3]),
        fake::Param::new("v", &[3, 3]),
        fake::Param::new("scale", &[]),
    ];
    let grouping = grouper.group(&params, 0.1).expect("grouped");
    let names: Vec<&str> = grouping.groups.iter().map(|g| g.name.as_str()).collect();
    assert_eq!(names, ["rank-2", "rank-1", "rank-0"]);
    assert_eq!(grouping.groups[0].params, ["w", "v"]);
    assert_eq!(grouping.groups[0].weight_decay, 0.1);
    assert_eq!(grouping.groups[0].lr_multiplier, 0.5);
    let empty = grouper.group(&[], 0.1).expect("grouped");
    assert_eq!(empty.warnings, ["no parameters"]);
}

#[test]
fn a_panic_affects_only_the_instance() {
    let plugin = fake::Plugin::load(&PLUGIN);
    let mut grouper = plugin.param_groups(r#"{"panics": true}"#).expect("created");
    let failure = grouper.group(&[], 0.1).expect_err("panics");
    assert_eq!(failure.message, "panicked: no groups today");
    assert!(grouper.group(&[], 0.1).expect_err("poisoned").is_panic());
}

#[test]
fn null_or_too_small_arguments_are_errors() {
    let plugin = fake::Plugin::load(&PLUGIN);
    let grouper = plugin.param_groups("{}").expect("created");
    let (vtable, instance) = grouper.raw();
    let group = vtable.group.expect("group");
    let small = 4u32;
    let small: *const HostGroupsOut = (&raw const small).cast();
    // SAFETY: the instance is live. The SDK accepts null and a struct with a small `struct_size`.
    unsafe {
        assert_eq!(group(instance, ptr::null(), ptr::null()), HOST_ERROR);
        assert_eq!(group(instance, small.cast(), small), HOST_ERROR);
    }
}
