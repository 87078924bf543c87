//! Measures the cost of a metric call across the plugin boundary.
//!
//! The same trait function is called in four variants. The first variant calls it directly. The second also
//! builds the views of the function's three inputs before each call. The third also builds the views, but
//! calls the function through the loaded library's function table, and therefore through its panic guard. The
//! fourth is the host's own call, which also does the accounting. An empty loop and two clock readings are
//! measured for comparison. Only loops are timed, never single calls. The variants take turns in every round,
//! so that changes in the machine's speed affect all of them. The second variant is measured twice, and the
//! difference between its two results is noise. For each variant, the output contains the minimum, the median
//! and the maximum over all rounds.
//!
//! `cargo bench -p host-plugin --bench boundary -- [--json FILE] [--rounds N]`

mod fixture;

use std::ffi::c_void;
use std::hint::black_box;
use std::time::Instant;

use host_core::{Dtype, MetricBatch, Need};
use host_plugin::{Plugin, PluginSpec, SearchPath, end_process, guard_process, with_batch};
use host_plugin_abi::{HostBatch, HostMetric, HostStatus};
use host_plugin_sdk::{Batch, Metric as _};
use serde_json::json;
use three_inputs::ThreeInputs;

use self::fixture::{library, scalar};

/// Number of calls in a timed loop.
const CALLS: u32 = 5_000;
const ROUNDS: usize = 400;

const NEEDS: [Need; 3] = [Need::LossSum, Need::TokenCount, Need::ByteCount];

/// A measured variant.
struct Way<'a> {
    name: &'static str,
    run: Box<dyn FnMut() + 'a>,
    /// Nanoseconds per call, for each round.
    ns: Vec<f64>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value_of = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1).cloned()
    };
    let rounds = value_of("--rounds").map_or(ROUNDS, |n| n.parse().expect("--rounds N"));
    let cpu = pin();

    let (loss, tokens, bytes) = (2.5f64, 7i64, 31i64);
    let tensors = [
        (Need::LossSum, scalar(&loss, Dtype::F64)),
        (Need::TokenCount, scalar(&tokens, Dtype::I64)),
        (Need::ByteCount, scalar(&bytes, Dtype::I64)),
    ];
    let batch = MetricBatch {
        step: 1,
        tensors: &tensors,
    };
    // As in a training run, the process is guarded against its plugins.
    guard_process();
    let plugin = load();
    let mut port = plugin.metric().expect("a metric");
    let (update, instance) = through_the_table();
    // `black_box` makes each call read the values of the batch again, as in a real evaluation.
    let (mut one, mut two, mut three) = <(ThreeInputs, ThreeInputs, ThreeInputs)>::default();
    let direct = |metric: &mut ThreeInputs| {
        let called = with_batch(&NEEDS, false, black_box(batch), |abi| call(metric, abi));
        called.expect("a batch");
    };
    with_batch(&NEEDS, false, batch, |abi| {
        let mut ways = [
            way("nothing", || {
                black_box(&batch);
            }),
            way("two clock readings", || {
                black_box(Instant::now().elapsed());
            }),
            way("the body", || call(&mut one, black_box(abi))),
            way("views and body", || direct(&mut two)),
            way("views and body, again", || direct(&mut three)),
            way("views and body across the boundary", || {
                let called = with_batch(&NEEDS, false, black_box(batch), |abi| {
                    // SAFETY: the library created the instance, and the batch outlives the call.
                    unsafe { black_box(update)(black_box(instance), abi) }
                });
                assert_eq!(called.expect("a batch"), 0);
            }),
            way("the same with accounting", || {
                port.update(black_box(batch)).expect("updated");
            }),
        ];
        measure(&mut ways, rounds);
        report(&mut ways, rounds, cpu, value_of("--json"));
    })
    .expect("a batch");
    // A guarded process must end with `end_process`; any other exit is attributed to a plugin.
    end_process(0);
}

/// Calls the trait's function directly, as if the metric were part of the program.
fn call(metric: &mut ThreeInputs, abi: &HostBatch) {
    // SAFETY: the batch conforms to the ABI and outlives the call.
    let batch = unsafe { Batch::new(abi) }.expect("a batch");
    black_box(metric).update(&batch).expect("updated");
}

fn way<'a>(name: &'static str, mut once: impl FnMut() + 'a) -> Way<'a> {
    Way {
        name,
        run: Box::new(move || {
            for _ in 0..CALLS {
                once();
            }
        }),
        ns: Vec::new(),
    }
}

