//! The functions of the host that plugins call. Each is `extern "C"` and lets no panic escape.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::time::Instant;

use host_plugin_abi::{HOST_ABI_MAJOR, HOST_ABI_MINOR, HostApi, HostStr};

use crate::log::{self, Flow, Level, LogRecord};

/// Maximum size in bytes of a message from a plugin. A longer message is truncated, with a note.
const LONGEST_MESSAGE: usize = 16 << 10;

thread_local! {
    /// The last message that a plugin passed to `set_error` on this thread. It contains the reason for a
    /// failure.
    static LAST_ERROR: RefCell<Option<String>> = const { RefCell::new(None) };
    /// Whether `LAST_ERROR` contains a message. This flag is faster to read, because `LAST_ERROR` has a
    /// destructor.
    static HAS_ERROR: Cell<bool> = const { Cell::new(false) };
}

/// The plugin that logs, and the rate of its log.
struct Context {
    plugin: String,
    flow: Flow,
}

/// Creates the host API for the plugin `id`. It lives until the process ends, because libraries are never
/// unloaded. The ABI guarantees this lifetime. Each library has its own host API.
pub fn host_api(id: &str) -> &'static HostApi {
    let context: &'static Context = Box::leak(Box::new(Context {
        plugin: id.to_owned(),
        flow: Flow::default(),
    }));
    Box::leak(Box::new(HostApi {
        struct_size: size_of::<HostApi>() as u32,
        abi_major: HOST_ABI_MAJOR,
        abi_minor: HOST_ABI_MINOR,
        reserved: 0,
        ctx: ptr::from_ref(context).cast_mut().cast(),
        log_enabled: Some(log_enabled),
        log: Some(write_log),
        set_error: Some(set_error),
        get_extension: Some(get_extension),
    }))
}

/// Returns the message that a plugin passed to `set_error` on this thread, as one line. Removes the message,
/// so the next call does not return it again.
pub fn take_error() -> Option<String> {
    if !HAS_ERROR.replace(false) {
        return None;
    }
    LAST_ERROR.with(|last| last.try_borrow_mut().ok()?.take())
}

/// Runs the body of a callback; returns `fallback` if it panics. A panic must not unwind into a plugin.
pub(crate) fn contained<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(fallback)
}

/// Returns the bytes of a plugin's string, if there are at most `longest`.
///
/// # Safety
/// `text` must be readable for `'a`.
pub(crate) unsafe fn bytes_of<'a>(text: HostStr, longest: usize) -> Option<&'a [u8]> {
    // SAFETY: the length is within the limit, and the caller guarantees that the text is readable.
    (text.len <= longest).then(|| unsafe { text.as_bytes() })
}

/// Converts a plugin's message to readable text: truncates it to the maximum length, and replaces invalid
/// UTF-8.
///
/// # Safety
/// `text` must be readable during the call.
pub unsafe fn message_of(text: HostStr) -> String {
    let kept = HostStr {
        ptr: text.ptr,
        len: text.len.min(LONGEST_MESSAGE),
    };
    // SAFETY: the truncated text is a part of the text, which the caller guarantees to be readable.
    let bytes = unsafe { kept.as_bytes() };
    let message = String::from_utf8_lossy(bytes).into_owned();
    match text.len == kept.len {
        true => message,
        false => message + &cut_off(text.len, LONGEST_MESSAGE),
    }
}

/// Truncates a text to at most `longest` bytes. Appends a note with the original length if the text was
/// longer.
pub(crate) fn cut(mut text: String, longest: usize) -> String {
    let length = text.len();
    if length > longest {
        text.truncate(text.floor_char_boundary(longest));
        text += &cut_off(length, longest);
    }
    text
}

fn cut_off(length: usize, longest: usize) -> String {
    format!("… (cut off: {length} bytes, more than {longest})")
}

