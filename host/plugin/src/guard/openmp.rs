//! The OpenMP runtime that this process happens to have, which is libtorch's; the program that only serves
//! plugins has none.

use std::ffi::{CStr, c_int};
use std::sync::OnceLock;

/// Functions of the runtime that read and set what new parallel regions of this thread are made from.
#[derive(Clone, Copy)]
struct Setting {
    get: unsafe extern "C" fn() -> c_int,
    set: unsafe extern "C" fn(c_int),
}

/// How many threads a parallel region of this thread takes; 0 without a runtime.
#[inline]
pub(super) fn threads() -> i32 {
    get(&THREADS, c"omp_get_max_threads", c"omp_set_num_threads")
}

pub(super) fn set_threads(count: i32) {
    set(&THREADS, count);
}

/// Whether the runtime may take fewer threads.
#[inline]
pub(super) fn is_dynamic() -> i32 {
    get(&DYNAMIC, c"omp_get_dynamic", c"omp_set_dynamic")
}

pub(super) fn set_dynamic(is_dynamic: i32) {
    set(&DYNAMIC, is_dynamic);
}

/// How deep parallel regions may nest and still be parallel.
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
        // SAFETY: the runtime's own function, which any thread may call.
        Some(setting) => unsafe { (setting.get)() },
        None => 0,
    }
}

fn set(setting: &OnceLock<Option<Setting>>, value: i32) {
    if let Some(Some(setting)) = setting.get() {
        // SAFETY: as above; the value is one that the runtime gave.
        unsafe { (setting.set)(value) };
    }
}

impl Setting {
    fn find(get: &CStr, set: &CStr) -> Option<Self> {
        // SAFETY: the names are strings that end in a zero; what is found is OpenMP's, whose standard
        // gives these functions these types.
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
