//! The C header is up to date, compiles as C and C++, and has the same layout as the Rust crate.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::mem::size_of;
use std::path::Path;
use std::process::{Command, Output};
use std::{env, fs};

use host_plugin_abi::*;
use tempfile::TempDir;

use super::layout::{C_LAYOUT, rust_layout};
use super::{SOURCES, folder, generate};

/// Compiler, standard and file extension for C11 and C++17.
const COMPILERS: [(&str, &str, &str); 2] = [("cc", "c11", "c"), ("c++", "c++17", "cpp")];

#[test]
fn the_header_is_fresh() {
    let path = folder().join("host_plugin.h");
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
    let mut files: Vec<String> = fs::read_dir(folder().join("src"))
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
fn including_dlpack_h_first_keeps_the_layout() {
    let libtorch = env::var_os("LIBTORCH").expect("cargo sets it, see .cargo/config.toml");
    let dlpack = Path::new(&libtorch).join("include/ATen/dlpack.h");
    if !dlpack.exists() {
        eprintln!("skipped, libtorch is not installed: {}", dlpack.display());
        return;
    }
    let include = format!("#include \"{}\"\n", dlpack.display());
    for (compiler, standard, extension) in COMPILERS {
        let printed = print_layout(compiler, standard, extension, &include);
        assert_eq!(printed, rust_layout(), "{compiler} -std={standard}");
    }
}

#[test]
fn the_constants_equal_those_of_the_crate() {
    let mut program = program("");
    program.push_str("int main(void) {\n");
    let numbers: [(&str, i64); 50] = [
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
        ("HOST_DELIVERY_DROPPED", HOST_DELIVERY_DROPPED.into()),
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
        ("HOST_REQUEST_EVALUATE", HOST_REQUEST_EVALUATE.into()),
        ("HOST_REQUEST_PAUSE", HOST_REQUEST_PAUSE.into()),
        ("HOST_REQUEST_CONTINUE", HOST_REQUEST_CONTINUE.into()),
        (
            "HOST_REQUEST_SET_LEARNING_RATE",
            HOST_REQUEST_SET_LEARNING_RATE.into(),
        ),
        ("HOST_LOG_ERROR", HOST_LOG_ERROR.into()),
        ("HOST_LOG_WARN", HOST_LOG_WARN.into()),
        ("HOST_LOG_INFO", HOST_LOG_INFO.into()),
        ("HOST_LOG_DEBUG", HOST_LOG_DEBUG.into()),
        ("HOST_FETCH_FOR_RESUME", HOST_FETCH_FOR_RESUME.into()),
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
            assert!(
                known || name == "HOST_PLUGIN_H",
                "constant not compared: {name}"
            );
        }
    }
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

/// Compiles a program against the generated header with warnings as errors, runs it, and returns its output.
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
