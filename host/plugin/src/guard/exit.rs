//! Handles a plugin that ends the host's process with `exit`, `quick_exit` or `_exit`. The plugin can do so
//! in a call, in a constructor or on its own thread. The process then reports which plugin ended it, and
//! exits with the code for plugin faults, regardless of the code that the plugin passed.
//!
//! This module defines these functions, so every library in the process calls the program's definitions
//! instead of libc's. An `on_exit` handler alone would run too late: libtorch registers handlers during
//! training, and these would run first and destroy data that the training thread is using. The module also
//! registers `on_exit` handlers, for exits that bypass the definitions, such as an exit by libc's `err`. A
//! plugin that ends the process with a system call of its own, or replaces the program (`exec`), is not
//! detected; only a parent process could detect that.

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

/// The id of the guarded process; 0 before it is guarded. A process that a plugin forks has another id, and
/// may exit in any way.
static HOST: AtomicI32 = AtomicI32::new(0);
/// Set when the host itself ends the process.
static IS_ENDING: AtomicBool = AtomicBool::new(false);
/// Set when a plugin ends the process.
static IS_ENDED: AtomicBool = AtomicBool::new(false);
/// Set in a process that was forked from this process.
static IS_FORKED: AtomicBool = AtomicBool::new(false);
/// Above 0 if a plugin library was loaded or is being loaded.
static LOADED: AtomicUsize = AtomicUsize::new(0);

type Hook = Arc<dyn Fn(&str) + Send + Sync>;
static HOOK: Mutex<Option<Hook>> = Mutex::new(None);

/// Maximum time to wait for the hook when a plugin ends the process.
const HOOK_LIMIT: Duration = Duration::from_secs(3);
/// Maximum time that `end_process` waits until the buffers of C streams are flushed.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Sets the hook. When a plugin ends the process, the hook is called with the error, on a separate thread.
/// The process waits for the hook, but only for a few seconds, and then ends.
pub fn on_exit_by_plugin(hook: Option<impl Fn(&str) + Send + Sync + 'static>) {
    let hook = hook.map(|hook| Arc::new(hook) as Hook);
    *HOOK.lock().unwrap_or_else(PoisonError::into_inner) = hook;
}

/// If plugins were loaded into the process, ends it with this exit code. Otherwise, returns. Does not run the
/// plugins' destructors, because they could end the process with another code. `[main]`
pub fn end_process(code: u8) {
    if LOADED.load(Ordering::Relaxed) == 0 {
        return;
    }
    IS_ENDING.store(true, Ordering::Relaxed);
    // If a plugin is ending the process on another thread, waits forever. That thread ends the process within
    // a few seconds.
    while IS_ENDED.load(Ordering::Relaxed) {
        std::thread::park();
    }
    let _ = std::io::stdout().flush();
    let (tell, flushed) = std::sync::mpsc::sync_channel(1);
    let flush = move || {
        // SAFETY: null is a valid argument; it flushes all C streams, to which a plugin may have printed.
        unsafe { libc::fflush(std::ptr::null_mut()) };
        let _ = tell.send(());
    };
    // The flush runs on a separate thread, because a thread of a plugin may hold the lock of a stream
    // forever.
    let thread = std::thread::Builder::new()
        .name("flush".to_owned())
        .spawn(flush);
    if thread.is_ok() {
        let _ = flushed.recv_timeout(FLUSH_LIMIT);
    }
    end(c_int::from(code))
}

/// Starts to detect that a plugin ends this process.
pub(super) fn guard() {
    // SAFETY: the call cannot fail.
    HOST.store(unsafe { libc::getpid() }, Ordering::Relaxed);
    listen();
    extern "C" fn forked() {
        IS_FORKED.store(true, Ordering::Relaxed);
    }
    // SAFETY: the handler is a function of this program, which is never unloaded.
    unsafe { libc::pthread_atfork(None, None, Some(forked)) };
    // Prevents the linker from removing the definitions below.
    let own: [unsafe extern "C" fn(c_int) -> !; 4] = [exit, quick_exit, _exit, _Exit];
    std::hint::black_box(own);
}

/// Registers the exit handlers again. Must be called before and after a plugin's library is loaded. Handlers
/// run in reverse order of registration, so the new handlers run before those that the library registered.
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

/// Must be called when a call into a plugin has returned. Ends this process if the plugin created it by
/// forking the host. Without this check, the fork would continue as a second host on the same run.
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
    line.add(" forked the host process; the child process returned from ");
    line.add(call);
    line.add(" and was terminated\n");
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

/// Whether a plugin caused the exit in progress. Once a plugin is loaded, the host itself exits only through
/// `end_process`, so any other exit was caused by a plugin.
fn is_by_plugin() -> bool {
    LOADED.load(Ordering::Relaxed) > 0 && !IS_ENDING.load(Ordering::Relaxed) && is_host()
}

/// Replaces libc's function for all libraries of this process.
///
/// # Safety
/// The requirements are those of libc's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn exit(status: c_int) -> ! {
    if is_by_plugin() {
        by_plugin("exit", Some(status));
    }
    // SAFETY: the caller fulfils the requirements of libc's function.
    unsafe { of_libc(c"exit", status) }
}

/// Replaces libc's function for all libraries of this process.
///
/// # Safety
/// The requirements are those of libc's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn quick_exit(status: c_int) -> ! {
    if is_by_plugin() {
        by_plugin("quick_exit", Some(status));
    }
    // SAFETY: the caller fulfils the requirements of libc's function.
    unsafe { of_libc(c"quick_exit", status) }
}

/// Calls libc's function of this name, which ends the process.
///
/// # Safety
/// `name` must name a function that takes a status and does not return.
unsafe fn of_libc(name: &CStr, status: c_int) -> ! {
    // SAFETY: the name is a zero-terminated string. By the caller's guarantee, the function has this type.
    unsafe {
        let found = libc::dlsym(libc::RTLD_NEXT, name.as_ptr());
        if !found.is_null() {
            let function: unsafe extern "C" fn(c_int) -> ! = std::mem::transmute(found);
            function(status);
        }
    }
    end(status)
}

/// Replaces libc's function for all libraries of this process.
///
/// # Safety
/// The requirements are those of libc's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn _exit(status: c_int) -> ! {
    // The host itself calls this function only because of a signal. The status is then at least 128, and the
    // thread is not in a call into a plugin.
    let is_expected =
        under_way::on_this_thread().is_none_or(|call| call.is_remote) && status >= 128;
    if is_by_plugin() && !is_expected {
        by_plugin("_exit", Some(status));
    }
    end(status)
}

/// Replaces libc's function for all libraries of this process. It is an alias of `_exit`.
///
/// # Safety
/// The requirements are those of libc's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn _Exit(status: c_int) -> ! {
    // SAFETY: `_exit` has the same requirements.
    unsafe { _exit(status) }
}

fn end(status: c_int) -> ! {
    loop {
        // SAFETY: the call has no requirements; it ends all threads of the process.
        unsafe { libc::syscall(libc::SYS_exit_group, status) };
    }
}

/// Reports which plugin ended the process, calls the hook, and ends the process.
fn by_plugin(how: &str, status: Option<c_int>) -> ! {
    let code = c_int::from(ErrorKind::Plugin.exit_code());
    if IS_ENDED.swap(true, Ordering::Relaxed) {
        // Another thread is already running this function, or the hook itself ended the process.
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
        None => line.add(" from its own thread"),
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
    // The line is written after the hook has run, so that the error is the last line on the screen.
    write_down(message);
    line.write();
    end(code)
}

/// Runs the hook on a separate thread, because this thread may hold locks that the host needs.
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
