//! The child's side: one instance of one plugin, in a process of its own.
//!
//! The main thread takes calls from one socket and makes them; whatever the plugin does to the
//! process is done to this process alone. A second thread waits at another socket for cancellations,
//! and ends the process when the host is gone: the host's end of that socket closes however it died.

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

/// Makes the instance that the host asks for and answers its calls until it says that it is done:
/// the whole of `host plugin serve`. `inherited` names the descriptors that the host has given to
/// this process.
///
/// # Errors
/// This process was not started by a host. What a plugin does wrong is said to the host.
pub fn serve(inherited: &str) -> Result<()> {
    let Inherited {
        calls,
        control,
        image,
    } = Inherited::take(inherited).ok_or_else(|| {
        Error::new(
            ErrorKind::Config,
            "this command is the host's own: it runs a plugin in a process of its own",
        )
        .hint("`host run --plugin SPEC` starts it where the plugin's mode is process")
    })?;
    leave_signals_to_the_host();
    // SAFETY: the name is a string that ends in a zero, and is copied.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"host-plugin".as_ptr()) };
    let said = Speaker::new(&calls)?;
    let cancellation = Arc::<Cancellation>::default();
    watch_host(control, Arc::clone(&cancellation))?;
    // From here on the host hears everything; if it is gone, so is this process.
    let mut receiver = Receiver::new(calls, u64::MAX);
    let _ = said.say(&Hello::of_this_host(), &[]);
    let mut open: Open<'_> = match receiver.receive(&mut patient) {
        Ok(open) => open,
        Err(_) => return Ok(()),
    };
    // Before anything of the plugin is here; the other thread only waits at its socket.
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

/// What the host has given to this process. None of it is passed on to what the plugin starts.
struct Inherited {
    calls: UnixStream,
    control: UnixStream,
    image: OwnedFd,
}

impl Inherited {
    /// None if these are not a host's, in which case they are left alone.
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
            // SAFETY: F_SETFD takes an int, and a descriptor that is not open is an error.
            if unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
                return None;
            }
        }
        // SAFETY: they are open, this process has just begun, and nobody else in it knows them: the
        // parent, who made these sockets for it, says which they are.
        unsafe {
            Some(Self {
                calls: UnixStream::from_raw_fd(calls),
                control: UnixStream::from_raw_fd(control),
                image: OwnedFd::from_raw_fd(image),
            })
        }
    }
}

/// Whether this is one end of a pair of sockets that the parent of this process made.
fn is_of_parent(descriptor: RawFd) -> bool {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the place is writable and as large as `size` says.
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

/// Whoever ends a service signals every process of it, but what is under way here shall be finished:
/// when it ends, the host decides. A file that grows beyond a limit of the user's is a write that
/// fails, as in the host itself.
///
/// Handlers that do nothing are not inherited by programs that the plugin starts; a signal that is
/// ignored would be.
fn leave_signals_to_the_host() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: a struct of integers and a set of signals, empty when it is zero.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGXFSZ] {
        // SAFETY: the handler does nothing, which is safe at any moment.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

/// A delivery has time, and the training none to lose: this process, and what it starts from here on,
/// gets what of the processors and the disk nobody else wants. Threads that meet at a barrier many times
/// in a step all wait for the one that has lost its processor for a slice of time, so a low priority
/// (nice) is not low enough: it still gets slices. Where that is not allowed, it goes on as it is.
fn give_way_to_the_training() {
    /// Of `linux/ioprio.h`: this process, and the last of those that get their turn.
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_BEST_EFFORT_LAST: libc::c_int = 2 << 13 | 7;
    // SAFETY: a struct of one number, of which this policy knows 0 alone.
    let param: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the one reads the struct, which outlives it; the other takes numbers alone.
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

/// Who speaks to the host: the main thread, and whatever thread the plugin logs from.
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

    /// Answers a call. An answer that is too large to be sent is a failure of the call.
    fn reply(&self, reply: Reply, lost: Option<String>, parts: &[&[u8]]) -> Result<(), Broken> {
        match self.say(&Said::Reply { reply, lost }, parts) {
            Err(Broken::TooLarge(bytes)) => {
                let message = Broken::too_large("what it gave", bytes);
                let reply = Reply::Failed(Error::new(ErrorKind::Plugin, message).into());
                self.say(&Said::Reply { reply, lost: None }, &[])
            }
            sent => sent,
        }
    }
}

/// The host's sockets have no time limit here: it is the host that loses patience.
fn patient() -> bool {
    true
}

fn no_thread(error: &io::Error) -> Error {
    Error::new(
        ErrorKind::System,
        format!("cannot serve a plugin's calls: {error}"),
    )
}

/// What the second thread shares with the first.
#[derive(Default)]
struct Cancellation(Mutex<State>);

#[derive(Default)]
struct State {
    /// The number of the last call that was cancelled. It may not have begun here yet.
    call: u64,
    /// The sink's own; absent before and after it.
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

/// Passes cancellations on, and ends the process with the host.
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
                // The plugin has closed it, and the number may be another file's by now.
                Err(_) => return std::mem::forget(control),
            }
        }
        // SAFETY: it does not return, and runs nothing of this process on its way, where a plugin's
        // call may be under way that never ends.
        unsafe { libc::_exit(0) };
    };
    std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(watch)
        .map(|_| ())
        .map_err(|e| no_thread(&e))
}

/// The instance, as the port that it is.
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
                    "the plugin's bytes are not those that the host has looked at: {}",
                    open.path.display()
                ),
            ));
        }
        let plugin = Plugin::load_image(&image, &open.path, &open.config)?;
        // If the host is gone, the next word to it shows that.
        let _ = said.say(&Said::Creating, &[]);
        Ok(match open.kind {
            PluginKind::ParamGroups => Self::ParamGroups(plugin.param_groups()?),
            PluginKind::Metric => Self::Metric(plugin.metric()?),
            PluginKind::CheckpointSink => Self::Sink(plugin.checkpoint_sink()?),
            PluginKind::Observer => Self::Observer(plugin.observer()?),
        })
    }

    /// Makes the call; the reply, and the state that goes behind it.
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
                format!("the host called {} of another kind of plugin", call.name()),
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

/// Shows the metric the tensors whose elements stand in `behind`.
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
            let message = format!("the elements of {} are not all there", need.name());
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
            // Before the first delivery there is no training to give way to, and the host waits.
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
