//! The C header: fresh, accepted by C and C++ compilers, and of the same layout as the Rust crate.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use host_plugin_abi::*;
use tempfile::TempDir;

/// In the order in which a reader wants to meet them.
const SOURCES: [&str; 11] = [
    "lib",
    "string",
    "host_api",
    "tensor",
    "out",
    "param_groups",
    "metric",
    "checkpoint_sink",
    "event",
    "observer",
    "descriptor",
];

/// C11 and C++17, with every warning an error.
const COMPILERS: [(&str, &str, &str); 2] = [("cc", "c11", "c"), ("c++", "c++17", "cpp")];

#[test]
fn the_header_is_what_the_crate_says() {
    let path = abi().join("host_plugin.h");
    let fresh = generate();
    if env::var_os("BLESS").is_some() {
        fs::write(&path, &fresh).expect("the header");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let stale = std::iter::zip(
        committed.lines().chain(["(end)"]),
        fresh.lines().chain(["(end)"]),
    )
    .enumerate()
    .find(|(_, (committed, fresh))| committed != fresh);
    if let Some((line, (committed, fresh))) = stale {
        panic!(
            "plugins/abi/host_plugin.h is stale, run: make bless\nline {}\n  is: {committed}\n  should be: {fresh}",
            line + 1
        );
    }
}

#[test]
fn no_source_of_the_crate_is_left_out() {
    let mut files: Vec<String> = fs::read_dir(abi().join("src"))
        .expect("the sources")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| path.file_stem().expect("a name").display().to_string())
        .collect();
    files.sort();
    let mut listed = SOURCES.to_vec();
    listed.sort_unstable();
    assert_eq!(files, listed);
}

#[test]
fn c_and_cpp_lay_out_the_structs_as_rust_does() {
    for (compiler, standard, extension) in COMPILERS {
        let printed = print_layout(compiler, standard, extension, "");
        assert_eq!(printed, rust_layout(), "{compiler} -std={standard}");
    }
}

#[test]
fn dlpack_s_own_header_may_come_first_and_has_the_same_layout() {
    let libtorch = env::var_os("LIBTORCH").expect("cargo sets it, see .cargo/config.toml");
    let dlpack = Path::new(&libtorch).join("include/ATen/dlpack.h");
    if !dlpack.exists() {
        eprintln!("not compared, libtorch is not here: {}", dlpack.display());
        return;
    }
    let include = format!("#include \"{}\"\n", dlpack.display());
    for (compiler, standard, extension) in COMPILERS {
        let printed = print_layout(compiler, standard, extension, &include);
        assert_eq!(printed, rust_layout(), "{compiler} -std={standard}");
    }
}

#[test]
fn the_constants_are_the_crate_s() {
    let mut program = program("");
    program.push_str("int main(void) {\n");
    let numbers: [(&str, i64); 44] = [
        ("HOST_ABI_MAJOR", HOST_ABI_MAJOR.into()),
        ("HOST_ABI_MINOR", HOST_ABI_MINOR.into()),
        ("HOST_OK", HOST_OK.into()),
        ("HOST_ERROR", HOST_ERROR.into()),
        ("HOST_PANIC", HOST_PANIC.into()),
        ("HOST_UNSUPPORTED", HOST_UNSUPPORTED.into()),
        ("HOST_CANCELLED", HOST_CANCELLED.into()),
        ("HOST_TEMPORARY", HOST_TEMPORARY.into()),
        ("HOST_KIND_PARAM_GROUPS", HOST_KIND_PARAM_GROUPS.into()),
        ("HOST_KIND_METRIC", HOST_KIND_METRIC.into()),
        (
            "HOST_KIND_CHECKPOINT_SINK",
            HOST_KIND_CHECKPOINT_SINK.into(),
        ),
        ("HOST_KIND_OBSERVER", HOST_KIND_OBSERVER.into()),
        ("HOST_EVENT_RUN_STARTED", HOST_EVENT_RUN_STARTED.into()),
        ("HOST_EVENT_SUPERSEDED", HOST_EVENT_SUPERSEDED.into()),
        ("HOST_EVENT_METRICS", HOST_EVENT_METRICS.into()),
        (
            "HOST_EVENT_CHECKPOINT_WRITTEN",
            HOST_EVENT_CHECKPOINT_WRITTEN.into(),
        ),
        (
            "HOST_EVENT_CHECKPOINT_FAILED",
            HOST_EVENT_CHECKPOINT_FAILED.into(),
        ),
        ("HOST_EVENT_DELIVERY", HOST_EVENT_DELIVERY.into()),
        ("HOST_EVENT_PLUGIN_FAULT", HOST_EVENT_PLUGIN_FAULT.into()),
        ("HOST_EVENT_REQUEST", HOST_EVENT_REQUEST.into()),
        ("HOST_EVENT_WARNING", HOST_EVENT_WARNING.into()),
        ("HOST_EVENT_RUN_FINISHED", HOST_EVENT_RUN_FINISHED.into()),
        ("HOST_DELIVERY_QUEUED", HOST_DELIVERY_QUEUED.into()),
        ("HOST_DELIVERY_SENDING", HOST_DELIVERY_SENDING.into()),
        ("HOST_DELIVERY_DELIVERED", HOST_DELIVERY_DELIVERED.into()),
        ("HOST_DELIVERY_FAILED", HOST_DELIVERY_FAILED.into()),
        ("HOST_STOP_COMPLETED", HOST_STOP_COMPLETED.into()),
        ("HOST_STOP_INTERRUPTED", HOST_STOP_INTERRUPTED.into()),
        ("HOST_STOP_TERMINATED", HOST_STOP_TERMINATED.into()),
        ("HOST_STOP_FAILED", HOST_STOP_FAILED.into()),
        ("HOST_STOP_REQUESTED", HOST_STOP_REQUESTED.into()),
        ("HOST_REQUEST_STOP", HOST_REQUEST_STOP.into()),
        ("HOST_REQUEST_CHECKPOINT", HOST_REQUEST_CHECKPOINT.into()),
        ("HOST_REQUEST_SKIP_STEP", HOST_REQUEST_SKIP_STEP.into()),
        (
            "HOST_REQUEST_SCALE_LEARNING_RATE",
            HOST_REQUEST_SCALE_LEARNING_RATE.into(),
        ),
        ("HOST_REQUEST_ROLL_BACK", HOST_REQUEST_ROLL_BACK.into()),
        ("HOST_LOG_ERROR", HOST_LOG_ERROR.into()),
        ("HOST_LOG_WARN", HOST_LOG_WARN.into()),
        ("HOST_LOG_INFO", HOST_LOG_INFO.into()),
        ("HOST_LOG_DEBUG", HOST_LOG_DEBUG.into()),
        ("HOST_TENSOR_READ_ONLY", HOST_TENSOR_READ_ONLY.into()),
        ("sizeof(HostStatus)", size_of::<HostStatus>() as i64),
        ("sizeof(HostCreate)", size_of::<Option<HostCreate>>() as i64),
        (
            "sizeof(HostPluginEntry)",
            size_of::<Option<HostPluginEntry>>() as i64,
        ),
    ];
    let texts = [
        ("HOST_PLUGIN_ENTRY_SYMBOL", ENTRY_SYMBOL),
        ("HOST_PLUGIN_MANIFEST_SECTION", MANIFEST_SECTION),
    ];
    let mut expected = String::new();
    for (name, value) in numbers {
        writeln!(program, "    printf(\"{name} %ld\\n\", (long)({name}));").expect("text");
        writeln!(expected, "{name} {value}").expect("text");
    }
    for (name, value) in texts {
        writeln!(program, "    printf(\"{name} %s\\n\", {name});").expect("text");
        writeln!(expected, "{name} {value}").expect("text");
    }
    program.push_str("    return 0;\n}\n");
    assert_eq!(run("cc", "c11", "c", &program), expected);
    for line in generate().lines() {
        if let Some(name) = line
            .strip_prefix("#define ")
            .and_then(|d| d.split(' ').next())
        {
            let known =
                program.contains(&format!("({name})")) || program.contains(&format!(" {name})"));
            assert!(known || name == "HOST_PLUGIN_H", "not compared: {name}");
        }
    }
}

