//! State that belongs to the process, not to a plugin. It is read before and after calls into plugins, and
//! changes are undone.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsString, c_int};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{PluginName, ProcessChange, openmp};
use crate::signal_name::signal_name;

/// The rounding mode, the handling of denormal numbers, and the exceptions that trap. The flags of exceptions
/// that have occurred are not included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloatingPoint {
    #[cfg(target_arch = "x86_64")]
    mxcsr: u32,
    #[cfg(target_arch = "x86_64")]
    x87: u16,
    #[cfg(target_arch = "aarch64")]
    fpcr: u64,
}

/// The bits of MXCSR that are the flags of exceptions that have occurred.
#[cfg(target_arch = "x86_64")]
const OCCURRED: u32 = 0x3f;

impl FloatingPoint {
    #[cfg(target_arch = "x86_64")]
    /// Returns the state of this thread.
    #[inline]
    pub fn now() -> Self {
        let mut mxcsr = 0u32;
        let mut x87 = 0u16;
        // SAFETY: each instruction stores the register to the given address.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack, preserves_flags));
            std::arch::asm!("fnstcw [{}]", in(reg) &raw mut x87, options(nostack, preserves_flags));
        }
        Self {
            mxcsr: mxcsr & !OCCURRED,
            x87,
        }
    }

    #[cfg(target_arch = "x86_64")]
    /// Sets this state on the current thread.
    pub fn set(self) {
        // SAFETY: each instruction loads a register from a valid address. The loaded values contain no
        // pending exception.
        unsafe {
            std::arch::asm!("fnclex", "fldcw [{}]", in(reg) &raw const self.x87, options(nostack));
            std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const self.mxcsr, options(nostack));
        }
    }

    #[cfg(target_arch = "aarch64")]
    /// Returns the state of this thread.
    #[inline]
    pub fn now() -> Self {
        let fpcr: u64;
        // SAFETY: the instruction only reads a register.
        unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) fpcr, options(nomem, nostack)) };
        Self { fpcr }
    }

    #[cfg(target_arch = "aarch64")]
    /// Sets this state on the current thread.
    pub fn set(self) {
        // SAFETY: the value came from the register.
        unsafe { std::arch::asm!("msr fpcr, {}", in(reg) self.fpcr, options(nostack)) };
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    /// Returns the state of this thread.
    #[inline]
    pub fn now() -> Self {
        Self {}
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    /// Sets this state on the current thread.
    pub fn set(self) {}
}

impl fmt::Display for FloatingPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[cfg(target_arch = "x86_64")]
        write!(f, "mxcsr={:#x},x87={:#x}", self.mxcsr, self.x87)?;
        #[cfg(target_arch = "aarch64")]
        write!(f, "fpcr={:#x}", self.fpcr)?;
        Ok(())
    }
}

/// A snapshot of all state that is checked. Some of this state is separate for each thread. Such
/// state is read for the calling thread.
#[derive(Clone, Debug)]
pub struct ProcessState {
    numbers: Numbers,
    signal_mask: u64,
    /// The action for each signal, from signal 1.
    signal_actions: Vec<Action>,
    /// Absent if the working directory was deleted.
    working_directory: Option<PathBuf>,
    /// Absent if it cannot be read.
    umask: Option<u32>,
    locale: CString,
    /// The locale set for this thread, or the value that represents the process's locale.
    thread_locale: usize,
    resource_limits: Vec<(u64, u64)>,
    streams: [Option<File>; 3],
    affinity: Vec<u8>,
    nice: c_int,
    scheduler: c_int,
    /// For each of the three timers that send a signal, whether it is running.
    timers: [bool; 3],
    /// For each environment variable, a hash of its value.
    environment: BTreeMap<OsString, u64>,
}

/// State that affects the results of the training and takes nanoseconds to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    floating_point: FloatingPoint,
    openmp: OpenMp,
}

impl Numbers {
    #[inline]
    pub(super) fn now() -> Self {
        Self {
            floating_point: FloatingPoint::now(),
            openmp: OpenMp::now(),
        }
    }

