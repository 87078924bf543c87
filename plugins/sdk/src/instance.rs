//! What the host's opaque `instance` pointer points to, and the one door through which every call
//! goes in: null check, poison check, `catch_unwind`, error text.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};

use host_plugin_abi::{HOST_ERROR, HOST_OK, HOST_PANIC, HostApi, HostStatus, HostStr};
use serde::de::DeserializeOwned;

use crate::{Cancel, Error, Host, Result};

/// Nobody is inside.
const IDLE: u8 = 0;
/// A call is running.
const BUSY: u8 = 1;
/// A call panicked, so the value may be half changed and nobody enters again.
const POISONED: u8 = 2;

/// A plugin's value and what surrounds it.
///
/// `[any]` calls reach it while an `[inst]` call runs, so it is only ever borrowed shared. That
/// `[inst]` calls come one at a time is the host's promise; `state` notices a host that breaks it, and a
/// call from within a call.
pub(crate) struct Instance<T> {
    host: Host,
    cancel: Cancel,
    state: AtomicU8,
    value: UnsafeCell<T>,
}

// SAFETY: the host lets one thread at a time at the value, which is `Send`.
unsafe impl<T: Send> Sync for Instance<T> {}

/// `create` of every kind.
///
/// # Safety
/// The arguments are those that the ABI promises.
pub(crate) unsafe fn create<T: Send, C: DeserializeOwned>(
    plugin: &'static str,
    api: *const HostApi,
    config_json: HostStr,
    instance: *mut *mut c_void,
    make: fn(C, Host) -> Result<T>,
) -> HostStatus {
    // SAFETY: the host's promise.
    let Ok(host) = (unsafe { Host::new(api, plugin) }) else {
        return HOST_ERROR;
    };
    if instance.is_null() {
        host.set_error("the host passed no place for the instance");
        return HOST_ERROR;
    }
    // SAFETY: not null, and the host promises that it can be written to.
    unsafe { instance.write(std::ptr::null_mut()) };
    let made = catch_unwind(|| {
        // SAFETY: the host's promise; the text is not used after this call.
        let config = unsafe { text(config_json, "the configuration") }?;
        // serde would read a struct from a list as well, which no schema of settings means.
        if !config.trim_start().starts_with('{') {
            return Err(Error::new("bad configuration: it is no JSON object"));
        }
        let config = serde_json::from_str(config)
            .map_err(|error| Error::new(format!("bad configuration: {error}")))?;
        make(config, host)
    });
    match made {
        Ok(Ok(value)) => {
            let made = Box::new(Instance {
                host,
                cancel: Cancel::default(),
                state: AtomicU8::new(IDLE),
                value: UnsafeCell::new(value),
            });
            // SAFETY: as above.
            unsafe { instance.write(Box::into_raw(made).cast()) };
            HOST_OK
        }
        Ok(Err(error)) => fail(host, &error),
        Err(payload) => fail(host, &panicked(payload)),
    }
}

/// `destroy` of every kind. A panic in the value's `drop` is logged and goes no further.
///
/// # Safety
/// `instance` is null, or `create` made it of the same `T` and it is not used again.
pub(crate) unsafe extern "C" fn destroy<T: Send>(instance: *mut c_void) {
    if instance.is_null() {
        return;
    }
    // SAFETY: `create` made it, and it lives until the end of this function.
    let (host, busy) = unsafe {
        let shared = &*instance.cast::<Instance<T>>();
        (shared.host, shared.state.load(Ordering::Acquire) == BUSY)
    };
    if busy {
        host.error("destroyed while a call was running; its memory is left alone");
        return;
    }
    let dropped = catch_unwind(|| {
        // SAFETY: it is the `Box` of `create`, and no call is inside.
        drop(unsafe { Box::from_raw(instance.cast::<Instance<T>>()) });
    });
    if let Err(payload) = dropped {
        host.error(panicked(payload).message());
    }
}

/// An `[inst]` call.
///
/// # Safety
/// `instance` is null, or `create` made it of the same `T` and it is not destroyed, and no other thread
/// is in an `[inst]` call of it.
pub(crate) unsafe fn call<T: Send>(
    instance: *mut c_void,
    body: impl FnOnce(&mut T, &Cancel) -> Result<()>,
) -> HostStatus {
    if instance.is_null() {
        // Only an instance knows the host, so this one failure has no text.
        return HOST_ERROR;
    }
    // SAFETY: the caller's promise; shared, as `cancel` may come meanwhile.
    let shared = unsafe { &*instance.cast::<Instance<T>>() };
    match shared.state.load(Ordering::Acquire) {
        // Not one locked step, which would cost more than all the rest of the call: nobody else is
        // here to come between.
        IDLE => shared.state.store(BUSY, Ordering::Relaxed),
        POISONED => {
            let error = Error::with_status(HOST_PANIC, "panicked in an earlier call");
            return fail(shared.host, &error);
        }
        _ => {
            let error = Error::new("called while another call of this instance was running");
            return fail(shared.host, &error);
        }
    }
    // SAFETY: no other thread is here, and `state` was idle, so no call of this thread holds the value.
    let value = unsafe { &mut *shared.value.get() };
    let ended = catch_unwind(AssertUnwindSafe(|| body(value, &shared.cancel)));
    let left = if ended.is_ok() { IDLE } else { POISONED };
    shared.state.store(left, Ordering::Release);
    match ended {
        Ok(Ok(())) => HOST_OK,
        Ok(Err(error)) => fail(shared.host, &error),
        Err(payload) => fail(shared.host, &panicked(payload)),
    }
}

/// Asks the call that is running to end soon. `[any]`
///
/// # Safety
/// As for [`call`].
pub(crate) unsafe fn cancel<T: Send>(instance: *mut c_void) {
    if !instance.is_null() {
        // SAFETY: the caller's promise; the flag lies outside what an `[inst]` call borrows.
        unsafe { &*instance.cast::<Instance<T>>() }.cancel.request();
    }
}

/// The text of a view.
///
/// # Safety
/// The view is readable and unchanged for `'a`.
pub(crate) unsafe fn text<'a>(view: HostStr, what: &str) -> Result<&'a str> {
    if view.ptr.is_null() && view.len > 0 {
        return Err(Error::new(format!("the host passed {what} as null")));
    }
    // SAFETY: the caller's promise.
    unsafe { view.as_str() }
        .map_err(|_| Error::new(format!("the host passed {what} that is not UTF-8")))
}

fn fail(host: Host, error: &Error) -> HostStatus {
    host.set_error(error.message());
    error.status()
}

fn panicked(payload: Box<dyn Any + Send>) -> Error {
    let message = match payload.downcast_ref::<&str>() {
        Some(text) => format!("panicked: {text}"),
        None => match payload.downcast_ref::<String>() {
            Some(text) => format!("panicked: {text}"),
            None => "panicked with a value that is not text".to_owned(),
        },
    };
    // A payload may panic when dropped, and so may the payload of that panic.
    if let Err(worse) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(worse);
    }
    Error::with_status(HOST_PANIC, message)
}
