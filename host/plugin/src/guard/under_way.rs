use std::cell::Cell;
use std::fmt;
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A plugin's id. It is never freed, so that a signal handler can read it at any time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PluginName(Box<str>);

impl Deref for PluginName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns the [`PluginName`] of a plugin id. The same id always gives the same reference.
pub(crate) fn name_of(id: &str) -> &'static PluginName {
    static NAMES: Mutex<Vec<&'static PluginName>> = Mutex::new(Vec::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    match names.iter().find(|name| &*name.0 == id) {
        Some(name) => name,
        None => {
            let name: &'static PluginName = Box::leak(Box::new(PluginName(id.into())));
            names.push(name);
            name
        }
    }
}

/// The running call of a thread. Only this thread writes it, and other threads can read it at any time. It is
/// never freed, which is acceptable because few threads call plugins.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// A counter that is odd while a call is running.
    turn: AtomicU64,
    plugin: AtomicPtr<PluginName>,
    call: AtomicPtr<u8>,
    call_length: AtomicUsize,
    /// Whether the plugin runs in a child process.
    is_remote: AtomicBool,
    /// Time limit of the call in milliseconds; 0 without a limit.
    limit_ms: AtomicU64,
}

/// A running call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// A number that differs between the calls of a thread.
    pub(super) turn: u64,
    pub(super) plugin: &'static PluginName,
    pub(super) name: &'static str,
    pub(super) is_remote: bool,
    pub(super) limit: Option<Duration>,
}

static PLACES: Mutex<Vec<&'static Place>> = Mutex::new(Vec::new());

thread_local! {
    /// The place of this thread. The variable has no destructor, so a signal handler can read it.
    static HERE: Cell<Option<&'static Place>> = const { Cell::new(None) };
}

/// Marks a call as running on this thread, until this value is dropped.
pub(crate) struct UnderWay(&'static Place);

impl UnderWay {
    /// Marks a call into a plugin in this process.
    #[inline]
    pub(crate) fn here(plugin: &'static PluginName, call: &'static str) -> Self {
        Self::begin(plugin, call, false, Duration::ZERO)
    }

    /// Marks a call into a plugin in a child process, with this time limit.
    pub(crate) fn in_child(
        plugin: &'static PluginName,
        call: &'static str,
        limit: Duration,
    ) -> Self {
        Self::begin(plugin, call, true, limit)
    }

    #[inline]
    fn begin(
        plugin: &'static PluginName,
        call: &'static str,
        is_remote: bool,
        limit: Duration,
    ) -> Self {
        let place = HERE.get().unwrap_or_else(Place::make);
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        place
            .plugin
            .store(ptr::from_ref(plugin).cast_mut(), Ordering::Relaxed);
        place
            .call
            .store(call.as_ptr().cast_mut(), Ordering::Relaxed);
        place.call_length.store(call.len(), Ordering::Relaxed);
        place.is_remote.store(is_remote, Ordering::Relaxed);
        place.limit_ms.store(limit, Ordering::Relaxed);
        let turn = place.turn.load(Ordering::Relaxed);
        place.turn.store(turn + 1, Ordering::Release);
        Self(place)
    }
}

impl Drop for UnderWay {
    #[inline]
    fn drop(&mut self) {
        let turn = self.0.turn.load(Ordering::Relaxed);
        self.0.turn.store(turn + 1, Ordering::Release);
        // Orders all later writes after this write.
        fence(Ordering::Release);
    }
}

impl Place {
    #[cold]
    fn make() -> &'static Self {
        let place: &'static Self = Box::leak(Box::default());
        PLACES
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(place);
        HERE.set(Some(place));
        place
    }

    /// Returns the running call, if there is one. Reads the data again if another thread changed it during
    /// the read.
    fn call(&self) -> Option<Call> {
        loop {
            let turn = self.turn.load(Ordering::Acquire);
            if turn.is_multiple_of(2) {
                return None;
            }
            let plugin = self.plugin.load(Ordering::Relaxed);
            let text = self.call.load(Ordering::Relaxed);
            let length = self.call_length.load(Ordering::Relaxed);
            let is_remote = self.is_remote.load(Ordering::Relaxed);
            let limit_ms = self.limit_ms.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            if self.turn.load(Ordering::Relaxed) != turn {
                continue;
            }
            // SAFETY: the pointers were stored from references that live as long as the process. They belong
            // to the same call, since the turn is the same before and after reading them.
            let (plugin, name) = unsafe {
                let text = std::slice::from_raw_parts(text, length);
                (&*plugin, std::str::from_utf8_unchecked(text))
            };
            return Some(Call {
                turn,
                plugin,
                name,
                is_remote,
                limit: (limit_ms > 0).then(|| Duration::from_millis(limit_ms)),
            });
        }
    }
}

/// Returns the call that is running on this thread. A signal handler may call this function.
pub(super) fn on_this_thread() -> Option<Call> {
    HERE.get()?.call()
}

/// Returns all running calls, each with the index of its thread's place.
pub(super) fn everywhere() -> Vec<(usize, Call)> {
    let places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    let calls = places.iter().enumerate();
    calls
        .filter_map(|(number, place)| Some((number, place.call()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_recorded_from_its_start_to_its_end() {
        let plugin = name_of("under-way");
        assert!(std::ptr::eq(plugin, name_of("under-way")));
        assert!(on_this_thread().is_none());
        let first = UnderWay::here(plugin, "update");
        let call = on_this_thread().expect("a call");
        assert_eq!((&**call.plugin, call.name), ("under-way", "update"));
        assert_eq!((call.is_remote, call.limit), (false, None));
        drop(first);
        assert!(on_this_thread().is_none());
        let _second = UnderWay::in_child(plugin, "compute", Duration::from_secs(3));
        let next = on_this_thread().expect("a call");
        assert_ne!(next.turn, call.turn);
        assert_eq!(
            (next.name, next.limit),
            ("compute", Some(Duration::from_secs(3)))
        );
        let all = everywhere();
        assert!(all.iter().any(|(_, call)| call.plugin == plugin), "{all:?}");
    }
}
