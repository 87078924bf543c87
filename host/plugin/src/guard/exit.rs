//! A plugin that ends the host's process: with `exit`, `quick_exit` or `_exit`, in a call, in a constructor
//! or from a thread of its own. The process then says which plugin did so and ends with the exit code of
//! a plugin's fault, whatever code the plugin chose.
//!
//! This module defines these functions: every library of the process then calls the program's own definition
//! instead of libc's. An `on_exit` handler alone would run too late: handlers that libtorch registers during
//! training run first, and destroy what the training thread is using. The handlers remain for exits that do
//! not go through these definitions, such as that of libc's `err`. A plugin that makes the system call itself
//! or replaces the program (`exec`) is not detected; only a parent process could detect that.

use std::ffi::{CStr, c_int, c_void};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use host_core::ErrorKind;

use super::signal::{self, Line};
use super::under_way::{self, Call, PluginName};

unsafe extern "C" {
    fn on_exit(handler: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    fn at_quick_exit(handler: extern "C" fn()) -> c_int;
}

/// The id of the guarded process; 0 before it is guarded. A process that a plugin forks off may end as it
/// likes.
static HOST: AtomicI32 = AtomicI32::new(0);
/// Set when the host itself ends the process.
static IS_ENDING: AtomicBool = AtomicBool::new(false);
/// Set when a plugin ends it.
static IS_ENDED: AtomicBool = AtomicBool::new(false);
/// Set in a process that was forked off this one.
static IS_FORKED: AtomicBool = AtomicBool::new(false);
/// How many libraries of plugins were loaded, or are being loaded.
static LOADED: AtomicUsize = AtomicUsize::new(0);

type Hook = Arc<dyn Fn(&str) + Send + Sync>;
static HOOK: Mutex<Option<Hook>> = Mutex::new(None);

/// The longest that a process which a plugin ends waits for the hook.
const HOOK_LIMIT: Duration = Duration::from_secs(3);
/// The longest that `end_process` waits for what C programs have buffered.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Calls this with the error when a plugin ends the process, on a thread of its own, and waits a few seconds
/// for it: it is the last thing that the process does.
pub fn on_exit_by_plugin(hook: Option<impl Fn(&str) + Send + Sync + 'static>) {
    let hook = hook.map(|hook| Arc::new(hook) as Hook);
    *HOOK.lock().unwrap_or_else(PoisonError::into_inner) = hook;
}

/// Ends the process with this exit code if plugins were loaded into it, without running what they left
/// behind for its end: their destructors could end it with another code. Else it returns. `[main]`
pub fn end_process(code: u8) {
    if LOADED.load(Ordering::Relaxed) == 0 {
        return;
    }
    IS_ENDING.store(true, Ordering::Relaxed);
    // Another thread is in `by_plugin`, which takes a few seconds at most.
    while IS_ENDED.load(Ordering::Relaxed) {
        std::thread::park();
    }
    let _ = std::io::stdout().flush();
    let (tell, flushed) = std::sync::mpsc::sync_channel(1);
    let flush = move || {
        // SAFETY: writes out what all streams of C hold, which a plugin may have printed.
        unsafe { libc::fflush(std::ptr::null_mut()) };
        let _ = tell.send(());
    };
    // A thread of a plugin may hold a stream for ever.
    let thread = std::thread::Builder::new()
        .name("flush".to_owned())
        .spawn(flush);
    if thread.is_ok() {
        let _ = flushed.recv_timeout(FLUSH_LIMIT);
    }
    end(c_int::from(code))
}

/// Begins to watch for the end of this process.
pub(super) fn guard() {
    // SAFETY: the call cannot fail.
    HOST.store(unsafe { libc::getpid() }, Ordering::Relaxed);
    listen();
    extern "C" fn forked() {
        IS_FORKED.store(true, Ordering::Relaxed);
    }
    // SAFETY: the handler is a function of this program, which is never unloaded.
    unsafe { libc::pthread_atfork(None, None, Some(forked)) };
    // Keeps the definitions below in the program.
    let own: [unsafe extern "C" fn(c_int) -> !; 4] = [exit, quick_exit, _exit, _Exit];
    std::hint::black_box(own);
}

/// A library of a plugin is about to be loaded, or was loaded. The last handler is the first that runs:
/// before whatever the library has registered for the end of the process.
pub(crate) fn loaded() {
    LOADED.fetch_add(1, Ordering::Relaxed);
    if super::is_guarded() {
        listen();
    }
}

fn listen() {
    // SAFETY: the handlers are functions of this program, which is never unloaded.
    unsafe {
        on_exit(exited, std::ptr::null_mut());
        at_quick_exit(quickly_exited);
    }
}

/// Ends a process that a plugin forked off and that came back from the plugin's call: it is a second host
/// at work on the same run.
#[inline]
pub(super) fn check_fork(plugin: &'static PluginName, call: &'static str) {
    if IS_FORKED.load(Ordering::Relaxed) && !is_host() {
        came_back(plugin, call);
    }
}

#[cold]
fn came_back(plugin: &'static PluginName, call: &'static str) -> ! {
    let mut line = Line::new();
    line.add("warning: plugin ");
    line.add(plugin);
    line.add(" made a second process of the host's (fork), which came back from ");
    line.add(call);
    line.add(" and was ended\n");
    line.write();
    end(c_int::from(ErrorKind::Plugin.exit_code()))
}

fn is_host() -> bool {
    // SAFETY: the call cannot fail.
    unsafe { libc::getpid() == HOST.load(Ordering::Relaxed) }
}

extern "C" fn exited(status: c_int, _: *mut c_void) {
    if is_by_plugin() {
        by_plugin("exit", Some(status));
    }
}

extern "C" fn quickly_exited() {
    if is_by_plugin() {
        by_plugin("quick_exit", None);
    }
}

/// Whether the end that is beginning is a plugin's doing: the host ends by `end_process`, once there are
/// plugins.
fn is_by_plugin() -> bool {
    LOADED.load(Ordering::Relaxed) > 0 && !IS_ENDING.load(Ordering::Relaxed) && is_host()
}

/// libc's function, for all libraries of this process.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn exit(status: c_int) -> ! {
    if is_by_plugin() {
        by_plugin("exit", Some(status));
    }
    // SAFETY: as the caller's.
    unsafe { of_libc(c"exit", status) }
}

