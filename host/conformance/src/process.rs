//! Tests of the process state that a plugin must not change, because it belongs to the host.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::child::cannot;
use crate::lifecycle::exercise;
use crate::setup::Setup;
use crate::subject::{Subject, load};
use crate::test::{Stop, Test, Topic, Verdict, fault};
use host_plugin::raw::signal_name;
use host_plugin::raw::{self, FloatingPoint, ProcessState};

const TOPIC: Topic = Topic {
    name: "process",
    kinds: &[],
};

pub(super) const TESTS: &[Test] = &[
    TOPIC.test("threads", "no thread outlives the instances", |setup| {
        unchanged(setup, "the number of threads", || {
            settled(1, threads).to_string()
        })
    }),
    TOPIC.test(
        "child-processes",
        "no child process outlives the instances",
        |setup| unchanged(setup, "the child processes", children),
    ),
    TOPIC.test(
        "working-directory",
        "the working directory does not change",
        |setup| {
            unchanged(setup, "the working directory", || {
                std::env::current_dir()
                    .map_or_else(|e| e.to_string(), |dir| dir.display().to_string())
            })
        },
    ),
    TOPIC.test(
        "signal-handlers",
        "the signal actions and the signal mask do not change",
        |setup| unchanged(setup, "the action for a signal", signals),
    ),
    TOPIC.test(
        "umask",
        "the umask (the permissions of new files) does not change",
        |setup| unchanged(setup, "the umask", umask),
    ),
    TOPIC.test(
        "environment",
        "no environment variable is set, changed or removed",
        |setup| unchanged(setup, "the environment", environment),
    ),
    TOPIC.test(
        "locale",
        "the locale, which includes the format of numbers, does not change",
        |setup| unchanged(setup, "the locale", locale),
    ),
    TOPIC.test(
        "floating-point",
        "the rounding of numbers and the handling of denormal numbers do not change",
        |setup| unchanged(setup, "the floating-point control word", floating_point),
    ),
    TOPIC.test(
        "openmp",
        "the number of threads of parallel regions does not change",
        |setup| unchanged(setup, "the OpenMP settings", ProcessState::openmp),
    ),
    TOPIC.test(
        "resource-limits",
        "the limits for files, memory and other resources do not change",
        |setup| unchanged(setup, "a resource limit", ProcessState::resource_limits),
    ),
    TOPIC.test(
        "standard-streams",
        "stdin, stdout and stderr stay open and refer to the same files",
        |setup| unchanged(setup, "a standard stream", ProcessState::streams),
    ),
    TOPIC.test(
        "scheduling",
        "the CPU affinity and the priority of the thread do not change",
        |setup| {
            unchanged(
                setup,
                "the scheduling of the thread",
                ProcessState::scheduling,
            )
        },
    ),
    TOPIC.test(
        "timers",
        "no timer that sends a signal is left running",
        |setup| unchanged(setup, "the timers that send a signal", ProcessState::timers),
    ),
    TOPIC.test(
        "stdout",
        "nothing is written to stdout, which belongs to the host",
        stdout,
    ),
];

/// Returns the environment variables, with hashes of their values.
fn environment() -> String {
    let variables = raw::environment();
    let shown = variables.iter().map(|(name, value)| {
        let name = name.display().to_string().escape_debug().to_string();
        format!("{name}: a value#{value:x}\n")
    });
    shown.collect()
}

/// Checks that a part of the process state does not change. Reads it before the plugin is loaded, after the
/// plugin is loaded, and after a few instances have been created and destroyed.
fn unchanged(setup: &Setup, what: &str, look: fn() -> String) -> Verdict {
    let before = look();
    let library = load(setup);
    compare(what, "while loading", &before, look())?;
    library?;
    let subject = Subject::load(setup)?;
    for _ in 0..3 {
        exercise(setup, &subject)?;
    }
    compare(what, "during the life of an instance", &before, look())
}