/// Prints `STRUCT size` and `STRUCT.FIELD offset`, in Rust and as a C program that does. A field
/// that is not listed does not compile.
macro_rules! layout {
    ($($Struct:ident { $($field:ident),* $(,)? })*) => {
        fn rust_layout() -> String {
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

        const C_LAYOUT: &str = concat!($(
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
    HostCheckpointSink { struct_size, flags, create, destroy, publish, cancel }
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

fn abi() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/abi")
}

fn generate() -> String {
    let config = cbindgen::Config::from_file(abi().join("cbindgen.toml")).expect("cbindgen.toml");
    let builder = SOURCES
        .iter()
        .map(|source| abi().join("src").join(source).with_extension("rs"))
        .fold(cbindgen::Builder::new(), cbindgen::Builder::with_src);
    let mut header = Vec::new();
    let bindings = builder.with_config(config).generate();
    bindings.expect("the header").write(&mut header);
    without_links(&String::from_utf8(header).expect("UTF-8"))
}

/// Rust's links between comments, [`X`] and [`X`](crate::X), as plain names.
fn without_links(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, link)) = rest.split_once("[`") {
        let (name, after) = link.split_once("`]").expect("a link ends");
        plain.push_str(before);
        plain.push_str(name);
        rest = match after.strip_prefix("(crate::") {
            Some(target) => target.split_once(')').expect("a target ends").1,
            None => after,
        };
    }
    plain + rest
}

fn program(before: &str) -> String {
    format!(
        "{before}#include \"host_plugin.h\"\n#include <stdio.h>\n\
         HostPluginEntry entry(void);\n\
         HostPluginEntry entry(void) {{ return host_plugin_entry_v1; }}\n\
         const HostPlugin *host_plugin_entry_v1(const HostApi *api) {{ (void)api; return NULL; }}\n"
    )
}

fn print_layout(compiler: &str, standard: &str, extension: &str, before: &str) -> String {
    let program = format!(
        "{}int main(void) {{\n{C_LAYOUT}    return 0;\n}}\n",
        program(before)
    );
    run(compiler, standard, extension, &program)
}

/// Compiles a program beside the fresh header, with all warnings as errors, and runs it; what it
/// printed.
fn run(compiler: &str, standard: &str, extension: &str, program: &str) -> String {
    let scratch = TempDir::new().expect("a folder for the program");
    let source = scratch.path().join("program").with_extension(extension);
    let binary = scratch.path().join("program");
    fs::write(&source, program).expect("the program");
    fs::write(scratch.path().join("host_plugin.h"), generate()).expect("the header");
    let strict = ["-Wall", "-Wextra", "-Werror", "-pedantic"];
    succeed(
        Command::new(compiler)
            .arg(format!("-std={standard}"))
            .args(strict)
            .args([source.as_os_str(), OsStr::new("-o"), binary.as_os_str()]),
    );
    let output = succeed(&mut Command::new(&binary));
    String::from_utf8(output.stdout).expect("text")
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{errors}");
    output
}
