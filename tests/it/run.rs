//! A whole run, and the files that it leaves.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use test_hub::{TestHub, WRITE_TOKEN};

use crate::support::{
    Home, Output, assert_complete, bare_repository, events_of, files_of, git, git_bytes,
    manifest_of, sha256,
};

const STEPS: [u64; 4] = [5, 10, 15, 20];

/// Trains with four shipped plugins. The argument `hub_git` contains the settings of the plugin `hub-git`.
fn train_with_all(home: &Home, name: &str, hub_git: &str) -> Output {
    let local_disk = format!("local-disk:dir={},keep=2", home.text_path("kept"));
    let hub_git = format!("hub-git:{hub_git}");
    let plugins = ["weight-decay", "perplexity", &local_disk, &hub_git];
    let flags = plugins.iter().flat_map(|plugin| ["--plugin", *plugin]);
    let flags: Vec<&str> = flags.chain(["--json"]).collect();
    home.train(name, &flags)
}

#[test]
fn every_sink_gets_every_checkpoint() {
    let home = Home::new();
    let remote = bare_repository(&home);
    let repo = format!("repo=file://{}", remote.display());
    let output = train_with_all(&home, "whole", &repo).succeeded();

    assert_eq!(home.checkpoints("whole"), STEPS);
    for step in STEPS {
        assert_complete(&home.checkpoint("whole", step));
    }
    let kept = home.path("kept/whole");
    assert_eq!(checkpoint_folders(&kept), ["step-000015", "step-000020"]);
    for step in [15, 20] {
        let copy = files_of(&kept.join(format!("step-{step:06}")));
        assert_eq!(copy, files_of(&home.checkpoint("whole", step)));
    }
    assert_pushed(&home, &remote, "whole");

    assert!(!home.run_dir("whole").join("grpc.addr").exists());
    for sink in ["local-disk", "hub-git"] {
        let state_of = |step| {
            let states = output.events().into_iter().filter(|event| {
                event["kind"] == "delivery" && event["sink"] == sink && event["checkpoint"] == step
            });
            states.map(|event| event["state"].clone()).collect()
        };
        for step in STEPS {
            let states: Vec<Value> = state_of(step);
            assert_eq!(states, ["queued", "sending", "delivered"], "{output}");
        }
    }
}

fn checkpoint_folders(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string());
    let mut names: Vec<String> = names.map(|name| name.expect("UTF-8")).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    names
}

