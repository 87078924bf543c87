//! Reading the host's structs by the rule of growth: the host may be older or newer than the SDK,
//! so a struct is as long as its `struct_size` says and not as long as it is here.

use std::mem::{MaybeUninit, align_of, offset_of, size_of};

use host_plugin_abi::{
    HostApi, HostBatch, HostCheckpoint, HostEvent, HostFetch, HostGroupsOut, HostGroupsRequest,
    HostOut, HostParam, HostPreflight, HostRequestsOut, HostTensor, HostValue,
};

use crate::{Error, Result};

/// A struct of the ABI that the host fills in.
///
/// # Safety
/// It is `repr(C)`, begins with `struct_size: u32`, and all zeros is a value of it.
pub(crate) unsafe trait Sized: Copy {
    /// Its name in the header.
    const NAME: &'static str;
    /// Bytes up to and with the last field of version 1.0, which every host fills in.
    const LEAST: usize;
}

macro_rules! sized {
    ($($Struct:ident through $last:ident: $Last:ty,)*) => {$(
        // SAFETY: a `repr(C)` struct of integers, floats, pointers and optional functions that
        // begins with its size.
        unsafe impl Sized for $Struct {
            const NAME: &'static str = stringify!($Struct);
            const LEAST: usize = offset_of!($Struct, $last) + size_of::<$Last>();
        }
    )*};
}

// A later minor version appends fields to the structs and leaves this list alone.
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

/// The struct behind a pointer, with zeros in the fields that the host does not know.
///
/// # Safety
/// `pointer` is null, or it is aligned and readable for as many bytes as the `struct_size` it
/// points to says.
pub(crate) unsafe fn read<T: Sized>(pointer: *const T) -> Result<T> {
    if pointer.is_null() {
        return Err(Error::new(format!("the host passed a null {}", T::NAME)));
    }
    // SAFETY: not null, and every struct begins with its size.
    let size = unsafe { pointer.cast::<u32>().read() } as usize;
    if size < T::LEAST {
        return Err(Error::new(format!(
            "the host passed a {} of {size} bytes, at least {} are needed",
            T::NAME,
            T::LEAST
        )));
    }
    if size >= size_of::<T>() {
        // SAFETY: as many bytes are there, and aligned, by the caller's promise.
        return Ok(unsafe { pointer.read() });
    }
    // An older host's, which is shorter.
    let mut copy = MaybeUninit::<T>::zeroed();
    // SAFETY: the source has `size` bytes, the target more, and both are apart. What
    // is not overwritten stays zero, which `Sized` promises to be a value.
    unsafe {
        copy.as_mut_ptr()
            .cast::<u8>()
            .copy_from_nonoverlapping(pointer.cast::<u8>(), size);
        Ok(copy.assume_init())
    }
}

/// The structs of an array of the host's, whose stride is their `struct_size`.
///
/// # Safety
/// As for [`read`], for each of `len` structs.
pub(crate) unsafe fn read_array<T: Sized>(
    first: *const T,
    len: usize,
) -> Result<impl Iterator<Item = Result<T>>> {
    let stride = if len == 0 {
        0
    } else {
        // SAFETY: the array has a first struct, of which the caller vouches.
        unsafe { read(first) }?;
        // SAFETY: as above; it is not null, for `read` went well.
        unsafe { first.cast::<u32>().read() as usize }
    };
    if stride % align_of::<T>() != 0 {
        return Err(Error::new(format!(
            "the host passed an array of {} with a stride of {stride} bytes",
            T::NAME
        )));
    }
    Ok((0..len).map(move |index| {
        // SAFETY: the caller vouches for `len` structs, which lie `stride` bytes apart.
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
        // SAFETY: the struct is as long as it says.
        let read = unsafe { read(&raw const grown.known) }.expect("read");
        assert_eq!(read.struct_size as usize, size_of::<Grown>());
        assert_eq!(grown.appended, 7);
    }

    #[test]
    fn what_is_null_or_too_small_is_refused_by_name() {
        // SAFETY: null is allowed.
        let error = unsafe { read(std::ptr::null::<HostOut>()) }.expect_err("null");
        assert_eq!(error.message(), "the host passed a null HostOut");
        let small = out(8);
        // SAFETY: the struct is longer than it says.
        let error = unsafe { read(&raw const small.known) }.expect_err("small");
        assert_eq!(
            error.message(),
            "the host passed a HostOut of 8 bytes, at least 32 are needed"
        );
    }

    #[test]
    fn an_array_is_walked_by_its_own_stride() {
        let array = [out(size_of::<Grown>()), out(size_of::<Grown>())];
        // SAFETY: two structs, each as long as it says.
        let read: Result<Vec<HostOut>> = unsafe { read_array(&raw const array[0].known, 2) }
            .expect("array")
            .collect();
        assert_eq!(read.expect("both").len(), 2);
        let odd = out(size_of::<Grown>() - 4);
        // SAFETY: one struct, longer than it says.
        assert!(unsafe { read_array(&raw const odd.known, 1) }.is_err());
    }
}
