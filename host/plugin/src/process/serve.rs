//! The child's side: one instance of one plugin in a separate process.
//!
//! The main thread reads calls from one socket and makes them. The plugin can damage only this process. A
//! second thread waits on another socket for cancellations. It ends this process when that socket closes. The
//! socket closes whenever the host exits or dies.

use std::borrow::Cow;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use host_core::{
    CheckpointDir, CheckpointSink, Device, Error, ErrorKind, Fetch, GroupsRequest, Metric,
    MetricBatch, Observer, ParamGroups, Preflight, Publish, Result, SinkError, TensorView,
};

use super::channel::{ALIGNMENT, Broken, Receiver, Sender};
use super::metric::{contiguous_strides, size_of_element};
use super::protocol::{Call, Fault, Hello, Open, Reply, Said, SinkCall, TensorHead};
use crate::image::Image;
use crate::log::{LogRecord, set_log_by_number};
use crate::secrets::Secret;
use crate::{Plugin, PluginKind};

/// Creates the instance that the host requests, then answers calls until the host ends the session. This is
/// all that `host plugin serve` does. `inherited` lists the descriptors that the host passed to this process.
///
/// # Errors
/// Returns an error if this process was not started by a host. Errors of the plugin are sent to the host
/// instead.
pub fn serve(inherited: &str) -> Result<()> {
    let Inherited {
        calls,
        control,
        image,
    } = Inherited::take(inherited).ok_or_else(|| {
        Error::new(
            ErrorKind::Config,
            "this command is for internal use: it runs a plugin in a child process of the host",
        )
        .hint("use `host run --plugin SPEC` with mode=process")
    })?;
    leave_signals_to_the_host();
    // SAFETY: the name is a zero-terminated string, which the call copies.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"host-plugin".as_ptr()) };
    let said = Speaker::new(&calls)?;
    let cancellation = Arc::<Cancellation>::default();
    watch_host(control, Arc::clone(&cancellation))?;
    // From here on, all errors are reported to the host instead of being returned. If the host is gone, this
    // process exits.
    let mut receiver = Receiver::new(calls, u64::MAX);
    let _ = said.say(&Hello::of_this_host(), &[]);
    let mut open: Open<'_> = match receiver.receive(&mut patient) {
        Ok(open) => open,
        Err(_) => return Ok(()),
    };
    // Setting environment variables is safe here: no code of the plugin is loaded yet, and the other thread
    // only waits on its socket.
    open.secrets.drain(..).for_each(Secret::set);
    let speaker = said.clone();
    set_log_by_number(open.log_level, move |record: &LogRecord<'_>| {
        let said = Said::Log {
            level: record.level.number(),
            target: record.target.to_owned(),
            message: record.message.to_owned(),
        };
        let _ = speaker.say(&said, &[]);
    });
    let mut instance = match Instance::make(&open, &image, &said) {
        Ok(instance) => instance,
        Err(error) => {
            let _ = said.reply(Reply::Failed(error.into()), None, &[]);
            return Ok(());
        }
    };
    if let Instance::Sink(sink) = &instance {
        cancellation.lock().cancel = Some(sink.canceller());
    }
    let mut outcome = said.reply(Reply::Done, None, &[]);
    while outcome.is_ok() {
        outcome = match receiver.receive(&mut patient) {
            Ok(Call::End) | Err(_) => break,
            Ok(call) => {
                let (reply, state) = instance.answer(call, receiver.behind(), &cancellation);
                said.reply(reply, instance.lost(), &[&state])
            }
        };
    }
    cancellation.lock().cancel = None;
    drop(instance);
    Ok(())
}

/// The descriptors that the host passed to this process. Programs that the plugin starts do not inherit them.
struct Inherited {
    calls: UnixStream,
    control: UnixStream,
    image: OwnedFd,
}