    /// Restores the state that differs in `now`. Returns a description of each change.
    #[cold]
    pub(super) fn put_back(&self, now: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        let (then, now_is) = (&self.floating_point, &now.floating_point);
        if then != now_is {
            then.set();
            let is_back = FloatingPoint::now() == *then;
            changes.push(changed(
                "the floating-point environment",
                then,
                now_is,
                is_back,
            ));
        }
        let (then, now_is) = (&self.openmp, &now.openmp);
        if then != now_is {
            then.set();
            let is_back = OpenMp::now() == *then;
            changes.push(changed("the OpenMP settings", then, now_is, is_back));
        }
        changes
    }
}

/// Parameters of parallel regions of this thread. If `is_dynamic` is set, the runtime uses fewer threads on a
/// busy machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OpenMp {
    threads: i32,
    is_dynamic: i32,
    levels: i32,
}

impl OpenMp {
    #[inline]
    fn now() -> Self {
        Self {
            threads: openmp::threads(),
            is_dynamic: openmp::is_dynamic(),
            levels: openmp::levels(),
        }
    }

    fn set(self) {
        openmp::set_threads(self.threads);
        openmp::set_dynamic(self.is_dynamic);
        openmp::set_levels(self.levels);
    }
}

impl fmt::Display for OpenMp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            threads,
            is_dynamic,
            levels,
        } = self;
        write!(f, "threads={threads},dynamic={is_dynamic},levels={levels}")
    }
}

/// The action that is set for a signal.
#[derive(Clone, Copy)]
struct Action(libc::sigaction);

impl Action {
    fn now(signal: c_int) -> Self {
        // SAFETY: zero is a valid sigaction, and reading changes nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, ptr::null(), &raw mut action);
            Self(action)
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        self.0.sa_sigaction == other.0.sa_sigaction
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.sa_sigaction {
            libc::SIG_DFL => "default",
            libc::SIG_IGN => "ignored",
            _ => "handled",
        })
    }
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The identity of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct File {
    device: u64,
    number: u64,
    mode: u32,
}

const TIMERS: [c_int; 3] = [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF];
const STREAMS: [(RawFd, &str); 3] = [(0, "stdin"), (1, "stdout"), (2, "stderr")];
const LIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// Duplicates of the standard streams, made when the first snapshot is taken. If a plugin closes a stream,
/// the stream is restored from its duplicate.
static KEPT_STREAMS: LazyLock<[RawFd; 3]> = LazyLock::new(|| {
    // SAFETY: the call only takes numbers, and fails if the descriptor is not open.
    STREAMS.map(|(stream, _)| unsafe { libc::fcntl(stream, libc::F_DUPFD_CLOEXEC, 10) })
});

