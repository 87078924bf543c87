//! What a plugin leaves as it was: the process is the host's.

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
        |setup| unchanged(setup, "whether there are child processes", children),
    ),
    TOPIC.test("working-directory", "it stays where it is", |setup| {
        unchanged(setup, "the working directory", || {
            std::env::current_dir().map_or_else(|e| e.to_string(), |dir| dir.display().to_string())
        })
    }),
    TOPIC.test(
        "signal-handlers",
        "every signal is handled, ignored and blocked as before",
        |setup| unchanged(setup, "what happens on a signal", signals),
    ),
    TOPIC.test(
        "umask",
        "new files get the permissions as before",
        |setup| unchanged(setup, "the umask", umask),
    ),
    TOPIC.test("environment", "no variable is set or removed", |setup| {
        unchanged(setup, "the environment", environment)
    }),
    TOPIC.test(
        "locale",
        "numbers are read and written as before",
        |setup| unchanged(setup, "the locale", locale),
    ),
    TOPIC.test(
        "floating-point",
        "numbers are rounded, and tiny ones kept, as before",
        |setup| unchanged(setup, "the floating-point control word", floating_point),
    ),
    TOPIC.test(
        "openmp",
        "parallel regions take as many threads as before",
        |setup| unchanged(setup, "how OpenMP works", ProcessState::openmp),
    ),
    TOPIC.test(
        "resource-limits",
        "the limits of files, memory and the like are as before",
        |setup| unchanged(setup, "a resource limit", ProcessState::resource_limits),
    ),
    TOPIC.test(
        "standard-streams",
        "stdin, stdout and stderr stay open, and stay the files that they were",
        |setup| unchanged(setup, "a standard stream", ProcessState::streams),
    ),
    TOPIC.test(
        "scheduling",
        "the thread runs on the processors and with the priority as before",
        |setup| {
            unchanged(
                setup,
                "where and when the thread runs",
                ProcessState::scheduling,
            )
        },
    ),
    TOPIC.test("timers", "no timer is left that sends a signal", |setup| {
        unchanged(
            setup,
            "which timers run that send a signal",
            ProcessState::timers,
        )
    }),
    TOPIC.test(
        "stdout",
        "nothing is written to stdout, which is the host's",
        stdout,
    ),
];

/// The variables, without their values.
fn environment() -> String {
    let variables = raw::environment();
    let shown = variables.iter().map(|(name, value)| {
        let name = name.display().to_string().escape_debug().to_string();
        format!("{name}: a value#{value:x}\n")
    });
    shown.collect()
}

/// Looks before the load, after it, and after a short life of an instance.
fn unchanged(setup: &Setup, what: &str, look: fn() -> String) -> Verdict {
    let before = look();
    let library = load(setup);
    compare(what, "when it was loaded", &before, look())?;
    library?;
    let subject = Subject::load(setup)?;
    for _ in 0..3 {
        exercise(setup, &subject)?;
    }
    compare(what, "in the life of an instance", &before, look())
}

fn compare(what: &str, when: &str, before: &str, after: String) -> Verdict {
    if before == after {
        return Ok(());
    }
    let changes = changes(before, &after);
    Err(fault(
        format!("changed {what} {when}: {changes}"),
        "the process belongs to the host: a plugin leaves it as it was",
        "do without it, or put back what was there before the call returns; what a thread or a child \
         does ends with destroy",
    ))
}

/// The most changes that are listed one by one.
const MOST_CHANGES: usize = 8;

