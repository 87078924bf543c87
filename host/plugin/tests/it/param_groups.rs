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

/// Returns the groups that a plugin assigns. The plugin behaves as `how` describes, and its id is `id`.
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
fn parameters_are_assigned_to_their_groups() {
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
fn missing_and_repeated_parameters_are_named() {
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
            format!("plugin {id} returned unusable parameter groups: {fault}")
        );
        assert_eq!(error.kind(), ErrorKind::Plugin);
    }
}

#[test]
fn an_invalid_group_or_index_fails_the_call() {
    for (how, reason) in [
        ("group", "group was told to fail"),
        ("panic", "panicked: no groups"),
        ("same_group", "it added the group \"decay\" twice"),
        (
            "broken_name",
            "the name of a group is not UTF-8: \"\u{fffd}(\"",
        ),
        ("no_place", "it passed no pointer for a group's index"),
        (
            "far_param",
            "it used parameter index 3, but the number of parameters in the model is 3",
        ),
        (
            "far_group",
            "it used group index 9, but the number of groups added so far is 2",
        ),
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
