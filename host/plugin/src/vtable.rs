use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;

use host_plugin_abi::{HostCheckpointSink, HostMetric, HostObserver, HostParamGroups};

use crate::PluginKind;

/// A kind's table of functions in the ABI.
///
/// # Safety
/// The type is `repr(C)`: `struct_size: u32`, `flags: u32`, then only optional function pointers.
pub(crate) unsafe trait Vtable: Copy {
    const KIND: PluginKind;
}

// SAFETY: its definition has that shape, and the ABI only ever appends functions.
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

/// `struct_size` and `flags`.
const HEAD: usize = 8;
/// No version of the ABI will have a larger table; a number beyond is a mistake.
const LARGEST: usize = 4096;

/// Copies a plugin's table by the rule of `struct_size`: what the plugin's build did not have yet,
/// or has only a part of, is absent; what this host does not know yet is left behind.
///
/// # Safety
/// `at` is null or points to a table whose first four bytes are its size in readable bytes.
pub(crate) unsafe fn read<T: Vtable>(at: *const c_void) -> Result<T, String> {
    if at.is_null() {
        return Err(format!("gives no table of functions for {}", T::KIND));
    }
    // SAFETY: the caller vouches for the first four bytes.
    let size = unsafe { at.cast::<u32>().read_unaligned() } as usize;
    if !(HEAD..=LARGEST).contains(&size) {
        return Err(format!(
            "says that its table of functions for {} has {size} bytes, which has {HEAD} to {LARGEST}",
            T::KIND
        ));
    }
    let whole = size - size % size_of::<usize>();
    let mut table = MaybeUninit::<T>::zeroed();
    // SAFETY: at most `size` bytes are read and at most the size of `T` is written; zero and whole
    // function pointers are valid for every field, by the trait's promise.
    unsafe {
        ptr::copy_nonoverlapping(
            at.cast::<u8>(),
            table.as_mut_ptr().cast::<u8>(),
            whole.min(size_of::<T>()),
        );
        Ok(table.assume_init())
    }
}

/// A function that every plugin of the kind must have.
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
        // SAFETY: no table here says more than it has.
        unsafe { read(ptr::from_ref(table).cast()) }
    }

    #[test]
    fn a_field_is_there_only_as_a_whole() {
        for (size, there) in [(8, false), (23, false), (24, true), (72, true)] {
            let read = read_metric(&table(size)).expect("a table");
            assert_eq!(read.destroy.is_some(), there, "{size}");
        }
    }

    #[test]
    fn a_longer_table_is_of_a_newer_plugin() {
        #[repr(C)]
        struct Longer(HostMetric, [usize; 4]);
        let longer = Longer(table(size_of::<Longer>() as u32), [7; 4]);
        // SAFETY: the table has the size it says.
        let read = unsafe { read::<HostMetric>(ptr::from_ref(&longer).cast()) };
        assert!(read.expect("a table").destroy.is_some());
    }

    #[test]
    fn a_size_that_cannot_be_is_refused() {
        for size in [0, 7, 4097, u32::MAX] {
            let reason = read_metric(&table(size)).expect_err("refused");
            assert_eq!(
                reason,
                format!(
                    "says that its table of functions for metric has {size} bytes, which has 8 to 4096"
                )
            );
        }
        // SAFETY: null is allowed.
        let none = unsafe { read::<HostMetric>(ptr::null()) };
        assert_eq!(
            none.map(|_| ()),
            Err("gives no table of functions for metric".to_owned())
        );
    }
}
