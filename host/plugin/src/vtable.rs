use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;

use host_plugin_abi::{HostCheckpointSink, HostMetric, HostObserver, HostParamGroups};

use crate::PluginKind;

/// The ABI's table of functions for one kind.
///
/// # Safety
/// The type must be `repr(C)` and consist of `struct_size: u32`, `flags: u32`, and then only optional
/// function pointers.
pub(crate) unsafe trait Vtable: Copy {
    const KIND: PluginKind;
}

// SAFETY: the struct has the layout that the trait requires, and later versions of the ABI only append
// functions.
unsafe impl Vtable for HostParamGroups {
    const KIND: PluginKind = PluginKind::ParamGroups;
}
// SAFETY: as above.
unsafe impl Vtable for HostMetric {
    const KIND: PluginKind = PluginKind::Metric;
}
// SAFETY: as above.
unsafe impl Vtable for HostCheckpointSink {
    const KIND: PluginKind = PluginKind::CheckpointSink;
}
// SAFETY: as above.
unsafe impl Vtable for HostObserver {
    const KIND: PluginKind = PluginKind::Observer;
}

/// The size of `struct_size` and `flags`.
const HEAD: usize = 8;
/// Larger than the table of any version of the ABI; a larger `struct_size` is a mistake.
const LARGEST: usize = 4096;

/// Copies a plugin's table up to its `struct_size`. Functions that the table lacks, or contains only in part,
/// become `None`. Functions of a newer ABI are ignored.
///
/// # Safety
/// `at` must be null or point to a table. Its first four bytes must be its size, and that number of bytes
/// must be readable.
pub(crate) unsafe fn read<T: Vtable>(at: *const c_void) -> Result<T, String> {
    if at.is_null() {
        return Err(format!("has no function table for {}", T::KIND));
    }
    // SAFETY: the caller guarantees that the first four bytes are readable.
    let size = unsafe { at.cast::<u32>().read_unaligned() } as usize;
    if !(HEAD..=LARGEST).contains(&size) {
        return Err(format!(
            "has a function table of {size} bytes, not {HEAD} to {LARGEST}, for {}",
            T::KIND
        ));
    }
    let whole = size - size % size_of::<usize>();
    let mut table = MaybeUninit::<T>::zeroed();
    // SAFETY: the copy reads at most `size` bytes and writes at most the size of `T`. In the copy, each
    // function pointer is complete or zero. The trait guarantees that both are valid.
    unsafe {
        ptr::copy_nonoverlapping(
            at.cast::<u8>(),
            table.as_mut_ptr().cast::<u8>(),
            whole.min(size_of::<T>()),
        );
        Ok(table.assume_init())
    }
}

/// Returns a function that every plugin of the kind must have, or an error if it is absent.
pub(crate) fn required<F>(kind: PluginKind, name: &str, function: Option<F>) -> Result<F, String> {
    function.ok_or_else(|| format!("lacks the function {name} of {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn destroy(_: *mut c_void) {}

    fn table(struct_size: u32) -> HostMetric {
        HostMetric {
            struct_size,
            flags: 0,
            create: None,
            destroy: Some(destroy),
            reset: None,
            update: None,
            export_state: None,
            merge_state: None,
            compute: None,
        }
    }

    fn read_metric(table: &HostMetric) -> Result<HostMetric, String> {
        // SAFETY: no table here declares a size that is larger than the table.
        unsafe { read(ptr::from_ref(table).cast()) }
    }

    #[test]
    fn a_field_is_present_only_as_a_whole() {
        for (size, there) in [(8, false), (23, false), (24, true), (72, true)] {
            let read = read_metric(&table(size)).expect("a table");
            assert_eq!(read.destroy.is_some(), there, "{size}");
        }
    }

    #[test]
    fn a_longer_table_is_from_a_newer_plugin() {
        #[repr(C)]
        struct Longer(HostMetric, [usize; 4]);
        let longer = Longer(table(size_of::<Longer>() as u32), [7; 4]);
        // SAFETY: the table has the size that it declares.
        let read = unsafe { read::<HostMetric>(ptr::from_ref(&longer).cast()) };
        assert!(read.expect("a table").destroy.is_some());
    }

    #[test]
    fn an_invalid_size_is_rejected() {
        for size in [0, 7, 4097, u32::MAX] {
            let reason = read_metric(&table(size)).expect_err("rejected");
            assert_eq!(
                reason,
                format!("has a function table of {size} bytes, not 8 to 4096, for metric")
            );
        }
        // SAFETY: null is allowed.
        let none = unsafe { read::<HostMetric>(ptr::null()) };
        assert_eq!(
            none.map(|_| ()),
            Err("has no function table for metric".to_owned())
        );
    }
}
