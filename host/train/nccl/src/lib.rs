//! The library `libhost_nccl.so`, which is next to the program. It contains c10d's process group for NCCL, with which
//! ranks on CUDA devices exchange tensors. The program opens it only for several ranks on CUDA devices, because it
//! needs CUDA's libraries.

use std::ffi::{c_char, c_int, c_void};

#[cfg(has_nccl)]
unsafe extern "C" {
    fn nccl_backend(
        store: *mut c_void,
        rank: c_int,
        size: c_int,
        device: c_int,
        backend: *mut *mut c_void,
        error: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// Creates a `c10d::ProcessGroupNCCL` of `size` ranks that meet in `store`, a `c10d::Store`. Stores it in `*backend`, as
/// a `c10d::Backend` of which the caller owns one reference. Returns 0, or else 1 with the reason in `error`, as text
/// that ends with a null byte.
///
/// # Safety
/// `store` is live, `backend` is a valid place for the result, and `error` has room for `capacity` bytes, of which
/// there is at least one. The program was built with the same libtorch.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn host_nccl_backend(
    store: *mut c_void,
    rank: c_int,
    size: c_int,
    device: c_int,
    backend: *mut *mut c_void,
    error: *mut c_char,
    capacity: usize,
) -> c_int {
    #[cfg(has_nccl)]
    // SAFETY: the caller gives the same guarantees.
    return unsafe { nccl_backend(store, rank, size, device, backend, error, capacity) };
    #[cfg(not(has_nccl))]
    {
        let _ = (store, rank, size, device, backend);
        let text = b"it was built without the headers of CUDA and NCCL\0";
        let count = text.len().min(capacity);
        // SAFETY: `error` has room for `count` bytes, and a static text does not overlap with it.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), error, count);
            *error.add(count - 1) = 0;
        }
        1
    }
}