/// Converts a message to one line without control characters.
pub(crate) fn one_line(message: &str) -> String {
    message
        .split(char::is_control)
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

unsafe extern "C" fn log_enabled(_: *mut c_void, level: i32) -> bool {
    log::is_kept(level)
}

unsafe extern "C" fn write_log(ctx: *mut c_void, level: i32, target: HostStr, message: HostStr) {
    contained((), || {
        if !log::is_kept(level) {
            return;
        }
        // SAFETY: the plugin passes the host's context, which lives forever, or null.
        let Some(context) = (unsafe { ctx.cast::<Context>().as_ref() }) else {
            return;
        };
        let (is_shown, news) = context.flow.admit(Instant::now());
        context.say(news);
        if is_shown {
            // SAFETY: by the ABI, both texts are readable until this function returns.
            let (target, message) = unsafe { (message_of(target), message_of(message)) };
            log::write(&LogRecord {
                level: Level::from_number(level),
                plugin: &context.plugin,
                target: &target,
                message: &message,
            });
        }
    });
}

/// Reports how many lines of the plugin's log were dropped. `api` must be from [`host_api`].
pub(crate) fn flush_log(api: &'static HostApi) {
    // SAFETY: the pointer is to the host's context, which lives forever.
    if let Some(context) = unsafe { api.ctx.cast::<Context>().as_ref() } {
        context.say(context.flow.left_out());
    }
}

impl Context {
    /// Logs `news`, a message of the host about the plugin's log. Does nothing if `news` is `None`.
    fn say(&self, news: Option<String>) {
        if let Some(message) = news {
            log::write(&LogRecord {
                level: Level::Warn,
                plugin: &self.plugin,
                target: log::HOST,
                message: &message,
            });
        }
    }
}

unsafe extern "C" fn set_error(_: *mut c_void, message: HostStr) {
    contained((), || {
        // SAFETY: by the ABI, the text is readable until this function returns.
        let message = one_line(&unsafe { message_of(message) });
        LAST_ERROR.with(|last| {
            if let Ok(mut last) = last.try_borrow_mut() {
                *last = Some(message).filter(|message| !message.is_empty());
                HAS_ERROR.set(last.is_some());
            }
        });
    });
}

/// Returns null, because no extension exists yet.
unsafe extern "C" fn get_extension(_: *mut c_void, _: HostStr) -> *const c_void {
    ptr::null()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_taken_once_and_is_one_line() {
        let api = host_api("x");
        let set_error = api.set_error.expect("set_error");
        // SAFETY: the text is readable during the call.
        unsafe { set_error(api.ctx, HostStr::from_bytes(b"a\n b\x1b[31m\xff\r\n")) };
        assert_eq!(take_error().as_deref(), Some("a b [31m\u{fffd}"));
        assert_eq!(take_error(), None);
    }

    #[test]
    fn a_long_message_is_cut_and_an_empty_message_is_dropped() {
        let api = host_api("x");
        let set_error = api.set_error.expect("set_error");
        let long = "x".repeat(LONGEST_MESSAGE + 1);
        // SAFETY: the text is readable during the call.
        unsafe { set_error(api.ctx, HostStr::new(&long)) };
        let taken = take_error().expect("an error");
        assert_eq!(taken.matches('x').count(), LONGEST_MESSAGE);
        let end = "… (cut off: 16385 bytes, more than 16384)";
        assert!(taken.ends_with(end), "{}", &taken[LONGEST_MESSAGE..]);
        let nothing = HostStr {
            ptr: ptr::null(),
            len: 0,
        };
        // SAFETY: an empty text may be null.
        unsafe { set_error(api.ctx, nothing) };
        assert_eq!(take_error(), None);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("aä".to_owned(), 3), "aä");
        let text = cut("aää".to_owned(), 4);
        assert_eq!(text, "aä… (cut off: 5 bytes, more than 4)");
    }

    #[test]
    fn no_extension_exists() {
        let api = host_api("x");
        let get = api.get_extension.expect("get_extension");
        // SAFETY: the id is readable during the call.
        assert!(unsafe { get(api.ctx, HostStr::new("host.any/1")) }.is_null());
    }
}