fn measure(ways: &mut [Way<'_>], rounds: usize) {
    let warm_up = rounds / 10;
    for round in 0..warm_up + rounds {
        // Each round starts with a different variant, so that no variant is always the first.
        for i in 0..ways.len() {
            let at = (round + i) % ways.len();
            let way = &mut ways[at];
            let begin = Instant::now();
            (way.run)();
            let ns = begin.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS);
            if round >= warm_up {
                way.ns.push(ns);
            }
        }
    }
}

fn report(ways: &mut [Way<'_>], rounds: usize, cpu: Option<usize>, file: Option<String>) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    let pinned = cpu.map_or("not pinned".to_owned(), |cpu| {
        format!("pinned to CPU {cpu}")
    });
    println!("{rounds} rounds of {CALLS} calls, {pinned}, load {load}; ns per call");
    println!("{:<42} {:>8} {:>8} {:>8}", "", "min", "median", "max");
    let mut rows = Vec::new();
    for Way { name, ns, .. } in ways.iter_mut() {
        ns.sort_by(f64::total_cmp);
        let (least, middle, most) = (ns[0], ns[ns.len() / 2], ns[ns.len() - 1]);
        println!("{name:<42} {least:>8.2} {middle:>8.2} {most:>8.2}");
        rows.push(json!({ "name": name, "least_ns": least, "middle_ns": middle, "most_ns": most }));
    }
    let middle = |name: &str| {
        let way = ways.iter().find(|way| way.name == name).expect(name);
        way.ns[way.ns.len() / 2]
    };
    let direct = middle("views and body");
    let across = middle("views and body across the boundary");
    let accounted = middle("the same with accounting");
    let differences = [
        ("boundary_ns", "the boundary", across - direct),
        ("accounting_ns", "the accounting", accounted - across),
        (
            "call_ns",
            "a whole call without the body",
            accounted - middle("the body"),
        ),
        (
            "control_ns",
            "control: a variant and itself",
            middle("views and body, again") - direct,
        ),
    ];
    println!();
    for (_, what, ns) in &differences {
        println!("{what:<42} {ns:>8.2}");
    }
    if let Some(file) = file {
        let differences: serde_json::Map<_, _> = differences
            .iter()
            .map(|(key, _, ns)| ((*key).to_owned(), json!(ns)))
            .collect();
        let text = json!({
            "calls": CALLS, "rounds": rounds, "cpu": cpu, "load": load,
            "ways": rows, "differences": differences,
        });
        std::fs::write(&file, format!("{text:#}\n")).expect("the file is written");
    }
}

fn load() -> Plugin {
    let spec = format!("{}", library().display());
    let spec: PluginSpec = spec.parse().expect("a path");
    let found = SearchPath::new([]).find(&spec.target).expect("found");
    Plugin::load(&found, &spec.config).expect("loaded")
}

type Update = unsafe extern "C" fn(*mut c_void, *const HostBatch) -> HostStatus;

/// Returns the library's `update` function, which is then called without the host's code. Also returns an
/// instance.
fn through_the_table() -> (Update, *mut c_void) {
    let api: &'static host_plugin_abi::HostApi = Box::leak(Box::new(host_plugin_abi::HostApi {
        struct_size: size_of::<host_plugin_abi::HostApi>() as u32,
        abi_major: host_plugin_abi::HOST_ABI_MAJOR,
        abi_minor: host_plugin_abi::HOST_ABI_MINOR,
        reserved: 0,
        ctx: std::ptr::null_mut(),
        log_enabled: None,
        log: None,
        set_error: None,
        get_extension: None,
    }));
    // SAFETY: the library belongs to this workspace, is never unloaded, and conforms to the ABI.
    unsafe {
        let library = libloading::Library::new(library()).expect("loaded");
        let library = std::mem::ManuallyDrop::new(library);
        let entry = library
            .get::<host_plugin_abi::HostPluginEntry>(host_plugin_abi::ENTRY_SYMBOL.as_bytes());
        let plugin = (entry.expect("an entry"))(api);
        let table = (*(*plugin).items).vtable.cast::<HostMetric>();
        let mut instance = std::ptr::null_mut();
        let create = (*table).create.expect("create");
        let settings = host_plugin_abi::HostStr::new("{}");
        assert_eq!(create(api, settings, &raw mut instance), 0);
        ((*table).update.expect("update"), instance)
    }
}

/// Keeps this thread on its current CPU, if the system allows it.
fn pin() -> Option<usize> {
    // SAFETY: the set is a local variable, and a set of zeros is valid and empty.
    unsafe {
        let cpu = usize::try_from(libc::sched_getcpu()).ok()?;
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        (libc::sched_setaffinity(0, size_of_val(&set), &raw const set) == 0).then_some(cpu)
    }
}
