//! Deliveries: whole, the same twice, ended when asked, and again after a death.

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
/// Size of the weights in bytes: small, and large enough to be met in the middle.
const SMALL: usize = 4 << 10;
const LARGE: usize = 8 << 20;
/// How often a delivery that failed for a reason that may pass is tried.
const TRIES: usize = 3;
/// At which parts of a delivery it is interrupted.
const MOMENTS: [f64; 4] = [0.05, 0.3, 0.6, 0.9];

pub(super) const TESTS: &[Test] = &[
    TOPIC.test(
        "publish",
        "a checkpoint is delivered, and the receipt is a JSON object",
        publish,
    ),
    TOPIC.test(
        "publish-repeats",
        "delivering the same again succeeds and changes nothing",
        publish_repeats,
    ),
    TOPIC.test(
        "checkpoint-unmodified",
        "the checkpoint's folder stays as it is, byte for byte",
        checkpoint_unmodified,
    ),
    TOPIC.test(
        "absent-checkpoint",
        "a checkpoint that is not there is an error",
        absent_checkpoint,
    ),
    TOPIC.test(
        "idle-cancel",
        "a cancel while nothing is published keeps nothing from being published",
        idle_cancel,
    ),
    TOPIC.test(
        "cancel",
        "a delivery ends soon after it is cancelled, and the next one succeeds",
        cancel,
    ),
    TOPIC.test(
        "killed-publish",
        "a delivery that was killed is made good by the next",
        killed_publish,
    ),
    TOPIC.test(
        "preflight",
        "a question before the first step is answered, delivers nothing, and keeps nothing from being delivered",
        preflight,
    ),
    TOPIC.test(
        "preflight-refusal",
        "a checkpoint larger than any disk is refused with a reason, or taken for one that fits",
        preflight_refusal,
    ),
    TOPIC.test(
        "fetch",
        "what is brought back is what was delivered, in a folder within the sink's own, and twice the same",
        fetch,
    ),
    TOPIC.test(
        "absent-fetch",
        "a revision that the destination does not have is an error with a reason",
        absent_fetch,
    ),
];

/// A checkpoint in a run's folder, and the sink's own folder beside it.
struct Delivery {
    dir: PathBuf,
    state_dir: PathBuf,
    manifest: String,
}

impl Delivery {
    /// Writes one below the test's scratch folder.
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

    /// The folder that a checkpoint was brought back into.
    fn fetch(
        &self,
        sink: &Sink,
        revision: &str,
        given: &str,
    ) -> Result<Result<PathBuf, Failure>, Stop> {
        let state_dir = self.state_dir.to_string_lossy().into_owned();
        let fetch = HostFetch {
            struct_size: size_of::<HostFetch>() as u32,
            // What only a resume needs is a sink's to leave behind.
            flags: 0,
            revision: HostStr::new(revision),
            state_dir: HostStr::new(&state_dir),
        };
        match sink.fetch(&fetch, &self.state_dir, given) {
            None => skip("the sink has no fetch"),
            Some(Err(failure)) if failure.status() == HOST_UNSUPPORTED => {
                skip("the sink brings nothing back")
            }
            Some(outcome) => Ok(outcome),
        }
    }

    /// How long it takes with nothing in the way.
    fn timed(&self, sink: &Sink) -> Result<Duration, Stop> {
        let start = Instant::now();
        self.publish(sink, "a checkpoint of 8 MiB")?;
        Ok(start.elapsed())
    }

    /// What the host does with a failure that may pass, such as what an interrupted delivery left in
    /// the way: it tries again.
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

/// Every file below a folder with the digest of its bytes, and every folder.
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

/// The first path in which two trees differ, and how.
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
        .map(|(path, _)| format!("{} has other bytes", path.display()));
    gone.or(new).or(other)
}

fn publish(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let delivery = Delivery::write(setup, SMALL)?;
    let receipt = delivery.publish(&subject.sink()?, "a small checkpoint")?;
    let expected = "the receipt is a JSON object with the checkpoint's place: {\"path\": …}";
    let fix = "put what lets a person find it by put_bytes";
    match receipt.map(host_plugin::raw::receipt) {
        Some(Ok(receipt)) if receipt.0 != "{}" => Ok(()),
        Some(Ok(_)) => Err(fault("gave an empty receipt", expected, fix)),
        Some(Err(reason)) => Err(fault(format!("did wrong: {reason}"), expected, fix)),
        None => Err(fault("gave no receipt", expected, fix)),
    }
}

/// A receipt for people.
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
            "delivering the same again changes nothing: after a crash the host does not know how far \
             it came",
            "look first whether it is there, whole; name things by step and run, not by time or count",
        )
    };
    let receipt = delivery.publish(&sink, "a small checkpoint")?;
    // The destination if it is known; what is in the sink's own folder may change, but not grow.
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
                "left more in state_dir, given {given}: {path} is new"
            )));
        }
        if again != receipt {
            return Err(wrong(format!(
                "gave the receipt {}, given {given}, and {} before",
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
            "copy what is to be changed to state_dir",
        )),
    }
}

