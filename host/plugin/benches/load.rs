//! Measures the cost of loading a plugin of 1 MB, and of each step of loading.
//!
//! Each round first changes the bytes of the library, since the same bytes are loaded only once. It then runs
//! each step of loading separately, and finally loads the library as a whole, twice. All measurements are
//! repeated in every round, so that changes in the machine's speed affect all of them. The file is in the
//! page cache.
//!
//! `cargo bench -p host-plugin --bench load -- [--json FILE] [--rounds N] [--plugin LIBRARY]`

#![expect(unsafe_code, reason = "one step is the dynamic loader")]

use std::fs;
use std::hint::black_box;
use std::io::Write as _;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use host_plugin::{Plugin, PluginConfig, SearchPath, Target, inspect};
use libloading::os::unix::Library;
use serde_json::json;
use sha2::{Digest as _, Sha256};

const ROUNDS: usize = 50;

/// The steps in their order, followed by the two whole loads.
const NAMES: [&str; 8] = [
    "find: inspect its tables in the file",
    "read",
    "sha256",
    "inspect the bytes",
    "copy to a sealed memory file",
    "dlopen",
    "find and load, the first time",
    "find and load, the same bytes again",
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value_of = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1).cloned()
    };
    let rounds = value_of("--rounds").map_or(ROUNDS, |n| n.parse().expect("--rounds N"));
    let dir = tempfile::tempdir().expect("a folder");
    let source = match value_of("--plugin") {
        Some(path) => PathBuf::from(path),
        None => build(dir.path()),
    };
    let library = fs::read(&source).expect("a library");
    let path = dir.path().join("bench.so");
    let mut times: [Vec<f64>; NAMES.len()] = Default::default();
    for round in 0..rounds {
        let mut bytes = library.clone();
        bytes.extend_from_slice(&round.to_ne_bytes());
        fs::write(&path, &bytes).expect("written");
        for (times, time) in times.iter_mut().zip(measure(&path)) {
            times.push(time);
        }
    }
    report(library.len(), rounds, &mut times, value_of("--json"));
}

/// Returns the milliseconds of each step and of the two whole loads.
fn measure(path: &Path) -> [f64; NAMES.len()] {
    let search = SearchPath::new([]);
    let target = Target::Path(path.to_owned());
    let (found, finding) = timed(|| search.find(&target).expect("found"));
    let (bytes, reading) = timed(|| fs::read(path).expect("read"));
    let (_, hashing) = timed(|| black_box(Sha256::digest(&bytes)));
    let (_, looking) = timed(|| black_box(inspect(&bytes, path)).expect("a plugin"));
    let (file, copying) = timed(|| memory_file(&bytes));
    let (opened, opening) = timed(|| open(&file));
    // The file and the library stay open forever, as in the host.
    let _ = (ManuallyDrop::new(file), ManuallyDrop::new(opened));
    drop((found, bytes));
    let load = || {
        let found = search.find(&target).expect("found");
        Plugin::load(&found, &PluginConfig::default()).expect("loaded")
    };
    let (_, first) = timed(load);
    let (_, again) = timed(load);
    [
        finding, reading, hashing, looking, copying, opening, first, again,
    ]
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed().as_secs_f64() * 1e3)
}

fn memory_file(bytes: &[u8]) -> OwnedFd {
    // SAFETY: the name is a C string; the descriptor is new and checked.
    let file = unsafe {
        let fd = libc::memfd_create(c"bench".as_ptr(), libc::MFD_ALLOW_SEALING);
        assert!(fd >= 0, "memory files are not supported");
        OwnedFd::from_raw_fd(fd)
    };
    let mut file = fs::File::from(file);
    file.write_all(bytes).expect("written");
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
    // SAFETY: the descriptor is open.
    let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    assert_eq!(sealed, 0);
    file.into()
}

fn open(file: &OwnedFd) -> Library {
    let place = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = libc::RTLD_NOW | libc::RTLD_LOCAL | libc::RTLD_NODELETE;
    // SAFETY: the library is the benchmark's own, or the user named it.
    unsafe { Library::open(Some(place), flags) }.expect("opened")
}

/// Builds the tests' C metric. One megabyte of data is added to the library.
fn build(dir: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let (padding, library) = (dir.join("padding.c"), dir.join("libpadded.so"));
    let text = "__attribute__((used)) const unsigned char padding[1 << 20] = {1};\n";
    fs::write(&padding, text).expect("written");
    let manifest = json!({
        "abi": [1, 0], "id": "padded", "version": "0.1.0", "kinds": ["metric"],
        "needs": ["loss_sum", "token_count"],
        "config": {
            "type": "object",
            "properties": {"how": {"type": "string"}, "keep": {"type": "integer", "minimum": 1}},
            "additionalProperties": false
        }
    });
    let output = Command::new("cc")
        .args(["-std=c11", "-shared", "-fPIC", "-O1", "-w", "-I"])
        .arg(root.join("plugins/abi"))
        .arg(format!("-DMANIFEST={:?}", manifest.to_string()))
        .args(["-DID=\"padded\"", "-DVERSION=\"0.1.0\""])
        .arg(root.join("tests/fixtures/plugins/c/metric.c"))
        .arg(&padding)
        .arg("-o")
        .arg(&library)
        .output()
        .expect("a C compiler called cc");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    library
}

#[expect(clippy::print_stdout, reason = "the benchmark's result")]
fn report(bytes: usize, rounds: usize, times: &mut [Vec<f64>; NAMES.len()], file: Option<String>) {
    println!("loading a plugin of {bytes} bytes, {rounds} rounds, in ms\n");
    println!("{:<40} {:>8} {:>8}", "", "min", "median");
    let mut pieces = Vec::new();
    for (name, times) in NAMES.into_iter().zip(times) {
        times.sort_by(f64::total_cmp);
        let (least, middle) = (times[0], times[times.len() / 2]);
        println!("{name:<40} {least:>8.3} {middle:>8.3}");
        pieces.push(json!({"name": name, "min_ms": least, "p50_ms": middle}));
    }
    if let Some(file) = file {
        let report = json!({"bytes": bytes, "rounds": rounds, "pieces": pieces});
        fs::write(file, format!("{report:#}\n")).expect("written");
    }
}