/// The best checkpoint is kept in addition to the newest one, even after a resume. With hard links, the
/// sink's files have the same inodes as the run's.
#[test]
fn the_best_checkpoint_is_kept_however_old_it_is() {
    let home = Home::new();
    let kept = home.text_path("kept");
    // Here, the best loss is the largest one. Since the loss falls, an old checkpoint must be kept.
    let sink = format!("local-disk:dir={kept},link=hard,keep=1,keep_best=1,greater_is_better=true");
    let more = ["--plugin", &*sink, "--json", "--max-train-steps", "10"];
    let more = [&more[..], &["--lr-scheduler-type", "constant"]].concat();
    let mut events = home.train("best", &more).succeeded().events();
    let more = ["resume", "best", "--json", "--max-train-steps", "20"];
    events.extend(home.host(&more).succeeded().events());

    let losses = events.iter().filter_map(|event| {
        let loss = event["values"]["loss/eval"].as_f64()?;
        Some((event["step"].as_u64()?, loss))
    });
    let losses: BTreeMap<u64, f64> = losses.filter(|(step, _)| STEPS.contains(step)).collect();
    assert!(losses.keys().eq(&STEPS), "{losses:?}");
    let best = losses.iter().max_by(|a, b| a.1.total_cmp(b.1));
    let (&best, _) = best.expect("losses");
    assert!(best < 20, "{losses:?}");
    let kept = home.path("kept/best");
    let names = [best, 20].map(|step| format!("step-{step:06}"));
    assert_eq!(checkpoint_folders(&kept), names);
    for step in [best, 20] {
        let (copy, own) = (
            kept.join(format!("step-{step:06}")),
            home.checkpoint("best", step),
        );
        assert_eq!(files_of(&copy), files_of(&own));
        let inode = |folder: &Path| {
            let file = fs::metadata(folder.join("model.safetensors"));
            file.expect("there").ino()
        };
        assert_eq!(inode(&copy), inode(&own));
    }
    let delivered = events
        .iter()
        .rfind(|event| event["kind"] == "delivery" && event["state"] == "delivered")
        .expect("a delivery");
    let receipt = delivered["detail"].as_str().expect("a receipt");
    assert!(receipt.contains(r#""link":"hard""#), "{delivered}");
}

/// Asserts that the remote's only branch has the run's name, and has one commit for each checkpoint. Asserts
/// that each commit contains the checkpoint's files without the trainer's files.
fn assert_pushed(home: &Home, remote: &Path, run: &str) {
    let branches = git(remote, &["branch", "--format=%(refname:short)"]);
    assert_eq!(branches.trim(), run);
    let clone = home.path("clone");
    let (from, to) = (remote.to_str().expect("UTF-8"), home.text_path("clone"));
    git(
        &home.path(""),
        &["clone", "--quiet", "--branch", run, from, &to],
    );
    let log = git(&clone, &["log", "--reverse", "--format=%s"]);
    let expected = STEPS.map(|step| format!("step {step}"));
    assert_eq!(log.lines().collect::<Vec<_>>(), expected);
    for step in STEPS {
        let commit = format!("HEAD~{}", (20 - step) / 5);
        for (file, hash) in published(&home.checkpoint(run, step)) {
            let blob = git_bytes(&clone, &["cat-file", "blob", &format!("{commit}:{file}")]);
            assert_eq!(sha256(&blob), hash, "{file} at step {step}");
        }
    }
    let checked_out = files_of(&clone);
    assert!(!checked_out.keys().any(|file| file.starts_with("trainer/")));
    let readme = fs::read_to_string(clone.join("README.md")).expect("a model card");
    assert!(readme.contains("perplexity"), "{readme}");
}

/// Returns the files of a checkpoint that are pushed to a hub, with their SHA-256.
fn published(checkpoint: &Path) -> BTreeMap<String, String> {
    let files = manifest_of(checkpoint).files.into_iter();
    let files = files.filter(|(name, _)| !name.starts_with("trainer/"));
    files.map(|(name, file)| (name, file.sha256)).collect()
}

#[test]
fn the_hub_gets_small_files_by_git_and_weights_by_lfs() {
    let home = Home::new();
    let hub = TestHub::start();
    let attributes = (
        ".gitattributes",
        "*.7z filter=lfs diff=lfs merge=lfs -text\n",
    );
    let remote = hub.create_repo("ann/model", &[attributes]);
    let env = [("HF_ENDPOINT", hub.url()), ("HF_TOKEN", WRITE_TOKEN)];
    let plugins = [
        "--plugin",
        "perplexity",
        "--plugin",
        "hub-git:repo=ann/model",
    ];
    let run = ["run", "tiny.toml", "--name", "hub", "--json"];
    let output = home
        .host_with(&env, &[&run[..], &plugins].concat())
        .succeeded();

    let log = git(&remote, &["log", "--format=%s", "hub"]);
    let newest: Vec<&str> = log.lines().take(4).collect();
    assert_eq!(newest, ["step 20", "step 15", "step 10", "step 5"]);
    for (age, step) in [20, 15, 10, 5].into_iter().enumerate() {
        for (file, hash) in published(&home.checkpoint("hub", step)) {
            let blob = git_bytes(&remote, &["cat-file", "blob", &format!("hub~{age}:{file}")]);
            if file == "model.safetensors" {
                let (oid, _) = test_hub::parse_pointer(&blob).expect("a pointer");
                assert_eq!(oid, hash);
                let object = fs::read(hub.lfs_object("ann/model", &oid)).expect("an object");
                assert_eq!(sha256(&object), hash);
            } else {
                assert_eq!(sha256(&blob), hash, "{file} at step {step}");
            }
        }
    }
    assert_eq!(
        git(&remote, &["log", "--format=%s", "main"]).trim(),
        "initial commit"
    );

    // The token is neither in the output nor in a file.
    assert!(!format!("{output}").contains(WRITE_TOKEN));
    assert_absent(&home.path(""), WRITE_TOKEN);
}

#[test]
fn a_plain_git_server_gets_plain_files() {
    let home = Home::new();
    let hub = TestHub::start();
    let remote = hub.create_repo("ann/plain", &[]);
    let hub_git = format!(
        "hub-git:repo={},branch=b,token_env=MINE",
        hub.repo_url("ann/plain")
    );
    let run = ["run", "tiny.toml", "--name", "plain", "--plugin", &hub_git];
    home.host_with(&[("MINE", WRITE_TOKEN)], &run).succeeded();
    for (file, hash) in published(&home.checkpoint("plain", 20)) {
        let blob = git_bytes(&remote, &["cat-file", "blob", &format!("b:{file}")]);
        assert_eq!(sha256(&blob), hash, "{file}");
    }
    assert_absent(&home.path(""), WRITE_TOKEN);
}

/// Asserts that no file below the folder contains this text.
fn assert_absent(folder: &Path, text: &str) {
    for file in files_of(folder).keys() {
        let bytes = fs::read(folder.join(file)).expect("a file");
        let found = bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes());
        assert!(!found, "{file}");
    }
}

#[test]
fn a_checkpoint_has_the_format_that_transformers_reads() {
    let home = Home::new();
    home.train("weights", &[]).succeeded();
    let checkpoint = home.checkpoint("weights", 20);
    let json = |file: &str| -> Value {
        let text = fs::read(checkpoint.join(file)).expect("a file");
        serde_json::from_slice(&text).expect("JSON")
    };
    let config = json("config.json");
    assert_eq!(config["architectures"], json!(["GPT2LMHeadModel"]));
    let rows = config["vocab_size"].as_u64().expect("a number") as usize;
    let vocabulary = json("tokenizer.json")["model"]["vocab"].clone();
    assert_eq!(vocabulary.as_object().expect("a vocabulary").len(), rows);

    let bytes = fs::read(checkpoint.join("model.safetensors")).expect("weights");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
    let notes = header.metadata().clone().expect("notes");
    assert_eq!(notes, [("format".to_owned(), "pt".to_owned())].into());
    let weights = SafeTensors::deserialize(&bytes).expect("weights");
    let found: BTreeMap<String, Vec<usize>> = weights
        .iter()
        .map(|(name, tensor)| {
            assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
            (name.to_owned(), tensor.shape().to_owned())
        })
        .collect();
    // The head shares the matrix of the token embedding, so the file has no separate matrix for the head.
    assert_eq!(found, tiny_parameters(rows));
}

/// Returns the parameters of a GPT-2 with two layers of width 64. The names and shapes are as in
/// transformers.
fn tiny_parameters(rows: usize) -> BTreeMap<String, Vec<usize>> {
    let mut parameters = BTreeMap::new();
    let mut add = |name: &str, shape: &[usize]| {
        parameters.insert(format!("transformer.{name}"), shape.to_owned());
    };
    add("wte.weight", &[rows, 64]);
    add("wpe.weight", &[128, 64]);
    let mut layer = |name: &str, weight: &[usize]| {
        add(&format!("{name}.weight"), weight);
        add(&format!("{name}.bias"), &weight[weight.len() - 1..]);
    };
    for block in ["h.0", "h.1"] {
        layer(&format!("{block}.ln_1"), &[64]);
        layer(&format!("{block}.attn.c_attn"), &[64, 192]);
        layer(&format!("{block}.attn.c_proj"), &[64, 64]);
        layer(&format!("{block}.ln_2"), &[64]);
        layer(&format!("{block}.mlp.c_fc"), &[64, 256]);
        layer(&format!("{block}.mlp.c_proj"), &[256, 64]);
    }
    layer("ln_f", &[64]);
    parameters
}

#[test]
fn runs_show_and_runs_list_agree_with_the_events() {
    let home = Home::new();
    let output = home
        .train("shown", &["--plugin", "perplexity", "--json"])
        .succeeded();
    let events = output.events();
    let last = events.last().expect("events");
    assert_eq!(
        (&last["kind"], &last["reason"]),
        (&json!("run_finished"), &json!("completed"))
    );
    assert_eq!(events.len(), events_of(&home.run_dir("shown")).len());

    let shown = home
        .host(&["runs", "show", "shown", "--json"])
        .succeeded()
        .json();
    assert_eq!(
        (&shown["name"], &shown["status"]),
        (&json!("shown"), &json!("completed"))
    );
    assert_eq!(
        (&shown["last_seq"], &shown["last_step"]),
        (&last["seq"], &json!(20))
    );
    let written = events
        .iter()
        .filter(|event| event["kind"] == "checkpoint_written");
    let written: Vec<Value> = written
        .map(|event| json!({ "name": event["name"], "bytes": event["bytes"], "stands": true }))
        .collect();
    assert_eq!(shown["checkpoints"], json!(written));
    assert_eq!(written.len(), 4);
    for metric in shown["metrics"].as_array().expect("metrics") {
        let name = metric["name"].as_str().expect("a name");
        let points = events
            .iter()
            .filter(|event| !event["values"][name].is_null());
        let points: Vec<&Value> = points.collect();
        assert_eq!(metric["points"], points.len(), "{name}");
        let newest = points.last().expect("a point");
        assert_eq!(metric["value"], newest["values"][name], "{name}");
        assert_eq!(metric["step"], newest["step"], "{name}");
    }
    let points = |name: &str| {
        let metrics = shown["metrics"].as_array().expect("metrics");
        let metric = metrics.iter().find(|metric| metric["name"] == name);
        metric.unwrap_or_else(|| panic!("no {name}"))["points"].clone()
    };
    for every_step in ["loss/train", "lr", "samples", "steps"] {
        assert_eq!(points(every_step), 20);
    }
    for every_evaluation in ["loss/eval", "perplexity"] {
        assert_eq!(points(every_evaluation), 4);
    }

    let listed = home.host(&["runs", "list", "--json"]).succeeded().json();
    let listed = listed.as_array().expect("a list");
    assert_eq!(listed.len(), 1);
    for (key, value) in listed[0].as_object().expect("a run") {
        assert_eq!(&shown[key], value, "{key}");
    }
}

#[test]
fn run_toml_records_the_configuration_and_reproduces_the_training() {
    let home = Home::new();
    let (metric, seed) = (["--plugin", "perplexity"], ["--seed", "7"]);
    home.train("first", &[metric, seed].concat()).succeeded();
    let file = home.run_dir("first").join("run.toml");
    let text = fs::read_to_string(&file).expect("run.toml");
    let table: toml::Table = text.parse().expect("TOML");
    let said = |key: &str| table[key].clone();
    assert_eq!(said("seed"), 7.into());
    assert_eq!(said("max_train_steps"), 20.into());
    assert_eq!(said("weight_decay"), 0.1.into());
    assert_eq!(said("name"), "first".into());
    let data = home.text_path("data");
    assert_eq!(said("data"), toml::Value::Array(vec![data.into()]));

    // The plugin `weight-decay` is recorded too, although the command does not name it.
    let recorded = table["record"]["plugin"].as_array().expect("plugins");
    let ids: Vec<_> = recorded
        .iter()
        .map(|plugin| plugin["id"].as_str())
        .collect();
    assert_eq!(ids, [Some("perplexity"), Some("weight-decay")]);
    for plugin in recorded {
        let path = plugin["path"].as_str().expect("a path");
        let hash = sha256(&fs::read(path).expect("the library"));
        assert_eq!(plugin["sha256"].as_str(), Some(hash.as_str()));
        assert_eq!(plugin["version"].as_str(), Some(env!("CARGO_PKG_VERSION")));
    }

    let again = file.to_str().expect("UTF-8");
    home.host(&["run", again, "--name", "second"]).succeeded();
    let manifests = ["first", "second"].map(|run| manifest_of(&home.checkpoint(run, 20)));
    assert_eq!(manifests[0], manifests[1]);
}

#[test]
fn keep_checkpoints_keeps_only_the_newest() {
    let home = Home::new();
    home.train("pruned", &["--keep-checkpoints", "2"])
        .succeeded();
    assert_eq!(home.checkpoints("pruned"), [15, 20]);
}

#[test]
fn the_baselines_and_a_first_evaluation_are_recorded_before_the_first_step() {
    let home = Home::new();
    let flags = ["--eval-on-start", "--ngram-baselines", "--json"];
    let events = home.train("judged", &flags).succeeded().events();
    let at_the_start = |name: &str| {
        let mut events = events.iter();
        let event = events.find(|event| !event["values"][name].is_null());
        let event = event.unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(event["step"], 0, "{name}");
        event["values"][name].as_f64().expect("a number")
    };
    let unigram = at_the_start("baseline/unigram_perplexity");
    let bigram = at_the_start("baseline/bigram_perplexity");
    assert!(1.0 < bigram && bigram < unigram, "{bigram} {unigram}");
    // An untrained model is about as good as guessing among about 300 tokens.
    let loss = at_the_start("loss/eval");
    assert!((5.0..6.5).contains(&loss), "{loss}");
}

#[test]
fn without_plugins_there_are_groups_a_loss_and_checkpoints() {
    let home = Home::new();
    let output = home.train("bare", &["--json"]).succeeded();
    let line = "no checkpoint sink: checkpoints stay in the run folder";
    assert!(output.stderr.lines().any(|said| said == line), "{output}");
    let is_default = |line: &str| {
        line.starts_with("plugin weight-decay ")
            && line.ends_with(": parameter groups (the default)")
    };
    assert!(output.stderr.lines().any(is_default), "{output}");
    let events = output.events();
    let evaluated = |name: &str| events.iter().any(|event| !event["values"][name].is_null());
    assert!(evaluated("loss/eval"));
    assert!(!evaluated("perplexity"));
    assert!(!events.iter().any(|event| event["kind"] == "delivery"));
    assert_eq!(home.checkpoints("bare"), STEPS);
}

#[test]
fn generate_continues_a_prompt_the_same_way_each_time() {
    let home = Home::new();
    home.train("writer", &[]).succeeded();
    let sample = |seed: &str| {
        let args = [
            "generate",
            "writer",
            "--prompt",
            "fn f_1(",
            "--max-new-tokens",
            "24",
        ];
        let args = [&args[..], &["--device", "cpu", "--seed", seed]].concat();
        home.host(&args).succeeded().stdout
    };
    let text = sample("1");
    assert!(text.starts_with("fn f_1("), "{text}");
    assert!(text.trim_end().len() > "fn f_1(".len() + 10, "{text}");
    assert_eq!(text, sample("1"));
    assert_ne!(text, sample("2"));
}
