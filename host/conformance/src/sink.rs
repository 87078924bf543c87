//! Tests that deliveries are complete, repeatable, cancellable, and recoverable after a crash.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use host_core::hex;
use host_plugin_abi::{
    HOST_CANCELLED, HOST_TEMPORARY, HOST_UNSUPPORTED, HostCheckpoint, HostFetch, HostPreflight,
    HostStr,
};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::child::{Child, cannot, contained, say_and_exit, stage};
use crate::setup::Setup;
use crate::subject::{Failure, Sink, Subject, has_reason, tolerate};
use crate::test::{Stop, Test, Topic, Verdict, fault, skip};
use host_plugin::PluginKind;

const TOPIC: Topic = Topic {
    name: "sink",
    kinds: &[PluginKind::CheckpointSink],
};
/// Two sizes of the weights, in bytes: a small one, and one so large that a test can interrupt the delivery.
const SMALL: usize = 4 << 10;
const LARGE: usize = 8 << 20;
/// Maximum number of attempts for a delivery that fails temporarily.
const TRIES: usize = 3;
/// When to interrupt a delivery, as a fraction of the duration of an undisturbed delivery. Each fraction is
/// tried with a new delivery.
const MOMENTS: [f64; 4] = [0.05, 0.3, 0.6, 0.9];

pub(super) const TESTS: &[Test] = &[
    TOPIC.test(
        "publish",
        "a checkpoint is delivered, and the receipt is a JSON object",
        publish,
    ),
    TOPIC.test(
        "publish-repeats",
        "delivering the same checkpoint again succeeds and changes nothing",
        publish_repeats,
    ),
    TOPIC.test(
        "checkpoint-unmodified",
        "the checkpoint's folder is unchanged, byte for byte",
        checkpoint_unmodified,
    ),
    TOPIC.test(
        "absent-checkpoint",
        "a missing checkpoint is an error",
        absent_checkpoint,
    ),
    TOPIC.test(
        "idle-cancel",
        "a cancel without a running publish does not affect the next publish",
        idle_cancel,
    ),
    TOPIC.test(
        "cancel",
        "a cancelled delivery ends soon, and the next delivery succeeds",
        cancel,
    ),
    TOPIC.test(
        "killed-publish",
        "the delivery after a killed delivery succeeds",
        killed_publish,
    ),
    TOPIC.test(
        "preflight",
        "a preflight succeeds, delivers nothing, and does not prevent a delivery",
        preflight,
    ),
    TOPIC.test(
        "preflight-refusal",
        "a preflight for checkpoints larger than any disk is rejected with a reason, or succeeds",
        preflight_refusal,
    ),
    TOPIC.test(
        "fetch",
        "a fetch, even if repeated, returns the delivered checkpoint in a subfolder of the sink's folder",
        fetch,
    ),
    TOPIC.test(
        "absent-fetch",
        "a fetch of an unknown revision is an error with a reason",
        absent_fetch,
    ),
];

/// A checkpoint in a run's folder, and the sink's own folder.
struct Delivery {
    dir: PathBuf,
    state_dir: PathBuf,
    manifest: String,
}

impl Delivery {
    /// Writes a checkpoint below the test's scratch folder.
    fn write(setup: &Setup, weights: usize) -> Result<Self, Stop> {
        Self::try_write(setup.scratch(), setup.seed, weights)
            .map_err(|error| cannot("write a checkpoint", &error))
    }

    fn try_write(scratch: &Path, seed: u64, weights: usize) -> io::Result<Self> {
        let dir = scratch.join("run/checkpoints/step-000005");
        let state_dir = scratch.join("run/sinks/sink");
        fs::create_dir_all(dir.join("trainer"))?;
        fs::create_dir_all(&state_dir)?;
        let mut bytes = vec![0; weights];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        let config = json!({ "model_type": "gpt2", "n_layer": 1 }).to_string();
        let mut files = serde_json::Map::new();
        for (path, bytes) in [
            ("config.json", config.as_bytes()),
            ("model.safetensors", &bytes),
            ("tokenizer.json", b"{}"),
            ("trainer/state.bin", &bytes[..bytes.len().min(100)]),
        ] {
            fs::write(dir.join(path), bytes)?;
            let entry = json!({ "sha256": hex(&Sha256::digest(bytes)), "size": bytes.len() });
            files.insert(path.to_owned(), entry);
        }
        let manifest = json!({ "files": files }).to_string();
        fs::write(dir.join("manifest.json"), &manifest)?;
        Ok(Self {
            dir,
            state_dir,
            manifest,
        })
    }

