//! Tests of grouping. Each parameter must be in exactly one group. The group must depend only on the
//! parameter's name and shape.

use std::collections::BTreeMap;

use host_core::{Dtype, ParamGroup, ParamInfo, check_groups};
use host_plugin_abi::{HostGroupsRequest, HostParam};

use crate::setup::Setup;
use crate::subject::{Subject, has_reason, tolerate};
use crate::test::{Stop, Test, Topic, Verdict, fault};
use host_plugin::PluginKind;
use host_plugin::raw::param;

const TOPIC: Topic = Topic {
    name: "groups",
    kinds: &[PluginKind::ParamGroups],
};

pub(super) const TESTS: &[Test] = &[
    TOPIC.test(
        "groups-gpt2",
        "each parameter of a GPT-2 is in exactly one group, with valid numbers",
        |setup| grouped(setup, &gpt2(3), "a GPT-2's parameters"),
    ),
    TOPIC.test(
        "groups-odd-names",
        "parameters with unusual names, in any writing system, are grouped",
        |setup| grouped(setup, &odd_names(), "parameters with unusual names"),
    ),
    TOPIC.test(
        "groups-zero-dim",
        "zero-dimensional parameters are grouped",
        |setup| grouped(setup, &zero_dim(), "zero-dimensional parameters"),
    ),
    TOPIC.test(
        "groups-empty-list",
        "an empty list of parameters gives no groups, or an error",
        groups_empty_list,
    ),
    TOPIC.test(
        "groups-order",
        "the order of the parameters does not matter",
        groups_order,
    ),
    TOPIC.test(
        "groups-repeat",
        "grouping again gives the same groups",
        groups_repeat,
    ),
    TOPIC.test(
        "newer-host-params",
        "parameters in larger structs are read correctly",
        newer_host_params,
    ),
];

/// A request as a struct of the ABI, and the parameters that it points to.
pub(super) struct Request {
    raw: HostGroupsRequest,
    _params: Vec<u64>,
}

impl Request {
    /// Creates a request. Each parameter is followed by `more` words, which represent the unknown fields of a
    /// newer host.
    pub(super) fn new(params: &[ParamInfo], more: usize) -> Self {
        let words = size_of::<HostParam>() / 8 + more;
        let mut array = vec![u64::MAX; words * params.len()];
        for (n, info) in params.iter().enumerate() {
            let param = HostParam {
                struct_size: u32::try_from(words * 8).unwrap_or(u32::MAX),
                ..param(info)
            };
            // SAFETY: the pointer is within the vector and aligned to 8.
            unsafe {
                let at = array.as_mut_ptr().add(n * words);
                at.cast::<HostParam>().write(param);
            }
        }
        Self {
            raw: HostGroupsRequest {
                struct_size: size_of::<HostGroupsRequest>() as u32,
                flags: 0,
                params: array.as_ptr().cast(),
                n_params: params.len(),
                weight_decay: 0.1,
            },
            _params: array,
        }
    }

    pub(super) fn raw(&self) -> &HostGroupsRequest {
        &self.raw
    }
}

fn info(name: &str, shape: &[i64]) -> ParamInfo {
    ParamInfo {
        name: name.to_owned(),
        shape: shape.to_vec(),
        dtype: Dtype::F32,
    }
}

/// Returns the parameters of a GPT-2 with this number of layers. Its head shares the weights of the
/// embedding, which are listed once.
pub(super) fn gpt2(layers: usize) -> Vec<ParamInfo> {
    let mut params = vec![
        info("transformer.wte.weight", &[50257, 64]),
        info("transformer.wpe.weight", &[128, 64]),
    ];
    for layer in 0..layers {
        for (name, shape) in [
            ("ln_1.weight", &[64][..]),
            ("ln_1.bias", &[64]),
            ("attn.c_attn.weight", &[64, 192]),
            ("attn.c_attn.bias", &[192]),
            ("attn.c_proj.weight", &[64, 64]),
            ("attn.c_proj.bias", &[64]),
            ("ln_2.weight", &[64]),
            ("ln_2.bias", &[64]),
            ("mlp.c_fc.weight", &[64, 256]),
            ("mlp.c_fc.bias", &[256]),
            ("mlp.c_proj.weight", &[256, 64]),
            ("mlp.c_proj.bias", &[64]),
        ] {
            params.push(info(&format!("transformer.h.{layer}.{name}"), shape));
        }
    }
    params.push(info("transformer.ln_f.weight", &[64]));
    params.push(info("transformer.ln_f.bias", &[64]));
    params
}

fn odd_names() -> Vec<ParamInfo> {
    let long = "x.".repeat(2000);
    [
        "w",
        "重み.0.バイアス",
        "веса/bias weight",
        "a\tb\"c\\d%s%n",
        "ünïcödé.ln_1.weight",
        "🦀",
        ".",
        "weight ",
        " weight",
        &long,
    ]
    .map(|name| info(name, &[4, 4]))
    .to_vec()
}