/// What differs between two looks, which have a line `NAME: VALUE` for each thing, or are one value.
/// What stands behind a `#` is compared and not told.
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
        None | Some("") => "nothing".to_owned(),
        Some(value) => value.to_owned(),
    };
    let changed = names.into_iter().filter_map(|name| {
        let (was, is) = (before.get(name), after.get(name));
        let (then, now) = (told(was), told(is));
        match name.as_str() {
            _ if was == is => None,
            "" => Some(format!("{then} became {now}")),
            name if then == now => Some(format!("{name} has another value")),
            name => Some(format!("{name}: {then} became {now}")),
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

/// A number that may still be going down to `expected`: the kernel forgets a thread that was joined
/// a moment later.
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
    // SAFETY: waits for nothing, and the status is not asked for.
    match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
        -1 => "none".to_owned(),
        0 => "some that run".to_owned(),
        _ => "one that was not waited for".to_owned(),
    }
}

fn signals() -> String {
    let mut all = String::new();
    for signal in 1..=64 {
        // SAFETY: zero is a valid sigaction, and asking changes nothing.
        let action = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &raw mut action) != 0 {
                continue;
            }
            action
        };
        let how = match action.sa_sigaction {
            libc::SIG_DFL => "the default".to_owned(),
            libc::SIG_IGN => "ignored".to_owned(),
            handler => format!("handled by {}", function_name(handler)),
        };
        // SAFETY: zero is a valid set, and asking changes nothing.
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

/// A function for people: `on_signal of the plugin`, `a function of libc.so.6`. The address stands behind
/// a `#`, since two functions may have one name.
fn function_name(address: usize) -> String {
    // SAFETY: a struct of pointers is valid when it is zero.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: the address is looked up and not followed, and the place is writable.
    let is_known = unsafe { libc::dladdr(address as *const libc::c_void, &raw mut info) } != 0;
    let text = |text: *const libc::c_char| {
        if text.is_null() {
            return None;
        }
        // SAFETY: `dladdr` gives C strings, which live as long as their library.
        let text = unsafe { CStr::from_ptr(text) };
        Some(text.to_string_lossy().into_owned())
    };
    let file = text(info.dli_fname)
        .filter(|_| is_known)
        .unwrap_or_default();
    // Of the function itself, and not of one that lies before it.
    let symbol = text(info.dli_sname).filter(|_| info.dli_saddr as usize == address);
    let function = symbol.unwrap_or_else(|| "a function".to_owned());
    let owner = match file.rsplit('/').next() {
        None | Some("") => "an unknown library".to_owned(),
        // The host loads a plugin from memory.
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
    let file = tempfile::tempfile().map_err(|error| cannot("make a file", &error))?;
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
            "stdout is the host's: events as JSON are written there",
            "use the API's log, or stderr while you search for an error",
        ));
    }
    lived
}

/// Stdout goes to a file until this is dropped.
struct Aside(i32);

impl Aside {
    fn new(file: &File) -> Result<Self, Stop> {
        // SAFETY: descriptors that are open; -1 is looked at.
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
        // SAFETY: writes out what C's stdio holds, then puts the old descriptor back.
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
    fn a_change_is_told_by_name_and_whole() {
        let signals = signals();
        assert!(signals.contains("SIGUSR1: the default\n"), "{signals}");
        let address = changes as *const () as usize;
        let handled = format!("SIGUSR1: handled by {}\n", function_name(address));
        let after = signals.replace("SIGUSR1: the default\n", &handled);
        let told = changes(&signals, &after);
        let start = "SIGUSR1: the default became handled by ";
        assert!(told.starts_with(start), "{told}");
        assert!(!told.contains("0x") && !told.contains('#'), "{told}");
        assert_eq!(
            changes("/a/very/long/folder", "/"),
            "/a/very/long/folder became /"
        );
    }

    #[test]
    fn a_variable_is_told_without_its_value() {
        let told = changes(
            "A: a value#1\nB: a value#2\n",
            "A: a value#3\nC: a value#4\n",
        );
        assert_eq!(
            told,
            "A has another value; B: a value became nothing; C: nothing became a value"
        );
    }

    #[test]
    fn many_changes_are_counted() {
        let after: String = (0..20).map(|n| format!("V{n}: x\n")).collect();
        assert!(changes("", &after).ends_with("; and 12 more"));
    }
}