fn compare(what: &str, when: &str, before: &str, after: String) -> Verdict {
    if before == after {
        return Ok(());
    }
    let changes = changes(before, &after);
    Err(fault(
        format!("changed {what} {when}: {changes}"),
        "the process belongs to the host: a plugin does not change it",
        "avoid the change, or restore the previous state before the call returns; destroy ends every \
         thread and child process",
    ))
}

/// Maximum number of changes that are listed individually.
const MOST_CHANGES: usize = 8;

/// Returns the differences between two snapshots. A snapshot consists of lines `NAME: VALUE`, or of a single
/// value. Text after a `#` is compared but not printed.
fn changes(before: &str, after: &str) -> String {
    let read = |text: &str| -> BTreeMap<String, String> {
        let lines = text.lines().filter(|line| !line.is_empty());
        let pairs = lines.map(|line| line.split_once(": ").unwrap_or(("", line)));
        let owned = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        owned.collect()
    };
    let (before, after) = (read(before), read(after));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let told = |value: Option<&String>| match value.and_then(|value| value.split('#').next()) {
        None | Some("") => "none".to_owned(),
        Some(value) => value.to_owned(),
    };
    let changed = names.into_iter().filter_map(|name| {
        let (was, is) = (before.get(name), after.get(name));
        let (then, now) = (told(was), told(is));
        match name.as_str() {
            _ if was == is => None,
            "" => Some(format!("{then} -> {now}")),
            name if then == now => Some(format!("{name} has a different value")),
            name => Some(format!("{name}: {then} -> {now}")),
        }
    });
    let mut changed: Vec<String> = changed.collect();
    let more = changed.len().saturating_sub(MOST_CHANGES);
    if more > 0 {
        changed.truncate(MOST_CHANGES);
        changed.push(format!("and {more} more"));
    }
    changed.join("; ")
}

/// Repeats a measurement until the measured number has decreased to `expected`, or until 200 ms have passed.
/// The wait is necessary because the kernel removes a joined thread only after a short delay.
pub(super) fn settled(expected: u64, measure: fn() -> u64) -> u64 {
    let ends = Instant::now() + Duration::from_millis(200);
    loop {
        let now = measure();
        if now <= expected || Instant::now() >= ends {
            return now;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(super) fn threads() -> u64 {
    std::fs::read_dir("/proc/self/task").map_or(1, |tasks| tasks.count() as u64)
}

fn children() -> String {
    // SAFETY: the call does not block, and it may receive a null pointer because the status is not needed.
    match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
        -1 => "none".to_owned(),
        0 => "some running".to_owned(),
        _ => "one has exited without being waited for".to_owned(),
    }
}

fn signals() -> String {
    let mut all = String::new();
    for signal in 1..=64 {
        // SAFETY: zero is a valid sigaction, and reading changes nothing.
        let action = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &raw mut action) != 0 {
                continue;
            }
            action
        };
        let how = match action.sa_sigaction {
            libc::SIG_DFL => "default".to_owned(),
            libc::SIG_IGN => "ignored".to_owned(),
            handler => format!("handled by {}", function_name(handler)),
        };
        // SAFETY: zero is a valid signal set, and reading changes nothing.
        let is_blocked = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set);
            libc::sigismember(&raw const set, signal) == 1
        };
        let blocked = if is_blocked { ", blocked" } else { "" };
        all.push_str(&format!("{}: {how}{blocked}\n", signal_name(signal)));
    }
    all
}

