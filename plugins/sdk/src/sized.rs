//! Reads the host's structs. The host can be older or newer than the SDK, so a struct's length is its
//! `struct_size`, not its size in this crate.

use std::mem::{MaybeUninit, align_of, offset_of, size_of};

use host_plugin_abi::{
    HostApi, HostBatch, HostCheckpoint, HostEvent, HostFetch, HostGroupsOut, HostGroupsRequest,
    HostOut, HostParam, HostPreflight, HostRequestsOut, HostTensor, HostValue,
};

use crate::{Error, Result};

/// A struct of the ABI that the host fills in.
///
/// # Safety
/// The type is `repr(C)`, starts with `struct_size: u32`, and has a valid value if all bytes are zero.
pub(crate) unsafe trait Sized: Copy {
    /// The struct's name in the header.
    const NAME: &'static str;
    /// Size of the struct's first version, up to and including its last field. Every host fills in these
    /// fields.
    const LEAST: usize;
}

macro_rules! sized {
    ($($Struct:ident through $last:ident: $Last:ty,)*) => {$(
        // SAFETY: the type is a `repr(C)` struct of integers, floats, pointers and optional functions, and
        // starts with its size.
        unsafe impl Sized for $Struct {
            const NAME: &'static str = stringify!($Struct);
            const LEAST: usize = offset_of!($Struct, $last) + size_of::<$Last>();
        }
    )*};
}

// This list stays the same when a later minor version appends fields to the structs.
sized! {
    HostApi through get_extension: usize,
    HostBatch through n_tensors: usize,
    HostCheckpoint through state_dir: host_plugin_abi::HostStr,
    HostEvent through factor: f64,
    HostFetch through state_dir: host_plugin_abi::HostStr,
    HostGroupsOut through warn: usize,
    HostGroupsRequest through weight_decay: f64,
    HostOut through put_bytes: usize,
    HostParam through dtype: host_plugin_abi::DLDataType,
    HostPreflight through model_bytes: u64,
    HostRequestsOut through ask: usize,
    HostTensor through stream: usize,
    HostValue through value: f64,
}

/// Reads the struct behind a pointer. Fields that the host lacks are zero.
///
/// # Safety
/// `pointer` is null, or it is aligned and readable for the number of bytes in its `struct_size`.
pub(crate) unsafe fn read<T: Sized>(pointer: *const T) -> Result<T> {
    if pointer.is_null() {
        return Err(Error::new(format!("the host passed a null {}", T::NAME)));
    }
    // SAFETY: the pointer is not null, and every struct starts with its size.
    let size = unsafe { pointer.cast::<u32>().read() } as usize;
    if size < T::LEAST {
        return Err(Error::new(format!(
            "the host passed a {} of {size} bytes, but it must have at least {}",
            T::NAME,
            T::LEAST
        )));
    }
    if size >= size_of::<T>() {
        // SAFETY: the caller guarantees that the bytes are readable and aligned.
        return Ok(unsafe { pointer.read() });
    }
    // The host is older and has a shorter struct.
    let mut copy = MaybeUninit::<T>::zeroed();
    // SAFETY: the source has `size` bytes, the target has more, and they do not overlap. The remaining bytes
    // stay zero, and `Sized` guarantees that zero is valid for them.
    unsafe {
        copy.as_mut_ptr()
            .cast::<u8>()
            .copy_from_nonoverlapping(pointer.cast::<u8>(), size);
        Ok(copy.assume_init())
    }
}

/// Reads the structs of an array from the host. The distance from one struct to the next is the first
/// struct's `struct_size`.
///
/// # Safety
/// The requirements of [`read`] hold for each of the `len` structs.
pub(crate) unsafe fn read_array<T: Sized>(
    first: *const T,
    len: usize,
) -> Result<impl Iterator<Item = Result<T>>> {
    let stride = if len == 0 {
        0
    } else {
        // SAFETY: `len` is not 0, so the caller guarantees that the first struct exists.
        unsafe { read(first) }?;
        // SAFETY: as above. The pointer is not null, because `read` succeeded.
        unsafe { first.cast::<u32>().read() as usize }
    };
    if stride % align_of::<T>() != 0 {
        return Err(Error::new(format!(
            "the host passed an array of {} with a stride of {stride} bytes",
            T::NAME
        )));
    }
    Ok((0..len).map(move |index| {
        // SAFETY: the caller guarantees `len` structs at a distance of `stride` bytes.
        unsafe { read(first.byte_add(index * stride)) }
    }))
}

#[cfg(test)]
mod tests {
    use host_plugin_abi::HostOut;

    use super::*;

    #[repr(C)]
    struct Grown {
        known: HostOut,
        appended: u64,
    }

    fn out(struct_size: usize) -> Grown {
        Grown {
            known: HostOut {
                struct_size: u32::try_from(struct_size).expect("small"),
                reserved: 0,
                ctx: std::ptr::dangling_mut(),
                put_f64: None,
                put_bytes: None,
            },
            appended: 7,
        }
    }

    #[test]
    fn a_newer_host_may_append_fields() {
        let grown = out(size_of::<Grown>());
        // SAFETY: the struct is as long as its `struct_size`.
        let read = unsafe { read(&raw const grown.known) }.expect("read");
        assert_eq!(read.struct_size as usize, size_of::<Grown>());
        assert_eq!(grown.appended, 7);
    }

    #[test]
    fn a_null_or_too_small_struct_is_an_error_with_its_name() {
        // SAFETY: `read` accepts null.
        let error = unsafe { read(std::ptr::null::<HostOut>()) }.expect_err("null");
        assert_eq!(error.message(), "the host passed a null HostOut");
        let small = out(8);
        // SAFETY: the struct is longer than its `struct_size`.
        let error = unsafe { read(&raw const small.known) }.expect_err("small");
        assert_eq!(
            error.message(),
            "the host passed a HostOut of 8 bytes, but it must have at least 32"
        );
    }

    #[test]
    fn an_array_is_read_with_its_own_stride() {
        let array = [out(size_of::<Grown>()), out(size_of::<Grown>())];
        // SAFETY: the array has two structs, each as long as its `struct_size`.
        let read: Result<Vec<HostOut>> = unsafe { read_array(&raw const array[0].known, 2) }
            .expect("array")
            .collect();
        assert_eq!(read.expect("both").len(), 2);
        let odd = out(size_of::<Grown>() - 4);
        // SAFETY: the array has one struct, which is longer than its `struct_size`.
        assert!(unsafe { read_array(&raw const odd.known, 1) }.is_err());
    }
}
