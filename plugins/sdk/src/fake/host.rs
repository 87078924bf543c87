use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use host_plugin_abi::{
    HOST_ABI_MAJOR, HOST_ABI_MINOR, HOST_CANCELLED, HOST_OK, HOST_PANIC, HOST_TEMPORARY,
    HOST_UNSUPPORTED, HostApi, HostStatus, HostStr,
};

/// A failed call.
///
/// ```
/// use host_plugin_sdk::{abi, fake::Failure};
///
/// let message = "no network".to_owned();
/// let failure = Failure { status: abi::HOST_TEMPORARY, message };
/// assert!(failure.is_temporary());
/// assert!(!failure.is_panic() && !failure.is_unsupported() && !failure.is_cancelled());
/// assert_eq!(failure.to_string(), "status 5: no network");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The status that the plugin returned: one of the ABI's `HOST_*`.
    pub status: HostStatus,
    /// The message that the plugin passed to `set_error`; empty if the plugin did not call it.
    pub message: String,
}

impl Failure {
    /// Whether the plugin panicked.
    pub fn is_panic(&self) -> bool {
        self.status == HOST_PANIC
    }

    /// Whether the call is not supported.
    pub fn is_unsupported(&self) -> bool {
        self.status == HOST_UNSUPPORTED
    }

    /// Whether the call ended because of `cancel`.
    pub fn is_cancelled(&self) -> bool {
        self.status == HOST_CANCELLED
    }

    /// Whether a retry can succeed.
    pub fn is_temporary(&self) -> bool {
        self.status == HOST_TEMPORARY
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}: {}", self.status, self.message)
    }
}

impl std::error::Error for Failure {}

/// The state of a fake host. It is never freed, because a plugin can use its host until the process ends.
#[derive(Debug, Default)]
pub(crate) struct Host {
    log: Mutex<Vec<String>>,
    errors: Mutex<HashMap<ThreadId, String>>,
}

impl Host {
    pub(crate) fn new() -> &'static Self {
        Box::leak(Box::default())
    }

    pub(crate) fn api(&'static self) -> *const HostApi {
        Box::leak(Box::new(HostApi {
            ctx: (&raw const *self).cast_mut().cast(),
            ..api()
        }))
    }

    pub(crate) fn log(&self) -> Vec<String> {
        lock(&self.log).clone()
    }

    /// Converts a status to a result. A failure contains this thread's error message.
    pub(crate) fn ended(&self, status: HostStatus) -> Result<(), Failure> {
        let message = lock(&self.errors).remove(&thread::current().id());
        if status == HOST_OK {
            return Ok(());
        }
        let message = message.unwrap_or_default();
        Err(Failure { status, message })
    }
}

/// Returns the table of a fake host's functions, for tests that modify it. Its `ctx` is null, so log lines
/// and error messages are lost.
///
/// ```
/// use host_plugin_sdk::{abi, fake};
///
/// let older = abi::HostApi { log: None, ..fake::api() };
/// assert!(older.log.is_none() && older.abi_major == abi::HOST_ABI_MAJOR);
/// ```
pub fn api() -> HostApi {
    HostApi {
        struct_size: size_of::<HostApi>() as u32,
        abi_major: HOST_ABI_MAJOR,
        abi_minor: HOST_ABI_MINOR,
        reserved: 0,
        ctx: std::ptr::null_mut(),
        log_enabled: Some(log_enabled),
        log: Some(log),
        set_error: Some(set_error),
        get_extension: Some(get_extension),
    }
}

/// Returns a host's handle, as passed to `create`, and a function that returns the lines logged so far.
///
/// ```
/// let (host, log) = host_plugin_sdk::fake::host();
/// host.warn("the folder is full");
/// assert_eq!(log(), ["warn: the folder is full"]);
/// ```
pub fn host() -> (crate::Host, impl Fn() -> Vec<String>) {
    let host = Host::new();
    // SAFETY: the table is leaked, so it is valid until the process ends.
    let handle = unsafe { crate::Host::new(host.api(), "test") }.expect("a valid table");
    (handle, || host.log())
}

/// Locks a mutex. Ignores poisoning, because the panic that caused it has already failed its test.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies the text of a view.
///
/// # Safety
/// The view is readable until the callback returns.
pub(crate) unsafe fn copied(view: HostStr) -> String {
    // SAFETY: guaranteed by the caller.
    String::from_utf8_lossy(unsafe { view.as_bytes() }).into_owned()
}

/// Returns the host behind `ctx`.
///
/// # Safety
/// `ctx` is null or a leaked [`Host`].
unsafe fn remembered(ctx: *mut c_void) -> Option<&'static Host> {
    // SAFETY: guaranteed by the caller.
    unsafe { ctx.cast::<Host>().as_ref() }
}

unsafe extern "C" fn log_enabled(_ctx: *mut c_void, _level: i32) -> bool {
    true
}

unsafe extern "C" fn log(ctx: *mut c_void, level: i32, _target: HostStr, message: HostStr) {
    let level = match level {
        host_plugin_abi::HOST_LOG_ERROR => "error",
        host_plugin_abi::HOST_LOG_WARN => "warn",
        host_plugin_abi::HOST_LOG_INFO => "info",
        host_plugin_abi::HOST_LOG_DEBUG => "debug",
        _ => "?",
    };
    // SAFETY: the plugin passes the table's `ctx`, and a view that is valid until this function returns.
    if let (Some(host), message) = unsafe { (remembered(ctx), copied(message)) } {
        lock(&host.log).push(format!("{level}: {message}"));
    }
}

unsafe extern "C" fn set_error(ctx: *mut c_void, message: HostStr) {
    // SAFETY: as in `log`.
    if let (Some(host), message) = unsafe { (remembered(ctx), copied(message)) } {
        lock(&host.errors).insert(thread::current().id(), message);
    }
}

unsafe extern "C" fn get_extension(_ctx: *mut c_void, _id: HostStr) -> *const c_void {
    std::ptr::null()
}
