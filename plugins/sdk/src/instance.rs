//! The value behind the host's opaque `instance` pointer, and `call`. All `[inst]` calls on the value pass
//! through `call`. It checks for null and poisoning, catches panics, and sets the error message.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};

use host_plugin_abi::{HOST_ERROR, HOST_OK, HOST_PANIC, HostApi, HostStatus, HostStr};
use serde::de::DeserializeOwned;

use crate::{Cancel, Error, Host, Result};

/// No call is running.
const IDLE: u8 = 0;
/// A call is running.
const BUSY: u8 = 1;
/// A call panicked. The value can be inconsistent, so later calls fail.
const POISONED: u8 = 2;

/// A plugin's value, its host, and the state of its calls.
///
/// `[any]` calls can arrive while an `[inst]` call runs, so only shared references to the instance are
/// created. The host promises to make one `[inst]` call at a time. `state` detects recursive calls and a host
/// that breaks this promise.
pub(crate) struct Instance<T> {
    host: Host,
    cancel: Cancel,
    state: AtomicU8,
    value: UnsafeCell<T>,
}

// SAFETY: the value is `Send`. Only `[inst]` calls access it, and the host makes one such call at a time.
unsafe impl<T: Send> Sync for Instance<T> {}

/// Implements `create` for all kinds of plugins.
///
/// # Safety
/// The arguments must be valid according to the ABI.
pub(crate) unsafe fn create<T: Send, C: DeserializeOwned>(
    plugin: &'static str,
    api: *const HostApi,
    config_json: HostStr,
    instance: *mut *mut c_void,
    make: fn(C, Host) -> Result<T>,
) -> HostStatus {
    // SAFETY: guaranteed by the host.
    let Ok(host) = (unsafe { Host::new(api, plugin) }) else {
        return HOST_ERROR;
    };
    if instance.is_null() {
        host.set_error("the host passed a null instance pointer");
        return HOST_ERROR;
    }
    // SAFETY: the pointer is not null, and the host guarantees that it is writable.
    unsafe { instance.write(std::ptr::null_mut()) };
    let made = catch_unwind(|| {
        // SAFETY: the host guarantees that the text is readable during this call. It is not used later.
        let config = unsafe { text(config_json, "the configuration") }?;
        // serde would also deserialize a struct from a list, but settings are always an object.
        if !config.trim_start().starts_with('{') {
            return Err(Error::new("bad configuration: not a JSON object"));
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

/// Implements `destroy` for all kinds of plugins. A panic in the value's `drop` is caught and logged.
///
/// # Safety
/// `instance` is null, or it was created by `create` with the same `T` and is not used again.
pub(crate) unsafe extern "C" fn destroy<T: Send>(instance: *mut c_void) {
    if instance.is_null() {
        return;
    }
    // SAFETY: `create` created the instance, which is valid until the `Box` below is dropped.
    let (host, busy) = unsafe {
        let shared = &*instance.cast::<Instance<T>>();
        (shared.host, shared.state.load(Ordering::Acquire) == BUSY)
    };
    if busy {
        host.error("destroyed while a call was running; its memory is not freed");
        return;
    }
    let dropped = catch_unwind(|| {
        // SAFETY: `create` made the pointer from a `Box`, and no call is running.
        drop(unsafe { Box::from_raw(instance.cast::<Instance<T>>()) });
    });
    if let Err(payload) = dropped {
        host.error(panicked(payload).message());
    }
}

/// Performs an `[inst]` call.
///
/// # Safety
/// `instance` is null, or it was created by `create` with the same `T` and is not destroyed. No other thread
/// is in an `[inst]` call on it.
pub(crate) unsafe fn call<T: Send>(
    instance: *mut c_void,
    body: impl FnOnce(&mut T, &Cancel) -> Result<()>,
) -> HostStatus {
    if instance.is_null() {
        // Without an instance there is no host to send an error message to.
        return HOST_ERROR;
    }
    // SAFETY: the caller guarantees that the instance is valid. The reference is shared, because `cancel` can
    // be called at the same time.
    let shared = unsafe { &*instance.cast::<Instance<T>>() };
    match shared.state.load(Ordering::Acquire) {
        // A load and a store are enough, because no other thread is in a call. An atomic exchange would cost
        // more than the rest of the call.
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
    // SAFETY: no other thread is in a call. `state` was idle, so no call of this thread borrows the value.
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

/// Asks the running call to end soon. `[any]`
///
/// # Safety
/// See [`call`].
pub(crate) unsafe fn cancel<T: Send>(instance: *mut c_void) {
    if !instance.is_null() {
        // SAFETY: the caller guarantees that the instance is valid. An `[inst]` call mutably borrows only the
        // value, and the flag is outside the value.
        unsafe { &*instance.cast::<Instance<T>>() }.cancel.request();
    }
}

/// Returns the text of a view.
///
/// # Safety
/// The view is readable and unchanged for `'a`.
pub(crate) unsafe fn text<'a>(view: HostStr, what: &str) -> Result<&'a str> {
    if view.ptr.is_null() && view.len > 0 {
        return Err(Error::new(format!("the host passed {what} as null")));
    }
    // SAFETY: guaranteed by the caller.
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
    // Dropping the payload can panic. The payload of that panic is leaked, because dropping it can panic too.
    if let Err(worse) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(worse);
    }
    Error::with_status(HOST_PANIC, message)
}