/// libc's function, for all libraries of this process.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn quick_exit(status: c_int) -> ! {
    if is_by_plugin() {
        by_plugin("quick_exit", Some(status));
    }
    // SAFETY: as the caller's.
    unsafe { of_libc(c"quick_exit", status) }
}

/// Calls libc's own function of this name, which ends the process.
///
/// # Safety
/// It is a function that takes a status and does not return.
unsafe fn of_libc(name: &CStr, status: c_int) -> ! {
    // SAFETY: the name is a string that ends in a zero; what is found has this type.
    unsafe {
        let found = libc::dlsym(libc::RTLD_NEXT, name.as_ptr());
        if !found.is_null() {
            let function: unsafe extern "C" fn(c_int) -> ! = std::mem::transmute(found);
            function(status);
        }
    }
    end(status)
}

/// libc's function, for all libraries of this process.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn _exit(status: c_int) -> ! {
    // The host's own ends from a thread that is in no call are those by a signal.
    let is_expected =
        under_way::on_this_thread().is_none_or(|call| call.is_remote) && status >= 128;
    if is_by_plugin() && !is_expected {
        by_plugin("_exit", Some(status));
    }
    end(status)
}

/// libc's other name for it.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
unsafe extern "C" fn _Exit(status: c_int) -> ! {
    // SAFETY: the same function.
    unsafe { _exit(status) }
}

fn end(status: c_int) -> ! {
    loop {
        // SAFETY: ends all threads of the process.
        unsafe { libc::syscall(libc::SYS_exit_group, status) };
    }
}

/// Says who ended the process, lets the host write it down, and ends the process.
fn by_plugin(how: &str, status: Option<c_int>) -> ! {
    let code = c_int::from(ErrorKind::Plugin.exit_code());
    if IS_ENDED.swap(true, Ordering::Relaxed) {
        // Another thread is at it, or the hook itself ended here.
        end(code);
    }
    let call = under_way::on_this_thread().filter(|call| !call.is_remote);
    let culprit = call.map_or_else(signal::plugin_on_stack, |Call { plugin, .. }| Some(plugin));
    let mut line = Line::new();
    line.clear_terminal();
    line.add("error: ");
    let start = line.len();
    match culprit {
        Some(plugin) => {
            line.add("plugin ");
            line.add(plugin);
        }
        None => line.add("a plugin"),
    }
    line.add(" ended the process");
    match call {
        Some(call) => {
            line.add(" in ");
            line.add(call.name);
        }
        None => line.add(" from a thread of its own"),
    }
    line.add(": it called ");
    line.add(how);
    if let Some(status) = status {
        line.add("(");
        line.add_number(status.unsigned_abs().into());
        line.add(")");
    }
    let message = line.text(start).to_owned();
    line.add("\n");
    line.add_hint(culprit);
    // The last words on the screen are the error.
    write_down(message);
    line.write();
    end(code)
}

/// Lets the host write the error down, on a thread of its own: this one may hold what the host needs.
fn write_down(message: String) {
    let hook = match HOOK.try_lock() {
        Ok(hook) => hook.clone(),
        Err(TryLockError::Poisoned(hook)) => hook.into_inner().clone(),
        Err(TryLockError::WouldBlock) => None,
    };
    let Some(hook) = hook else { return };
    let (tell, done) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("last words".to_owned())
        .spawn(move || {
            hook(&message);
            let _ = tell.send(());
        });
    if thread.is_ok() {
        let _ = done.recv_timeout(HOOK_LIMIT);
    }
}