impl Inherited {
    /// Takes ownership of these descriptors. If they were not passed by a host, returns `None` and leaves
    /// them unchanged.
    fn take(descriptors: &str) -> Option<Self> {
        let numbers: Vec<RawFd> = descriptors
            .split(',')
            .map(|number| number.parse().ok())
            .collect::<Option<_>>()?;
        let [calls, control, image] = numbers[..] else {
            return None;
        };
        let is_apart = calls != control && calls != image && control != image;
        if !is_apart || image <= 2 || ![calls, control].into_iter().all(is_of_parent) {
            return None;
        }
        for descriptor in numbers {
            // SAFETY: F_SETFD takes an int, and the call fails if the descriptor is not open.
            if unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
                return None;
            }
        }
        // SAFETY: the descriptors are open, and nothing else in this process uses them, since it has just
        // started. The parent created the two sockets for this process and passed the numbers of all three
        // descriptors.
        unsafe {
            Some(Self {
                calls: UnixStream::from_raw_fd(calls),
                control: UnixStream::from_raw_fd(control),
                image: OwnedFd::from_raw_fd(image),
            })
        }
    }
}

/// Returns true if this descriptor is one end of a pair of sockets, and this process's parent created the
/// pair.
fn is_of_parent(descriptor: RawFd) -> bool {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the pointer is writable for `size` bytes.
    let status = unsafe {
        libc::getsockopt(
            descriptor,
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut size,
        )
    };
    let parent = std::os::unix::process::parent_id();
    status == 0 && descriptor > 2 && u32::try_from(peer.pid) == Ok(parent)
}

/// Prevents the signals that end the host from ending this process. When a service is stopped, each of its
/// processes receives a signal, but calls in this process must finish, and the host decides when this process
/// ends. SIGXFSZ does not end it either: if a file would grow beyond the user's limit, only the write fails,
/// as in the host itself.
///
/// Each signal gets a handler that does nothing, instead of being ignored: programs that the plugin starts
/// would inherit that a signal is ignored, but they do not inherit handlers.
fn leave_signals_to_the_host() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the struct contains integers and a set of signals, for which zero is valid and means an empty
    // set.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGXFSZ] {
        // SAFETY: the handler does nothing, so it can run at any time.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

/// Lowers the priority of this process below the training's. Processes that this process starts later inherit
/// the priority. All of them run only on otherwise idle CPUs and access the disk last. A low priority (nice)
/// is not enough, since such a process still gets time slices. The training's threads meet at barriers many
/// times in a step. If one thread lost its CPU for such a time slice, all other threads would wait for it. If
/// the system forbids the change, the priority remains the same.
fn give_way_to_the_training() {
    /// From `linux/ioprio.h`: the value for this process, and the lowest best-effort priority.
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_BEST_EFFORT_LAST: libc::c_int = 2 << 13 | 7;
    // SAFETY: the struct contains one number, which must be 0 for this policy.
    let param: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: one call reads the struct, which outlives the call; the other takes only numbers.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const param);
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            0,
            IOPRIO_BEST_EFFORT_LAST,
        );
    }
}

/// Sends messages to the host, from the main thread and from all threads that log.
#[derive(Clone)]
struct Speaker(Arc<Mutex<Sender>>);

impl Speaker {
    fn new(calls: &UnixStream) -> Result<Self> {
        let socket = calls.try_clone().map_err(|e| no_thread(&e))?;
        Ok(Self(Arc::new(Mutex::new(Sender::new(socket)))))
    }

    fn say(&self, message: &impl serde::Serialize, parts: &[&[u8]]) -> Result<(), Broken> {
        let mut sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sender.send(message, parts, &mut patient)
    }

    /// Replies to a call. If the reply is too large to send, the call fails.
    fn reply(&self, reply: Reply, lost: Option<String>, parts: &[&[u8]]) -> Result<(), Broken> {
        match self.say(&Said::Reply { reply, lost }, parts) {
            Err(Broken::TooLarge(bytes)) => {
                let message = Broken::too_large("its output", bytes);
                let reply = Reply::Failed(Error::new(ErrorKind::Plugin, message).into());
                self.say(&Said::Reply { reply, lost: None }, &[])
            }
            sent => sent,
        }
    }
}

/// Always continues: the child waits for the host without a time limit, since the host enforces the limits.
fn patient() -> bool {
    true
}

fn no_thread(error: &io::Error) -> Error {
    Error::new(
        ErrorKind::System,
        format!("cannot serve a plugin's calls: {error}"),
    )
}