impl ProcessState {
    /// Takes a snapshot.
    pub fn now() -> Self {
        LazyLock::force(&KEPT_STREAMS);
        Self {
            numbers: Numbers::now(),
            signal_mask: signal_mask(),
            signal_actions: (1..=64).map(Action::now).collect(),
            working_directory: std::env::current_dir().ok(),
            umask: umask(),
            locale: locale(),
            // SAFETY: the call only reads the locale.
            thread_locale: unsafe { libc::uselocale(ptr::null_mut()) }.expose_provenance(),
            resource_limits: (0..LIMITS.len()).map(resource_limit).collect(),
            streams: STREAMS.map(|(stream, _)| file_at(stream)),
            affinity: affinity(),
            // SAFETY: both calls only read the state of this thread.
            nice: unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) },
            // SAFETY: as above.
            scheduler: unsafe { libc::sched_getscheduler(0) },
            timers: TIMERS.map(is_running),
            environment: environment(),
        }
    }

    /// Restores, as far as possible, the state that has changed since the snapshot. Returns a description of
    /// each change. Must be called on the thread that called [`ProcessState::now`], because part of the state
    /// belongs to that thread.
    pub fn put_back(&self) -> Vec<String> {
        // The limits are restored first, because reading the state opens files.
        let mut changes = self.put_back_limits();
        let now = Self::now();
        changes.extend(self.numbers.put_back(&now.numbers));
        if self.signal_mask != now.signal_mask {
            let is_back = set_signal_mask(self.signal_mask);
            let (then, now) = (Signals(self.signal_mask), Signals(now.signal_mask));
            changes.push(changed("the blocked signals", &then, &now, is_back));
        }
        changes.extend(self.put_back_signal_actions(&now));
        if self.working_directory != now.working_directory {
            let shown = |dir: &Option<PathBuf>| match dir {
                Some(dir) => dir.display().to_string(),
                None => "a deleted folder".to_owned(),
            };
            let back = self.working_directory.as_ref();
            let is_back = back.is_some_and(|dir| std::env::set_current_dir(dir).is_ok());
            let (then, now) = (
                shown(&self.working_directory),
                shown(&now.working_directory),
            );
            changes.push(changed("the working directory", &then, &now, is_back));
        }
        if let (Some(then), Some(now)) = (self.umask, now.umask)
            && then != now
        {
            // SAFETY: the call cannot fail.
            unsafe { libc::umask(then) };
            let (then, now) = (format!("{then:03o}"), format!("{now:03o}"));
            changes.push(changed("the umask", &then, &now, true));
        }
        if self.locale != now.locale {
            // SAFETY: the name is a zero-terminated string.
            let back = unsafe { libc::setlocale(libc::LC_ALL, self.locale.as_ptr()) };
            let (then, now) = (self.locale.to_string_lossy(), now.locale.to_string_lossy());
            changes.push(changed("the locale", &then, &now, !back.is_null()));
        }
        if self.thread_locale != now.thread_locale {
            // SAFETY: the locale was in use on this thread, which owns it.
            unsafe { libc::uselocale(ptr::with_exposed_provenance_mut(self.thread_locale)) };
            changes.push(format!(
                "it changed the locale of this thread{}",
                outcome(true)
            ));
        }
        for (number, (stream, name)) in STREAMS.into_iter().enumerate() {
            let (then, now) = (self.streams[number], now.streams[number]);
            if then != now {
                // If the stream was closed, a library may have opened another file, which then has the
                // stream's number. SQLite, for example, opens `/dev/null`.
                let is_back = put_back_stream(stream);
                let outcome = outcome(is_back);
                changes.push(format!("it closed or redirected {name}{outcome}"));
            }
        }
        if self.affinity != now.affinity {
            let set = self.affinity.as_ptr().cast();
            // SAFETY: the set has the given length.
            let is_back = unsafe { libc::sched_setaffinity(0, self.affinity.len(), set) } == 0;
            let count = |set: &[u8]| set.iter().map(|byte| byte.count_ones()).sum::<u32>();
            let (then, now) = (count(&self.affinity), count(&now.affinity));
            let what = "the number of processors that this thread may use";
            changes.push(changed(what, &then, &now, is_back));
        }
        if self.nice != now.nice {
            // SAFETY: the call only takes numbers.
            let is_back = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, self.nice) } == 0;
            changes.push(changed(
                "the priority (nice)",
                &self.nice,
                &now.nice,
                is_back,
            ));
        }
        if self.scheduler != now.scheduler {
            // SAFETY: zero is valid for the struct, which contains only a number. The number must be 0 for
            // policies that are not real-time.
            let is_back = unsafe {
                let param: libc::sched_param = std::mem::zeroed();
                libc::sched_setscheduler(0, self.scheduler, &raw const param) == 0
            };
            let what = "the scheduling policy";
            changes.push(changed(what, &self.scheduler, &now.scheduler, is_back));
        }
        for (number, timer) in TIMERS.into_iter().enumerate() {
            if now.timers[number] && !self.timers[number] {
                let is_back = stop(timer);
                changes.push(format!(
                    "it set a timer that sends a signal{}",
                    outcome(is_back)
                ));
            }
        }
        changes.extend(self.changed_variables(&now));
        changes
    }

    fn put_back_limits(&self) -> Vec<String> {
        let mut changes = Vec::new();
        for (number, name) in LIMITS.iter().enumerate() {
            let (then, now) = (self.resource_limits[number], resource_limit(number));
            if then != now {
                let is_back = set_resource_limit(number, then);
                let (then, now) = (Limit(then.0), Limit(now.0));
                let what = format!("the resource limit {name}");
                changes.push(changed(&what, &then, &now, is_back));
            }
        }
        changes
    }

    /// Returns the limits of all resources, as text.
    pub fn resource_limits() -> String {
        let limit = |(number, name): (usize, &&str)| {
            let (soft, hard) = resource_limit(number);
            format!("{name}={}/{}", Limit(soft), Limit(hard))
        };
        let limits: Vec<String> = LIMITS.iter().enumerate().map(limit).collect();
        limits.join(" ")
    }

    /// Returns, as text, which file each standard stream refers to: its device and inode number, or `closed`.
    pub fn streams() -> String {
        let stream = |(stream, name): (RawFd, &str)| match file_at(stream) {
            Some(file) => format!("{name}=file-{}:{}", file.device, file.number),
            None => format!("{name}=closed"),
        };
        STREAMS.map(stream).join(" ")
    }

    /// Returns the priority, the scheduling policy and the CPU affinity of this thread, as text.
    pub fn scheduling() -> String {
        // SAFETY: both calls only read the state of this thread.
        let (nice, policy) = unsafe {
            (
                libc::getpriority(libc::PRIO_PROCESS, 0),
                libc::sched_getscheduler(0),
            )
        };
        let processors = affinity();
        let processors: Vec<String> = processors
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!(
            "nice={nice} policy={policy} processors={}",
            processors.concat()
        )
    }

    /// Returns a text that tells, for each of the timers that send a signal, whether it is running.
    pub fn timers() -> String {
        TIMERS.map(|timer| is_running(timer).to_string()).join(" ")
    }

    /// Returns the OpenMP settings, as text.
    pub fn openmp() -> String {
        OpenMp::now().to_string()
    }

    /// Restores the action of a signal in two cases: the host handles or ignores the signal, or a plugin set
    /// the signal to be ignored. A plugin's handler for any other signal stays, because the runtimes of some
    /// languages need their handlers.
    fn put_back_signal_actions(&self, now: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        let actions = self.signal_actions.iter().zip(&now.signal_actions);
        for (signal, (then, now)) in (1..).zip(actions) {
            if then.is_same(now) {
                continue;
            }
            let is_hosts = then.0.sa_sigaction != libc::SIG_DFL;
            let is_ignored = now.0.sa_sigaction == libc::SIG_IGN;
            let is_back = (is_hosts || is_ignored)
                // SAFETY: the action was in force before.
                && unsafe { libc::sigaction(signal, &raw const then.0, ptr::null_mut()) } == 0;
            let what = format!("the action for {}", signal_name(signal));
            changes.push(changed(&what, then, now, is_back));
        }
        changes
    }

    /// Reports changed environment variables but does not restore them, because another thread may be reading
    /// them.
    fn changed_variables(&self, now: &Self) -> Vec<String> {
        let names = self.environment.keys().chain(now.environment.keys());
        let mut changed: Vec<&OsString> = names
            .filter(|name| self.environment.get(*name) != now.environment.get(*name))
            .collect();
        changed.sort();
        changed.dedup();
        let changes = changed.into_iter().map(|name| {
            let what = match (self.environment.get(name), now.environment.get(name)) {
                (None, _) => "set",
                (_, None) => "removed",
                _ => "changed",
            };
            let name = name.display();
            format!(
                "it {what} the environment variable {name}{}",
                outcome(false)
            )
        });
        changes.take(MOST_VARIABLES).collect()
    }
}