fn zero_dim() -> Vec<ParamInfo> {
    vec![
        info("scale", &[]),
        info("transformer.h.0.gate", &[]),
        info("transformer.wte.weight", &[5, 4]),
        info("nothing", &[0, 4]),
    ]
}

const ONCE: &str = "every parameter is in exactly one group, and weight decay and multiplier are finite and not negative";

fn grouped(setup: &Setup, params: &[ParamInfo], given: &str) -> Verdict {
    let subject = Subject::load(setup)?;
    groups_of(&subject, params, 0, given).map(drop)
}

/// Groups the parameters and checks the groups.
fn groups_of(
    subject: &Subject,
    params: &[ParamInfo],
    more: usize,
    given: &str,
) -> Result<Vec<ParamGroup>, Stop> {
    let request = Request::new(params, more);
    let groups = subject.grouper()?.group(request.raw(), params, given)?;
    check_groups("under test", params, &groups).map_err(|error| {
        fault(
            format!("returned invalid groups, given {given}: {}", error.message()),
            ONCE,
            "call assign exactly once for each index of the request, also for parameters that match no pattern",
        )
    })?;
    Ok(groups)
}

/// Returns a map from each parameter's name to the name, weight decay and multiplier of its group.
fn fate(params: &[ParamInfo], groups: &[ParamGroup]) -> BTreeMap<String, (String, [u64; 2])> {
    let mut fate = BTreeMap::new();
    for group in groups {
        for &at in &group.params {
            let numbers = [group.weight_decay, group.lr_multiplier].map(f64::to_bits);
            fate.insert(params[at].name.clone(), (group.name.clone(), numbers));
        }
    }
    fate
}

fn expect_same_fate(
    one: (&[ParamInfo], &[ParamGroup]),
    other: (&[ParamInfo], &[ParamGroup]),
    when: &str,
    expected: &str,
    fix: &str,
) -> Verdict {
    let (one, other) = (fate(one.0, one.1), fate(other.0, other.1));
    match one
        .iter()
        .find(|(name, fate)| other.get(*name) != Some(fate))
    {
        None => Ok(()),
        Some((name, (group, _))) => {
            let now = other.get(name).map_or("none", |(group, _)| group);
            let did = match now == group {
                true => format!(
                    "returned a different weight decay or learning-rate multiplier for the group {group:?} {when}"
                ),
                false => format!("put {name} into {group:?}, but into {now:?} {when}"),
            };
            Err(fault(did, expected, fix))
        }
    }
}

fn groups_empty_list(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let request = Request::new(&[], 0);
    let grouper = subject.grouper()?;
    match tolerate(grouper.group(request.raw(), &[], "no parameters"))? {
        Ok(_) => Ok(()),
        Err(failure) => has_reason(&failure),
    }
}

fn groups_order(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let params = gpt2(2);
    let groups = groups_of(&subject, &params, 0, "a GPT-2's parameters")?;
    let mut random = setup.random();
    for _ in 0..5 {
        let mut shuffled = params.clone();
        random.shuffle(&mut shuffled);
        let others = groups_of(
            &subject,
            &shuffled,
            0,
            "a GPT-2's parameters in another order",
        )?;
        expect_same_fate(
            (&params, &groups),
            (&shuffled, &others),
            "when the list had another order",
            "the result does not depend on the order of the parameters",
            "decide by the parameter's name and shape, not by its position",
        )?;
    }
    Ok(())
}

fn groups_repeat(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let params = gpt2(2);
    let grouper = subject.grouper()?;
    let request = Request::new(&params, 0);
    let given = "a GPT-2's parameters";
    let groups = grouper.group(request.raw(), &params, given)?;
    // Between the two equal requests, the plugin groups another model.
    let others = odd_names();
    let other = Request::new(&others, 0);
    tolerate(grouper.group(other.raw(), &others, "another model's parameters"))?.ok();
    let again = grouper.group(request.raw(), &params, "the same parameters again")?;
    expect_same_fate(
        (&params, &groups),
        (&params, &again),
        "in the second call",
        "the same request gives the same groups",
        "keep no state between calls",
    )
}

fn newer_host_params(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let params = gpt2(2);
    let groups = groups_of(&subject, &params, 0, "a GPT-2's parameters")?;
    let newer = groups_of(&subject, &params, 3, "the parameters of a newer host")?;
    expect_same_fate(
        (&params, &groups),
        (&params, &newer),
        "when each struct was larger",
        "the next parameter is struct_size bytes after the previous parameter",
        "advance by param->struct_size instead of indexing",
    )
}
