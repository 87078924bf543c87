//! The structs of the ABI, field by field.

use std::fmt::Write as _;
use std::mem::{offset_of, size_of};

use host_plugin_abi::*;

/// Defines `rust_layout` and `C_LAYOUT`, which print `STRUCT size` and `STRUCT.FIELD offset` for each listed
/// struct. A field that is not listed is a compile error.
macro_rules! layout {
    ($($Struct:ident { $($field:ident),* $(,)? })*) => {
        /// Returns `STRUCT size` and `STRUCT.FIELD offset`, one per line.
        pub(super) fn rust_layout() -> String {
            let mut lines = String::new();
            $(
                let _complete = |whole: &$Struct| {
                    let $Struct { $($field: _),* } = whole;
                };
                writeln!(lines, "{} {}", stringify!($Struct), size_of::<$Struct>()).expect("text");
                $(writeln!(
                    lines,
                    concat!(stringify!($Struct), ".", stringify!($field), " {}"),
                    offset_of!($Struct, $field)
                )
                .expect("text");)*
            )*
            lines
        }

        /// Statements of a C program that prints the lines of `rust_layout`.
        pub(super) const C_LAYOUT: &str = concat!($(
            "    printf(\"", stringify!($Struct), " %zu\\n\", sizeof(", stringify!($Struct), "));\n",
            $("    printf(\"", stringify!($Struct), ".", stringify!($field),
              " %zu\\n\", offsetof(", stringify!($Struct), ", ", stringify!($field), "));\n",)*
        )*);
    };
}

layout! {
    HostStr { ptr, len }
    HostApi {
        struct_size, abi_major, abi_minor, reserved, ctx, log_enabled, log, set_error,
        get_extension,
    }
    DLDevice { device_type, device_id }
    DLDataType { code, bits, lanes }
    DLTensor { data, device, ndim, dtype, shape, strides, byte_offset }
    HostTensor { struct_size, flags, name, dl, stream }
    HostOut { struct_size, reserved, ctx, put_f64, put_bytes }
    HostParam { struct_size, flags, name, shape, ndim, dtype }
    HostGroupsRequest { struct_size, flags, params, n_params, weight_decay }
    HostGroupsOut { struct_size, reserved, ctx, add_group, assign, warn }
    HostParamGroups { struct_size, flags, create, destroy, group }
    HostBatch { struct_size, flags, step, tensors, n_tensors }
    HostMetric {
        struct_size, flags, create, destroy, reset, update, export_state, merge_state, compute,
    }
    HostCheckpoint {
        struct_size, flags, step, run, dir, manifest_json, metrics_json, state_dir,
    }
    HostCheckpointSink { struct_size, flags, create, destroy, publish, cancel, preflight, fetch }
    HostFetch { struct_size, flags, revision, state_dir }
    HostPreflight { struct_size, flags, run, state_dir, checkpoint_bytes, model_bytes }
    HostValue { struct_size, flags, name, value }
    HostEvent {
        struct_size, kind, step, values, n_values, name, call, text, bytes, of_step, generation,
        code, factor,
    }
    HostRequestsOut { struct_size, reserved, ctx, ask }
    HostObserver {
        struct_size, flags, create, destroy, observe, export_state, import_state,
    }
    HostPluginItem { struct_size, kind, vtable }
    HostPlugin {
        struct_size, abi_major, abi_minor, min_host_minor, id, version, n_items, items,
    }
}