    fn publish(&self, sink: &Sink, given: &str) -> Result<Option<Vec<u8>>, Failure> {
        let (dir, state_dir) = (
            self.dir.to_string_lossy().into_owned(),
            self.state_dir.to_string_lossy().into_owned(),
        );
        let checkpoint = HostCheckpoint {
            struct_size: size_of::<HostCheckpoint>() as u32,
            flags: 0,
            step: 5,
            run: HostStr::new("checked"),
            dir: HostStr::new(&dir),
            manifest_json: HostStr::new(&self.manifest),
            metrics_json: HostStr::new(r#"{"loss/eval":2.5,"perplexity":"inf"}"#),
            state_dir: HostStr::new(&state_dir),
        };
        sink.publish(&checkpoint, given)
    }

    fn preflight(
        &self,
        sink: &Sink,
        checkpoint_bytes: u64,
        given: &str,
    ) -> Result<Result<Option<String>, Failure>, Stop> {
        let state_dir = self.state_dir.to_string_lossy().into_owned();
        let preflight = HostPreflight {
            struct_size: size_of::<HostPreflight>() as u32,
            flags: 0,
            run: HostStr::new("checked"),
            state_dir: HostStr::new(&state_dir),
            checkpoint_bytes,
            model_bytes: checkpoint_bytes / 3,
        };
        match sink.preflight(&preflight, given) {
            Some(outcome) => Ok(outcome),
            None => skip("the sink has no preflight"),
        }
    }

    /// Calls `fetch`, and returns the folder of the fetched checkpoint.
    fn fetch(
        &self,
        sink: &Sink,
        revision: &str,
        given: &str,
    ) -> Result<Result<PathBuf, Failure>, Stop> {
        let state_dir = self.state_dir.to_string_lossy().into_owned();
        let fetch = HostFetch {
            struct_size: size_of::<HostFetch>() as u32,
            // Without `HOST_FETCH_FOR_RESUME`, a sink may omit files that only a resume needs.
            flags: 0,
            revision: HostStr::new(revision),
            state_dir: HostStr::new(&state_dir),
        };
        match sink.fetch(&fetch, &self.state_dir, given) {
            None => skip("the sink has no fetch"),
            Some(Err(failure)) if failure.status() == HOST_UNSUPPORTED => {
                skip("the sink cannot fetch")
            }
            Some(outcome) => Ok(outcome),
        }
    }

    /// Returns the duration of an undisturbed delivery.
    fn timed(&self, sink: &Sink) -> Result<Duration, Stop> {
        let start = Instant::now();
        self.publish(sink, "a checkpoint of 8 MiB")?;
        Ok(start.elapsed())
    }

    /// Calls `publish`, and retries after temporary failures, as the host does. For example, files from an
    /// interrupted delivery may block the first attempt.
    fn publish_with_patience(&self, sink: &Sink, given: &str) -> Result<(), Failure> {
        for _ in 1..TRIES {
            match self.publish(sink, given) {
                Err(failure) if failure.status() == HOST_TEMPORARY => {}
                other => return other.map(drop),
            }
        }
        self.publish(sink, given).map(drop)
    }
}

/// Returns all folders and files below a folder, with the SHA-256 of each file's content.
fn tree(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![folder.to_owned()];
    while let Some(next) = left.pop() {
        let Ok(entries) = fs::read_dir(&next) else {
            continue;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.strip_prefix(folder).unwrap_or(&path).to_owned();
            let is_folder = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
            if is_folder {
                found.insert(name, "a folder".to_owned());
                left.push(path);
            } else {
                let bytes = fs::read(&path).unwrap_or_default();
                found.insert(name, hex(&Sha256::digest(&bytes)));
            }
        }
    }
    found
}

/// Returns the first difference between two trees.
fn changed(
    before: &BTreeMap<PathBuf, String>,
    after: &BTreeMap<PathBuf, String>,
) -> Option<String> {
    let gone = before
        .keys()
        .find(|path| !after.contains_key(*path))
        .map(|path| format!("{} was removed", path.display()));
    let new = after
        .keys()
        .find(|path| !before.contains_key(*path))
        .map(|path| format!("{} is new", path.display()));
    let other = before
        .iter()
        .find(|(path, digest)| after.get(*path).is_some_and(|now| now != *digest))
        .map(|(path, _)| format!("{} has different content", path.display()));
    gone.or(new).or(other)
}

fn publish(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let delivery = Delivery::write(setup, SMALL)?;
    let receipt = delivery.publish(&subject.sink()?, "a small checkpoint")?;
    let expected = "the receipt is a JSON object with the checkpoint's location: {\"path\": …}";
    let fix = "call put_bytes with an object that helps a person find the checkpoint";
    match receipt.map(host_plugin::raw::receipt) {
        Some(Ok(receipt)) if receipt.0 != "{}" => Ok(()),
        Some(Ok(_)) => Err(fault("returned an empty receipt", expected, fix)),
        Some(Err(reason)) => Err(fault(
            format!("returned an invalid receipt: {reason}"),
            expected,
            fix,
        )),
        None => Err(fault("returned no receipt", expected, fix)),
    }
}

/// Returns a receipt as text for messages.
fn shown(receipt: Option<&[u8]>) -> String {
    receipt.map_or_else(
        || "none".to_owned(),
        |receipt| String::from_utf8_lossy(receipt).into_owned(),
    )
}

fn publish_repeats(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let delivery = Delivery::write(setup, SMALL)?;
    let sink = subject.sink()?;
    let wrong = |did: String| {
        fault(
            did,
            "delivering the same checkpoint again changes nothing: after a crash the host cannot tell how far the \
             delivery got",
            "first check whether the complete checkpoint exists; name files by step and run, not by time or count",
        )
    };
    let receipt = delivery.publish(&sink, "a small checkpoint")?;
    // A repeated delivery must leave the destination unchanged, if the destination is known. In the sink's
    // own folder, it may change files but must not add any.
    let destination = setup.destination();
    let look = || destination.as_deref().map(tree).unwrap_or_default();
    let (there, kept) = (look(), tree(&delivery.state_dir));
    let other = subject.sink()?;
    for (sink, who) in [(&sink, "the same instance"), (&other, "a new instance")] {
        let given = format!("the same checkpoint again, in {who}");
        let again = delivery
            .publish(sink, &given)
            .map_err(|failure| wrong(failure.words()))?;
        if let Some(change) = changed(&there, &look()) {
            return Err(wrong(format!(
                "changed the destination, given {given}: {change}"
            )));
        }
        let now = tree(&delivery.state_dir);
        if let Some(path) = now.keys().find(|path| !kept.contains_key(*path)) {
            let path = path.display();
            return Err(wrong(format!(
                "left more files in state_dir, given {given}: {path} is new"
            )));
        }
        if again != receipt {
            return Err(wrong(format!(
                "returned the receipt {}, given {given}, but {} before",
                shown(again.as_deref()),
                shown(receipt.as_deref())
            )));
        }
    }
    Ok(())
}

fn checkpoint_unmodified(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let delivery = Delivery::write(setup, SMALL)?;
    let run = setup.scratch().join("run");
    let look = || {
        let mut tree = tree(&run);
        tree.retain(|path, _| !path.starts_with("sinks/sink"));
        tree
    };
    let before = look();
    delivery.publish(&subject.sink()?, "a small checkpoint")?;
    match changed(&before, &look()) {
        None => Ok(()),
        Some(change) => Err(fault(
            format!("changed the run's folder: {change}"),
            "a sink reads the checkpoint, and writes to its destination and to state_dir",
            "copy the files to state_dir before changing them",
        )),
    }
}

fn absent_checkpoint(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let delivery = Delivery::write(setup, SMALL)?;
    fs::remove_dir_all(&delivery.dir).map_err(|error| cannot("remove a folder", &error))?;
    let given = "a checkpoint whose folder is missing";
    match tolerate(delivery.publish(&subject.sink()?, given))? {
        Err(failure) => has_reason(&failure),
        Ok(receipt) => Err(fault(
            format!(
                "returned the receipt {}, given {given}",
                shown(receipt.as_deref())
            ),
            "a receipt means that the whole checkpoint arrived",
            "read the files that manifest_json names, and return an error if one is missing",
        )),
    }
}

fn idle_cancel(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let delivery = Delivery::write(setup, SMALL)?;
    let sink = subject.sink()?;
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("cancel".to_owned())
            .spawn_scoped(scope, || sink.cancel())
            .map(drop)
            .map_err(|error| cannot("start a thread", &error))
    })?;
    match delivery.publish(
        &sink,
        "a checkpoint after a cancel without a running publish",
    ) {
        Ok(_) => Ok(()),
        Err(failure) => Err(fault(
            failure.words(),
            "cancel only affects a running publish",
            "clear an earlier cancel at the start of publish",
        )),
    }
}