/// Maximum number of environment variables that are reported. A plugin may change many of them.
const MOST_VARIABLES: usize = 10;

/// Returns the description of a change.
fn changed(what: &str, then: &impl fmt::Display, now: &impl fmt::Display, is_back: bool) -> String {
    format!("it changed {what} from {then} to {now}{}", outcome(is_back))
}

fn outcome(is_back: bool) -> &'static str {
    match is_back {
        true => "; the host restored it",
        false => "; the host did not restore it",
    }
}

/// A set of signals. The lowest bit represents signal 1.
struct Signals(u64);

impl fmt::Display for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = (1..=64).filter(|signal| self.0 >> (signal - 1) & 1 == 1);
        let names: Vec<String> = numbers.map(signal_name).collect();
        match names.len() {
            0 => f.write_str("none"),
            1..=5 => write!(f, "{}", names.join(", ")),
            many => write!(f, "{many} signals"),
        }
    }
}

/// A resource limit, for display.
struct Limit(u64);

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            libc::RLIM_INFINITY => f.write_str("unlimited"),
            limit => write!(f, "{limit}"),
        }
    }
}

fn signal_mask() -> u64 {
    // SAFETY: zero is a valid set, and reading changes nothing.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &raw mut set);
        (1..=64).fold(0, |mask, signal| {
            let is_blocked = libc::sigismember(&raw const set, signal) == 1;
            mask | u64::from(is_blocked) << (signal - 1)
        })
    }
}

