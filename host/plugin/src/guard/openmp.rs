//! Accesses the OpenMP runtime of this process, if it has one. The runtime is part of libtorch. A program
//! that only serves plugins has no OpenMP runtime.

use std::ffi::{CStr, c_int};
use std::sync::OnceLock;

/// The runtime's functions that get and set a parameter for new parallel regions of this thread.
#[derive(Clone, Copy)]
struct Setting {
    get: unsafe extern "C" fn() -> c_int,
    set: unsafe extern "C" fn(c_int),
}

/// Returns how many threads this thread may use for a parallel region; 0 without a runtime.
#[inline]
pub(super) fn threads() -> i32 {
    get(&THREADS, c"omp_get_max_threads", c"omp_set_num_threads")
}

pub(super) fn set_threads(count: i32) {
    set(&THREADS, count);
}

/// Returns 1 if the runtime may use fewer threads than requested, otherwise 0.
#[inline]
pub(super) fn is_dynamic() -> i32 {
    get(&DYNAMIC, c"omp_get_dynamic", c"omp_set_dynamic")
}

pub(super) fn set_dynamic(is_dynamic: i32) {
    set(&DYNAMIC, is_dynamic);
}

/// Returns the maximum number of nested active parallel regions.
#[inline]
pub(super) fn levels() -> i32 {
    get(
        &LEVELS,
        c"omp_get_max_active_levels",
        c"omp_set_max_active_levels",
    )
}

pub(super) fn set_levels(levels: i32) {
    set(&LEVELS, levels);
}

static THREADS: OnceLock<Option<Setting>> = OnceLock::new();
static DYNAMIC: OnceLock<Option<Setting>> = OnceLock::new();
static LEVELS: OnceLock<Option<Setting>> = OnceLock::new();

#[inline]
fn get(setting: &OnceLock<Option<Setting>>, get: &CStr, set: &CStr) -> i32 {
    match setting.get_or_init(|| Setting::find(get, set)) {
        // SAFETY: the function belongs to the runtime, and any thread may call it.
        Some(setting) => unsafe { (setting.get)() },
        None => 0,
    }
}

fn set(setting: &OnceLock<Option<Setting>>, value: i32) {
    if let Some(Some(setting)) = setting.get() {
        // SAFETY: as in `get`; the value came from the runtime.
        unsafe { (setting.set)(value) };
    }
}

impl Setting {
    fn find(get: &CStr, set: &CStr) -> Option<Self> {
        // SAFETY: the names are zero-terminated strings. The OpenMP standard defines these types for the
        // functions.
        unsafe {
            let get = libc::dlsym(libc::RTLD_DEFAULT, get.as_ptr());
            let set = libc::dlsym(libc::RTLD_DEFAULT, set.as_ptr());
            if get.is_null() || set.is_null() {
                return None;
            }
            Some(Self {
                get: std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn() -> c_int>(get),
                set: std::mem::transmute::<*mut libc::c_void, unsafe extern "C" fn(c_int)>(set),
            })
        }
    }
}