/// The state that both threads share.
#[derive(Default)]
struct Cancellation(Mutex<State>);

#[derive(Default)]
struct State {
    /// The number of the last cancelled call. A cancellation can arrive before this process starts the call.
    call: u64,
    /// The sink's canceller; absent before the sink is created and after it is dropped.
    cancel: Option<Box<dyn Fn() + Send + Sync>>,
}

impl Cancellation {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_cancelled(&self, call: u64) -> bool {
        self.lock().call >= call
    }
}

/// Forwards cancellations, and ends the process when the host is gone.
fn watch_host(mut control: UnixStream, cancellation: Arc<Cancellation>) -> Result<()> {
    let watch = move || {
        let mut number = [0; 8];
        loop {
            match control.read_exact(&mut number) {
                Ok(()) => {
                    let mut state = cancellation.lock();
                    state.call = u64::from_le_bytes(number);
                    if let Some(cancel) = &state.cancel {
                        cancel();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                // An error means that the plugin has closed the descriptor. The descriptor's number may
                // already belong to another file, so it must not be closed here.
                Err(_) => return std::mem::forget(control),
            }
        }
        // SAFETY: `_exit` does not return. It runs no exit handlers, which would be unsafe while the main
        // thread is in a call of the plugin.
        unsafe { libc::_exit(0) };
    };
    std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(watch)
        .map(|_| ())
        .map_err(|e| no_thread(&e))
}

/// The instance, as the trait of its kind.
enum Instance {
    ParamGroups(Box<dyn ParamGroups>),
    Metric(Box<dyn Metric>),
    Sink(Box<dyn CheckpointSink>),
    Observer(Box<dyn Observer>),
}

impl Instance {
    fn make(open: &Open<'_>, image: &OwnedFd, said: &Speaker) -> Result<Self> {
        let path = format!("/proc/self/fd/{}", image.as_raw_fd());
        let image = Image::read(Path::new(&path))?;
        if image.sha256() != open.sha256 {
            return Err(Error::new(
                ErrorKind::Plugin,
                format!(
                    "the plugin's bytes differ from those that the host inspected: {}",
                    open.path.display()
                ),
            ));
        }
        let plugin = Plugin::load_image(&image, &open.path, &open.config)?;
        // An error is ignored here: if the host is gone, sending the reply fails, too.
        let _ = said.say(&Said::Creating, &[]);
        Ok(match open.kind {
            PluginKind::ParamGroups => Self::ParamGroups(plugin.param_groups()?),
            PluginKind::Metric => Self::Metric(plugin.metric()?),
            PluginKind::CheckpointSink => Self::Sink(plugin.checkpoint_sink()?),
            PluginKind::Observer => Self::Observer(plugin.observer()?),
        })
    }

    /// Makes the call. Returns the reply and the state to send after it.
    fn answer(
        &mut self,
        call: Call<'_>,
        behind: &[u8],
        cancellation: &Cancellation,
    ) -> (Reply, Vec<u8>) {
        let reply = match (self, call) {
            (
                Self::ParamGroups(grouper),
                Call::Group {
                    params,
                    weight_decay,
                },
            ) => {
                let request = GroupsRequest {
                    params: &params,
                    weight_decay,
                };
                let grouped = grouper.group(request);
                grouped.map(|(groups, warnings)| Reply::Groups(groups, warnings))
            }
            (Self::Metric(metric), Call::Reset) => done(metric.reset()),
            (Self::Metric(metric), Call::Update { step, tensors }) => {
                done(update(&mut **metric, step, &tensors, behind))
            }
            (Self::Metric(metric), Call::ExportState) => return state(metric.export_state()),
            (Self::Metric(metric), Call::MergeState) => done(metric.merge_state(behind)),
            (Self::Metric(metric), Call::Compute) => metric.compute().map(Reply::Values),
            (Self::Observer(observer), Call::Observe { step, event }) => {
                observer.observe(step, &event).map(Reply::Asks)
            }
            (Self::Observer(observer), Call::ExportState) => return state(observer.export_state()),
            (Self::Observer(observer), Call::ImportState) => done(observer.import_state(behind)),
            (Self::Sink(_), Call::Sink { number, .. }) if cancellation.is_cancelled(number) => {
                Ok(Reply::Undelivered(SinkError::Cancelled))
            }
            (Self::Sink(sink), Call::Sink { call, .. }) => ask(&mut **sink, call),
            (_, call) => Err(Error::new(
                ErrorKind::System,
                format!(
                    "the host called {}, which this kind of plugin does not have",
                    call.name()
                ),
            )),
        };
        let reply = reply.unwrap_or_else(|error| Reply::Failed(Fault::from(error)));
        (reply, Vec::new())
    }

    fn lost(&self) -> Option<String> {
        match self {
            Self::ParamGroups(_) => None,
            Self::Metric(metric) => metric.lost(),
            Self::Sink(sink) => sink.lost(),
            Self::Observer(observer) => observer.lost(),
        }
    }
}

fn done(outcome: Result<()>) -> Result<Reply> {
    outcome.map(|()| Reply::Done)
}

fn state(exported: Result<Vec<u8>>) -> (Reply, Vec<u8>) {
    match exported {
        Ok(state) => (Reply::State, state),
        Err(error) => (Reply::Failed(error.into()), Vec::new()),
    }
}

/// Calls the metric's `update`. `behind` contains the tensors' elements.
fn update(
    metric: &mut dyn Metric,
    step: u64,
    tensors: &[TensorHead<'_>],
    behind: &[u8],
) -> Result<()> {
    let strides: Vec<Vec<i64>> = tensors
        .iter()
        .map(|tensor| contiguous_strides(&tensor.shape))
        .collect();
    let mut end = 0usize;
    let mut views = Vec::with_capacity(tensors.len());
    for (tensor, strides) in std::iter::zip(tensors, &strides) {
        let TensorHead { need, dtype, shape } = tensor;
        let begin = end.next_multiple_of(ALIGNMENT);
        let count = shape
            .iter()
            .try_fold(size_of_element(*dtype), |bytes, &length| {
                bytes.checked_mul(usize::try_from(length).ok()?)
            });
        let elements = count.and_then(|bytes| behind.get(begin..begin.checked_add(bytes)?));
        let elements = elements.ok_or_else(|| {
            let message = format!("elements of {} are missing", need.name());
            Error::new(ErrorKind::System, message)
        })?;
        end = begin + elements.len();
        views.push((
            *need,
            TensorView {
                data: elements.as_ptr().cast(),
                shape,
                strides,
                dtype: *dtype,
                device: Device::Cpu,
                owner: PhantomData,
            },
        ));
    }
    metric.update(MetricBatch {
        step,
        tensors: &views,
    })
}

fn ask(sink: &mut dyn CheckpointSink, call: SinkCall<'_>) -> Result<Reply> {
    let outcome = match call {
        SinkCall::Publish {
            run,
            step,
            path,
            manifest,
            metrics,
            state_dir,
        } => {
            // The priority is not lowered for a sink's calls before its first `publish`, because the host
            // makes those calls before training starts, and waits for them.
            give_way_to_the_training();
            let checkpoint = CheckpointDir {
                step,
                path: path.into_owned(),
                manifest: Cow::into_owned(manifest),
                metrics: Cow::into_owned(metrics),
            };
            let publish = Publish {
                run: &run.parse()?,
                checkpoint: &checkpoint,
                state_dir: &state_dir,
            };
            sink.publish(publish).map(Reply::Receipt)
        }
        SinkCall::Preflight {
            run,
            state_dir,
            checkpoint_bytes,
            model_bytes,
        } => {
            let preflight = Preflight {
                run: &run.parse()?,
                state_dir: &state_dir,
                checkpoint_bytes,
                model_bytes,
            };
            sink.preflight(preflight).map(Reply::Ready)
        }
        SinkCall::Fetch {
            revision,
            for_resume,
            state_dir,
        } => {
            let fetch = Fetch {
                revision: revision.as_deref(),
                for_resume,
                state_dir: &state_dir,
            };
            sink.fetch(fetch).map(Reply::Fetched)
        }
    };
    Ok(outcome.unwrap_or_else(Reply::Undelivered))
}
