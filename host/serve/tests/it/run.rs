//! A run for the tests: a store with a writer thread.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use host_core::{Emitter, EventBody, MetricValue, RequestQueue, Requests, Step, StopReason};
use host_serve::{Client, Server, Serving, Source};
use host_store::{Callbacks, Commits, RunRecord, Writer, WriterThread};
use tempfile::TempDir;

pub(crate) struct Run {
    pub(crate) runs_dir: TempDir,
    pub(crate) emitter: Emitter,
    pub(crate) thread: WriterThread,
    pub(crate) queue: RequestQueue,
    /// The training loop's side of the request queue.
    pub(crate) requests: Option<Requests>,
    over: Arc<AtomicBool>,
    playing: Option<JoinHandle<()>>,
}

pub(crate) const NAME: &str = "demo";

impl Run {
    pub(crate) fn start() -> Self {
        let runs_dir = tempfile::tempdir().expect("a folder");
        let (queue, requests) = RequestQueue::new();
        let (emitter, thread) = write(&runs_dir.path().join(NAME), &queue);
        emitter.emit(Step(0), EventBody::RunStarted { generation: 0 });
        Self {
            runs_dir,
            emitter,
            thread,
            queue,
            requests: Some(requests),
            over: Arc::default(),
            playing: None,
        }
    }

    pub(crate) fn live(&self) -> Source {
        Source::Live {
            run_dir: self.runs_dir.path().join(NAME),
            commits: self.commits(),
            requests: self.queue.clone(),
        }
    }

    pub(crate) fn folder(&self) -> Source {
        Source::Folder(self.runs_dir.path().to_owned())
    }

    pub(crate) fn commits(&self) -> Commits {
        self.thread.commits()
    }

    /// Starts a fake training loop that carries out every request until the run ends.
    pub(crate) fn play_loop(&mut self) {
        let mut requests = self.requests.take().expect("no loop yet");
        let emitter = self.emitter.clone();
        let stop = Arc::clone(&self.over);
        let play = move || {
            while !stop.load(Ordering::SeqCst) {
                requests.wait(Duration::from_millis(20));
                while let Some(asked) = requests.take() {
                    let (by, request, reason) = (asked.by, asked.request, asked.reason);
                    emitter.emit(
                        Step(7),
                        EventBody::Request {
                            by,
                            request,
                            reason,
                        },
                    );
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("loop".to_owned())
            .spawn(play)
            .expect("a thread");
        self.playing = Some(thread);
    }

    /// Emits metrics at these steps.
    pub(crate) fn train(&self, steps: std::ops::Range<u64>) {
        for step in steps {
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let n = step as f64;
            self.emitter.emit(
                Step(step),
                EventBody::Metrics {
                    values: vec![
                        MetricValue::new("loss/train", 1.0 / (n + 1.0)),
                        MetricValue::new("lr", 5e-4),
                    ],
                },
            );
        }
    }

    /// Ends the run normally. The run's folder is removed when the returned value is dropped.
    pub(crate) fn finish(self) -> TempDir {
        self.emitter.emit(
            Step(0),
            EventBody::RunFinished {
                reason: StopReason::Completed,
                message: String::new(),
            },
        );
        self.crash()
    }

    /// Ends the writer without recording the end of the run.
    pub(crate) fn crash(self) -> TempDir {
        self.over.store(true, Ordering::SeqCst);
        if let Some(playing) = self.playing {
            playing.join().expect("no panic");
        }
        drop(self.emitter);
        self.thread.join().expect("all is written");
        self.runs_dir
    }
}

fn write(run_dir: &Path, queue: &RequestQueue) -> (Emitter, WriterThread) {
    let record = RunRecord {
        name: NAME.to_owned(),
        created_us: 1_700_000_000_000_000,
        config_json: r#"{"seed":1}"#.to_owned(),
    };
    let writer = Writer::create(run_dir, &record).expect("a run");
    let (emitter, drafts) = Emitter::new(256);
    let answered = queue.clone();
    let callbacks = Callbacks {
        on_commit: Box::new(move |events| {
            events.iter().for_each(|event| answered.committed(event));
        }),
        ..Callbacks::default()
    };
    let thread = writer.spawn(drafts, callbacks).expect("a thread");
    (emitter, thread)
}

pub(crate) fn serve(source: Source) -> Serving {
    Server::new("127.0.0.1:0".parse().expect("an address"), source)
        .start()
        .expect("a server")
}

pub(crate) fn connect(serving: &Serving) -> Client {
    Client::connect(&serving.addr().to_string()).expect("a client")
}