fn absent_checkpoint(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    let delivery = Delivery::write(setup, SMALL)?;
    fs::remove_dir_all(&delivery.dir).map_err(|error| cannot("remove a folder", &error))?;
    let given = "a checkpoint whose folder is not there";
    match tolerate(delivery.publish(&subject.sink()?, given))? {
        Err(failure) => has_reason(&failure),
        Ok(receipt) => Err(fault(
            format!(
                "gave the receipt {}, given {given}",
                shown(receipt.as_deref())
            ),
            "a receipt means that the whole checkpoint arrived",
            "read the files that manifest_json names, and return an error if one is not there",
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
    match delivery.publish(&sink, "a checkpoint after an idle cancel") {
        Ok(_) => Ok(()),
        Err(failure) => Err(fault(
            failure.words(),
            "cancel is for the publish that is running, if any",
            "forget about an earlier cancel when publish begins",
        )),
    }
}

fn cancel(setup: &Setup) -> Verdict {
    // A part of the time that the test has: there are several moments.
    let limit = setup.time_limit / 4;
    let undisturbed = part(setup, "undisturbed")?;
    let sink = Subject::load(&undisturbed)?.sink()?;
    let took = Delivery::write(&undisturbed, LARGE)?.timed(&sink)?;
    for (n, moment) in MOMENTS.into_iter().enumerate() {
        let setup = part(setup, &format!("cancelled-{n}"))?;
        let delivery = Delivery::write(&setup, LARGE)?;
        // A sink that is not destroyed before the thread in it has returned.
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
                    "the publish that is running ends soon after cancel, with HOST_CANCELLED",
                    "ask an atomic flag between two pieces of the work, and before every wait",
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
                    "a publish that was cancelled ends with HOST_CANCELLED, or well",
                    "return HOST_CANCELLED where the flag is seen",
                ));
            }
        }
        delivery.publish_with_patience(&sink, "the same checkpoint after a cancel")?;
    }
    Ok(())
}

fn killed_publish(setup: &Setup) -> Verdict {
    // How long an undisturbed one takes. Its process is another than those that are killed.
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
        let after =
            format!("the same checkpoint, whose delivery was killed after {moment} of its time");
        in_child(&setup, |sink| {
            match delivery.publish_with_patience(sink, &after) {
                Ok(()) => Ok(()),
                Err(failure) => Err(fault(
                    failure.words(),
                    "a delivery that was killed is made good by the next one",
                    "lock by flock, which the kernel releases, not by a file; write to a partial \
                     place, then rename",
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
            "preflight looks, and writes to its destination and to state_dir alone",
            "leave the checkpoints to publish",
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
    let receipt = delivery.publish(&sink, "a checkpoint to be fetched")?;
    let receipt: Option<serde_json::Value> =
        receipt.and_then(|receipt| serde_json::from_slice(&receipt).ok());
    let commit = receipt
        .as_ref()
        .and_then(|receipt| receipt["commit"].as_str());
    let (revision, given) = (commit.unwrap_or_default(), "what was just delivered");
    let folder = delivery.fetch(&sink, revision, given)??;
    let (delivered, brought) = (tree(&delivery.dir), tree(&folder));
    let weights = Path::new("model.safetensors");
    let is_other = |(name, digest): &(&PathBuf, &String)| {
        delivered.get(*name).is_some_and(|before| before != *digest)
    };
    let wrong = match brought.iter().find(is_other) {
        Some((name, _)) => Some(format!("{} is not as it was delivered", name.display())),
        None if !brought.contains_key(weights) => Some("there is no model.safetensors".to_owned()),
        None => None,
    };
    if let Some(wrong) = wrong {
        return Err(fault(
            format!("brought something else back: {wrong}"),
            "what fetch brings back is what publish delivered, whole",
            "write to a partial place, verify, then rename",
        ));
    }
    let again = delivery.fetch(&sink, revision, "the same once more")??;
    match changed(&brought, &tree(&folder)) {
        None if again == folder => Ok(()),
        difference => Err(fault(
            match difference {
                Some(difference) => format!("changed what it had brought back: {difference}"),
                None => format!("brought the same into another folder: {}", again.display()),
            },
            "fetching the same again changes nothing: the host may still read it",
            "name the folder by what is in it, and leave one that is there",
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
            format!("brought back {}, given {given}", folder.display()),
            "a revision that the destination does not have is an error",
            "look for the revision, and return an error if it is not there",
        )),
    }
}

/// A scratch folder below the test's own.
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

/// Begins a delivery in a child and kills it so long after.
fn kill_during(setup: &Setup, delivery: &Delivery, moment: Duration) -> Verdict {
    let (mut begun, mut begins) = io::pipe().map_err(|error| cannot("make a pipe", &error))?;
    stage("publish in a child that is to be killed");
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
    // Returns at its death, too.
    let _ = begun.read(&mut [0]);
    std::thread::sleep(moment);
    child.kill();
    child
        .join()
        .map_err(|error| cannot("wait for a process", &error))
}