fn cancel(setup: &Setup) -> Verdict {
    // Limits each attempt to a part of the test's time.
    let limit = setup.time_limit / 4;
    let undisturbed = part(setup, "undisturbed")?;
    let sink = Subject::load(&undisturbed)?.sink()?;
    let took = Delivery::write(&undisturbed, LARGE)?.timed(&sink)?;
    for (n, moment) in MOMENTS.into_iter().enumerate() {
        let setup = part(setup, &format!("cancelled-{n}"))?;
        let delivery = Delivery::write(&setup, LARGE)?;
        // The sink must not be destroyed before the thread that calls `publish` has returned.
        let sink = Subject::load(&setup)?.sink()?;
        let (tell, told) = mpsc::sync_channel(1);
        let outcome = std::thread::scope(|scope| {
            let delivery = &delivery;
            let sink = &sink;
            let publish = move || {
                let _ = tell.send(delivery.publish(sink, "a checkpoint of 8 MiB, and a cancel"));
            };
            std::thread::Builder::new()
                .name("publish".to_owned())
                .spawn_scoped(scope, publish)
                .map_err(|error| cannot("start a thread", &error))?;
            let wait = took.mul_f64(moment);
            if let Ok(early) = told.recv_timeout(wait) {
                return Ok(early);
            }
            sink.cancel();
            told.recv_timeout(limit).map_err(|_| {
                let did = format!(
                    "was still in publish {:.1} s after cancel",
                    limit.as_secs_f64()
                );
                let stop = fault(
                    did,
                    "a running publish ends soon after cancel, with HOST_CANCELLED",
                    "check an atomic flag between pieces of work and before every wait",
                );
                say_and_exit(stop)
            })
        });
        match outcome? {
            Ok(_) => {}
            Err(failure) if failure.status() == HOST_CANCELLED => {}
            Err(failure) => {
                return Err(fault(
                    failure.words(),
                    "a cancelled publish returns HOST_CANCELLED or succeeds",
                    "return HOST_CANCELLED when the flag is set",
                ));
            }
        }
        delivery.publish_with_patience(&sink, "the same checkpoint after a cancel")?;
    }
    Ok(())
}