/// Returns the name of a function for messages, such as `on_signal of the plugin` or
/// `a function of libc.so.6`. A `#` and the address follow the name, since two functions can have the same
/// name.
fn function_name(address: usize) -> String {
    // SAFETY: a struct of pointers is valid if all its bytes are zero.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: the address is only looked up, not dereferenced, and the struct is writable.
    let is_known = unsafe { libc::dladdr(address as *const libc::c_void, &raw mut info) } != 0;
    let text = |text: *const libc::c_char| {
        if text.is_null() {
            return None;
        }
        // SAFETY: `dladdr` returns C strings, which live as long as their library.
        let text = unsafe { CStr::from_ptr(text) };
        Some(text.to_string_lossy().into_owned())
    };
    let file = text(info.dli_fname)
        .filter(|_| is_known)
        .unwrap_or_default();
    // Accepts only the symbol of the function itself. `dladdr` may instead return the nearest symbol before
    // the function.
    let symbol = text(info.dli_sname).filter(|_| info.dli_saddr as usize == address);
    let function = symbol.unwrap_or_else(|| "a function".to_owned());
    let owner = match file.rsplit('/').next() {
        None | Some("") => "an unknown library".to_owned(),
        // The host loads plugins from memory files, whose paths begin like this.
        Some(_) if file.starts_with("/proc/self/fd/") => "the plugin".to_owned(),
        Some(name) => name.to_owned(),
    };
    format!("{function} of {owner}#{address:x}")
}

fn umask() -> String {
    raw::umask().map_or_else(String::new, |mask| format!("{mask:03o}"))
}

fn locale() -> String {
    raw::locale().to_string_lossy().into_owned()
}

fn floating_point() -> String {
    FloatingPoint::now().to_string()
}

fn stdout(setup: &Setup) -> Verdict {
    let file = tempfile::tempfile().map_err(|error| cannot("create a file", &error))?;
    let lived = {
        let _aside = Aside::new(&file)?;
        load(setup).map(drop).and_then(|()| {
            let subject = Subject::load(setup)?;
            exercise(setup, &subject)
        })
    };
    let mut said = Vec::new();
    let mut file = file;
    let read = file.rewind().and_then(|()| file.read_to_end(&mut said));
    read.map_err(|error| cannot("read a file", &error))?;
    if !said.is_empty() {
        let said: String = String::from_utf8_lossy(&said).chars().take(60).collect();
        return Err(fault(
            format!("wrote to stdout: {said:?}"),
            "stdout belongs to the host, which writes events as JSON there",
            "use the API's log, or stderr for debugging",
        ));
    }
    lived
}

/// Redirects stdout to a file until this is dropped.
struct Aside(i32);

impl Aside {
    fn new(file: &File) -> Result<Self, Stop> {
        // SAFETY: the descriptor is open; -1 is checked.
        let kept = unsafe { libc::dup(1) };
        // SAFETY: as above.
        if kept < 0 || unsafe { libc::dup2(file.as_raw_fd(), 1) } < 0 {
            return Err(cannot("redirect stdout", &std::io::Error::last_os_error()));
        }
        Ok(Self(kept))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // SAFETY: null is valid for `fflush` and flushes all C streams. The saved descriptor is open.
        unsafe {
            libc::fflush(std::ptr::null_mut());
            libc::dup2(self.0, 1);
            libc::close(self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_reported_by_name_and_in_full() {
        let signals = signals();
        assert!(signals.contains("SIGUSR1: default\n"), "{signals}");
        let address = changes as *const () as usize;
        let handled = format!("SIGUSR1: handled by {}\n", function_name(address));
        let after = signals.replace("SIGUSR1: default\n", &handled);
        let told = changes(&signals, &after);
        let start = "SIGUSR1: default -> handled by ";
        assert!(told.starts_with(start), "{told}");
        assert!(!told.contains("0x") && !told.contains('#'), "{told}");
        assert_eq!(
            changes("/a/very/long/folder", "/"),
            "/a/very/long/folder -> /"
        );
    }

    #[test]
    fn a_variable_is_reported_without_its_value() {
        let told = changes(
            "A: a value#1\nB: a value#2\n",
            "A: a value#3\nC: a value#4\n",
        );
        assert_eq!(
            told,
            "A has a different value; B: a value -> none; C: none -> a value"
        );
    }

    #[test]
    fn many_changes_are_counted() {
        let after: String = (0..20).map(|n| format!("V{n}: x\n")).collect();
        assert!(changes("", &after).ends_with("; and 12 more"));
    }
}