fn set_signal_mask(mask: u64) -> bool {
    // SAFETY: the set is initialized before it is used.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in (1..=64).filter(|signal| mask >> (signal - 1) & 1 == 1) {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut()) == 0
    }
}

/// Reads the umask from `/proc`. The system call cannot read the umask without setting it, and other threads
/// could create files in the meantime.
pub fn umask() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(mask.trim(), 8).ok()
}

/// Returns the locale of the process, as `setlocale` names it.
pub fn locale() -> CString {
    // SAFETY: the call only reads the locale. The result is a C string that is valid until the next call.
    unsafe {
        let name = libc::setlocale(libc::LC_ALL, ptr::null());
        match name.is_null() {
            true => CString::default(),
            false => CStr::from_ptr(name).to_owned(),
        }
    }
}

fn resource_limit(number: usize) -> (u64, u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is writable; a limit that the system does not support leaves it unchanged.
    unsafe { libc::getrlimit(number as _, &raw mut limit) };
    (limit.rlim_cur, limit.rlim_max)
}

/// Restores a limit. If the hard limit was lowered and cannot be raised again, the soft limit is raised only
/// up to the hard limit. Returns true if the soft limit is restored.
fn set_resource_limit(number: usize, (soft, hard): (u64, u64)) -> bool {
    let (_, hard_now) = resource_limit(number);
    for hard in [hard, hard_now] {
        let limit = libc::rlimit {
            rlim_cur: soft.min(hard),
            rlim_max: hard,
        };
        // SAFETY: the limits are readable.
        if unsafe { libc::setrlimit(number as _, &raw const limit) } == 0 {
            break;
        }
    }
    resource_limit(number).0 == soft
}

fn file_at(descriptor: RawFd) -> Option<File> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the pointer is writable, and the value is read only if it was written.
    unsafe {
        (libc::fstat(descriptor, status.as_mut_ptr()) == 0).then(|| {
            let status = status.assume_init();
            File {
                device: status.st_dev,
                number: status.st_ino,
                mode: status.st_mode,
            }
        })
    }
}

/// Restores a stream if it was closed, or if its number now belongs to a device or a pipe. A file or a socket
/// is left open, because it may belong to the host: another thread may have opened it while the stream's
/// number was free. A later check tries again to restore the stream.
fn put_back_stream(stream: RawFd) -> bool {
    let is_free = file_at(stream)
        .is_none_or(|file| matches!(file.mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFIFO));
    let kept = KEPT_STREAMS[stream as usize];
    // SAFETY: the call only takes numbers, and fails if a descriptor is not open.
    is_free && kept >= 0 && unsafe { libc::dup2(kept, stream) } == stream
}

fn affinity() -> Vec<u8> {
    let mut set = vec![0u8; 1024];
    // SAFETY: the set has the given length. The system call returns how many bytes it has written.
    let written =
        unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, set.len(), set.as_mut_ptr()) };
    set.truncate(usize::try_from(written).unwrap_or(0));
    set
}

fn is_running(timer: c_int) -> bool {
    let mut value = MaybeUninit::<libc::itimerval>::zeroed();
    // SAFETY: the pointer is writable. Zero is a valid value and represents a stopped timer.
    unsafe {
        libc::getitimer(timer as _, value.as_mut_ptr());
        let left = value.assume_init().it_value;
        left.tv_sec != 0 || left.tv_usec != 0
    }
}