fn killed_publish(setup: &Setup) -> Verdict {
    // Measures the duration of an undisturbed delivery. It runs in a separate process, like the deliveries
    // that are killed.
    let undisturbed = part(setup, "undisturbed")?;
    let note = undisturbed.scratch().join("took");
    let delivery = Delivery::write(&undisturbed, LARGE)?;
    in_child(&undisturbed, |sink| {
        let took = delivery.timed(sink)?;
        fs::write(&note, took.as_micros().to_string()).map_err(|error| cannot("write", &error))
    })?;
    let took = fs::read_to_string(&note).map_err(|error| cannot("read", &error))?;
    let took = Duration::from_micros(took.parse().unwrap_or_default());
    for (n, moment) in MOMENTS.into_iter().enumerate() {
        let setup = part(setup, &format!("killed-{n}"))?;
        let delivery = Delivery::write(&setup, LARGE)?;
        kill_during(&setup, &delivery, took.mul_f64(moment))?;
        let after = format!(
            "the same checkpoint, whose delivery was killed after {moment} of its duration"
        );
        in_child(&setup, |sink| {
            match delivery.publish_with_patience(sink, &after) {
                Ok(()) => Ok(()),
                Err(failure) => Err(fault(
                    failure.words(),
                    "the next delivery succeeds after a killed delivery",
                    "lock with flock, which the kernel releases, not with a lock file; write to a temporary \
                     file, then rename it",
                )),
            }
        })?;
    }
    Ok(())
}

fn preflight(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let delivery = Delivery::write(setup, SMALL)?;
    let sink = subject.sink()?;
    let before = tree(&delivery.dir);
    delivery.preflight(&sink, 100 << 10, "a run whose checkpoints take 100 KiB")??;
    if let Some(difference) = changed(&before, &tree(&delivery.dir)) {
        return Err(fault(
            format!("changed the run folder: {difference}"),
            "preflight only checks, and writes only to its destination and to state_dir",
            "deliver checkpoints only in publish",
        ));
    }
    delivery.publish(&sink, "a checkpoint after a preflight")?;
    Ok(())
}

