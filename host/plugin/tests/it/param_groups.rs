use host_core::{Dtype, ErrorKind, GroupsRequest, ParamGroup, ParamInfo, Result, check_groups};
use serde_json::json;

use crate::fixture::{Fixture, dir};

fn params() -> Vec<ParamInfo> {
    ["h.0.attn.weight", "h.0.attn.bias", "wte.weight"]
        .map(|name| ParamInfo {
            name: name.to_owned(),
            shape: vec![2, 3],
            dtype: Dtype::F32,
        })
        .to_vec()
}

/// The groups of a plugin that does as `how` says; its id is `id`.
fn grouped(id: &str, how: &str) -> Result<(Vec<ParamGroup>, Vec<String>)> {
    let plugin = Fixture::new("groups.c", id)
        .load_with(dir().path(), json!({"how": how}))
        .unwrap();
    let mut groups = plugin.param_groups().unwrap();
    assert_eq!(groups.id(), id);
    groups.group(GroupsRequest {
        params: &params(),
        weight_decay: 0.1,
    })
}

#[test]
fn parameters_come_into_their_groups() {
    let (groups, warnings) = grouped("good-groups", "warn").unwrap();
    let group = |name: &str, weight_decay, params: &[usize]| ParamGroup {
        name: name.to_owned(),
        weight_decay,
        lr_multiplier: 1.0,
        params: params.to_vec(),
    };
    assert_eq!(
        groups,
        [group("decay", 0.1, &[0, 2]), group("no_decay", 0.0, &[1])]
    );
    assert_eq!(warnings, ["the pattern \"x\" matches nothing"]);
    check_groups("good-groups", &params(), &groups).unwrap();
}

#[test]
fn what_is_left_out_or_there_twice_is_named() {
    for (how, fault) in [
        ("leave_out", "in no group: h.0.attn.bias"),
        (
            "twice",
            "in more than one group: h.0.attn.bias (\"decay\" and \"no_decay\")",
        ),
    ] {
        let id = how.replace('_', "-");
        let (groups, _) = grouped(&id, how).unwrap();
        let error = check_groups(&id, &params(), &groups).unwrap_err();
        assert_eq!(
            error.message(),
            format!("plugin {id} gave parameter groups that cannot be used: {fault}")
        );
        assert_eq!(error.kind(), ErrorKind::Plugin);
    }
}

#[test]
fn a_group_or_index_that_cannot_be_fails_the_call() {
    for (how, reason) in [
        ("group", "group was told to fail"),
        ("panic", "panicked: no groups today"),
        ("same_group", "it added the group \"decay\" twice"),
        (
            "broken_name",
            "it gave a group a name that is not UTF-8: \"\u{fffd}(\"",
        ),
        ("no_place", "it gave no place for a group's index"),
        ("far_param", "it assigned parameter 3, of which there are 3"),
        ("far_group", "it assigned to group 9, of which there are 2"),
    ] {
        let id = format!("groups-{how}");
        let error = grouped(&id, how).unwrap_err();
        assert_eq!(
            error.message(),
            format!("plugin {id} failed in group: {reason}")
        );
        assert_eq!(error.kind(), ErrorKind::Plugin);
    }
}