fn stop(timer: c_int) -> bool {
    // SAFETY: zero is a valid value and represents a stopped timer.
    unsafe {
        let never: libc::itimerval = std::mem::zeroed();
        libc::setitimer(timer as _, &raw const never, ptr::null_mut()) == 0
    }
}

/// Returns the names of the environment variables, each with a keyed hash of its value. The values are not
/// returned, because some are secrets and the result may be printed.
pub fn environment() -> BTreeMap<OsString, u64> {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    std::env::vars_os()
        .map(|(name, value)| (name, KEY.hash_one(value.as_bytes())))
        .collect()
}

/// Checks the whole process state at intervals, on the training loop's thread. Such a check costs as much as
/// a hundred calls, so it is not done for each call.
#[derive(Debug)]
pub struct ProcessWatch {
    before: ProcessState,
    looked: Instant,
    cost: Duration,
}

/// The plugins that were called since the last check, each with the name of its last call.
static CALLED: Mutex<Vec<(&'static PluginName, &'static str)>> = Mutex::new(Vec::new());
/// Whether a check found a change but could not tell which of several plugins made it. If so, each later call
/// is checked.
static IS_SUSPICIOUS: AtomicBool = AtomicBool::new(false);

/// Checks take at most about `1 / SHARE` of the time.
const SHARE: u32 = 100;

pub(super) fn is_suspicious() -> bool {
    IS_SUSPICIOUS.load(Ordering::Relaxed)
}

thread_local! {
    /// The last recorded call of this thread. If the next call is the same, no lock is needed.
    static LAST_CALLED: std::cell::Cell<(u64, *const u8, *const u8)> =
        const { std::cell::Cell::new((0, ptr::null(), ptr::null())) };
}
/// Counts the checks.
static LOOKS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

/// Records for the next check that this plugin was called.
#[inline]
pub(super) fn called(plugin: &'static PluginName, call: &'static str) {
    let last = (
        LOOKS.load(Ordering::Relaxed),
        plugin.as_ptr(),
        call.as_ptr(),
    );
    if LAST_CALLED.get() != last {
        LAST_CALLED.set(last);
        add_called(plugin, call);
    }
}

#[cold]
fn add_called(plugin: &'static PluginName, call: &'static str) {
    let mut called = CALLED.lock().unwrap_or_else(PoisonError::into_inner);
    match called.iter_mut().find(|(known, _)| *known == plugin) {
        Some(known) => known.1 = call,
        None => called.push((plugin, call)),
    }
}

impl ProcessWatch {
    /// Takes the current state of the process as the expected state. `[main]`
    pub fn begin() -> Self {
        CALLED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        LOOKS.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        Self {
            before: ProcessState::now(),
            looked: begun,
            cost: begun.elapsed(),
        }
    }

    /// Checks the state, and restores what plugins have changed since the last check.
    /// [`process_changes`](crate::process_changes) then returns the changes. The check is skipped if `must`
    /// is false and the last check was recent. Must be called on the thread that created this value.
    pub fn look(&mut self, must: bool) {
        if !must && self.looked.elapsed() < self.cost * SHARE {
            return;
        }
        let called = {
            let mut called = CALLED.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *called)
        };
        if called.is_empty() {
            return;
        }
        LOOKS.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let messages = self.before.put_back();
        if !messages.is_empty() {
            let names: Vec<&str> = called.iter().map(|(name, _)| &***name).collect();
            let calls: Vec<&str> = called.iter().map(|(_, call)| *call).collect();
            if called.len() > 1 {
                IS_SUSPICIOUS.store(true, Ordering::Relaxed);
            }
            for message in messages {
                let message = match called.len() {
                    1 => message,
                    _ => format!("{message} (the plugin is one of: {})", names.join(", ")),
                };
                super::note(ProcessChange {
                    plugin: names.join(", "),
                    call: calls.first().copied().unwrap_or_default().to_owned(),
                    message,
                });
            }
            // A change that was not restored is not reported again. The streams are an exception: a later
            // check tries again to restore them.
            let streams = self.before.streams;
            self.before = ProcessState::now();
            self.before.streams = streams;
        }
        self.looked = Instant::now();
        self.cost = begun.elapsed();
    }
}