fn preflight_refusal(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let delivery = Delivery::write(setup, SMALL)?;
    let given = "a run whose checkpoints are larger than any disk";
    match tolerate(delivery.preflight(&subject.sink()?, u64::MAX / 2, given)?)? {
        Err(failure) => has_reason(&failure),
        Ok(_) => Ok(()),
    }
}

fn fetch(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let delivery = Delivery::write(setup, SMALL)?;
    let sink = subject.sink()?;
    let receipt = delivery.publish(&sink, "a checkpoint to fetch")?;
    let receipt: Option<serde_json::Value> =
        receipt.and_then(|receipt| serde_json::from_slice(&receipt).ok());
    let commit = receipt
        .as_ref()
        .and_then(|receipt| receipt["commit"].as_str());
    let (revision, given) = (commit.unwrap_or_default(), "the checkpoint just delivered");
    let folder = delivery.fetch(&sink, revision, given)??;
    let (delivered, brought) = (tree(&delivery.dir), tree(&folder));
    let weights = Path::new("model.safetensors");
    let is_other = |(name, digest): &(&PathBuf, &String)| {
        delivered.get(*name).is_some_and(|before| before != *digest)
    };
    let wrong = match brought.iter().find(is_other) {
        Some((name, _)) => Some(format!(
            "{} differs from the delivered file",
            name.display()
        )),
        None if !brought.contains_key(weights) => Some("model.safetensors is missing".to_owned()),
        None => None,
    };
    if let Some(wrong) = wrong {
        return Err(fault(
            format!("fetched something else: {wrong}"),
            "fetch returns the complete checkpoint that publish delivered",
            "write to a temporary folder, verify it, then rename it",
        ));
    }
    let again = delivery.fetch(&sink, revision, "the same checkpoint again")??;
    match changed(&brought, &tree(&folder)) {
        None if again == folder => Ok(()),
        difference => Err(fault(
            match difference {
                Some(difference) => format!("changed the fetched checkpoint: {difference}"),
                None => format!(
                    "fetched the same checkpoint into another folder: {}",
                    again.display()
                ),
            },
            "fetching the same checkpoint again changes nothing: the host may still be reading its folder",
            "derive the folder's name from its content, and keep an existing folder",
        )),
    }
}

fn absent_fetch(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let delivery = Delivery::write(setup, SMALL)?;
    let sink = subject.sink()?;
    delivery.publish(&sink, "a checkpoint")?;
    let given = "a revision that does not exist";
    match tolerate(delivery.fetch(&sink, "no-such-revision", given)?)? {
        Err(failure) => has_reason(&failure),
        Ok(folder) => Err(fault(
            format!("fetched {}, given {given}", folder.display()),
            "an unknown revision is an error",
            "look up the revision, and return an error if it does not exist",
        )),
    }
}

/// Returns a copy of the setup with its own scratch folder, below the test's scratch folder.
fn part(setup: &Setup, name: &str) -> Result<Setup, Stop> {
    setup
        .for_test(name)
        .or_else(|error| super::test::skip(error.message()))
}

fn in_child(setup: &Setup, body: impl FnOnce(&Sink) -> Verdict) -> Verdict {
    let limit = setup.time_limit / 2;
    let ended = contained(limit, || body(&Subject::load(setup)?.sink()?));
    ended
        .map_err(|error| cannot("start a process", &error))?
        .verdict(limit)
}

/// Starts a delivery in a child process, and kills the child when the delivery has run for `moment`.
fn kill_during(setup: &Setup, delivery: &Delivery, moment: Duration) -> Verdict {
    let (mut begun, mut begins) = io::pipe().map_err(|error| cannot("create a pipe", &error))?;
    stage("publish in a child that is killed");
    let child = Child::start(None, || {
        let Ok(sink) = Subject::load(setup).and_then(|subject| subject.sink()) else {
            return;
        };
        let _ = begins.write_all(b"x");
        let _ = delivery.publish(&sink, "a checkpoint of 8 MiB, and a SIGKILL");
        std::mem::forget(sink);
    })
    .map_err(|error| cannot("start a process", &error))?;
    drop(begins);
    // Waits until the child is about to start the delivery. The wait also ends if the child dies.
    let _ = begun.read(&mut [0]);
    std::thread::sleep(moment);
    child.kill();
    child
        .join()
        .map_err(|error| cannot("wait for a process", &error))
}
