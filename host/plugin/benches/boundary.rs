//! What it costs to call a metric across the plugin boundary.
//!
//! The same trait body is called in four ways: directly, with the views of its three inputs built
//! before each call, through the loaded library's function table (its panic guard included), and as the
//! host calls it, with the accounting. Loops are timed, never single calls; the ways take turns in every
//! round, so that a change of the machine's speed meets all of them; one way is there twice, and what
//! lies between those two is no difference. The smallest and the middle of all rounds are shown.
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

/// Calls of a loop that is timed.
const CALLS: u32 = 5_000;
const ROUNDS: usize = 400;

const NEEDS: [Need; 3] = [Need::LossSum, Need::TokenCount, Need::ByteCount];

/// A way to do something once.
struct Way<'a> {
    name: &'static str,
    run: Box<dyn FnMut() + 'a>,
    /// Nanoseconds of a call in each round.
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
    // As in a training.
    guard_process();
    let plugin = load();
    let mut port = plugin.metric().expect("a metric");
    let (update, instance) = through_the_table();
    // The numbers of the batch are read anew each time, as those of a real one are.
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
            way("two readings of the clock", || {
                black_box(Instant::now().elapsed());
            }),
            way("the body", || call(&mut one, black_box(abi))),
            way("views and the body", || direct(&mut two)),
            way("views and the body, again", || direct(&mut three)),
            way("views and the body across the boundary", || {
                let called = with_batch(&NEEDS, false, black_box(batch), |abi| {
                    // SAFETY: the library's own instance, and a batch that outlives the call.
                    unsafe { black_box(update)(black_box(instance), abi) }
                });
                assert_eq!(called.expect("a batch"), 0);
            }),
            way("the same with the accounting", || {
                port.update(black_box(batch)).expect("updated");
            }),
        ];
        measure(&mut ways, rounds);
        report(&mut ways, rounds, cpu, value_of("--json"));
    })
    .expect("a batch");
    // A guarded process that ends otherwise was ended by a plugin.
    end_process(0);
}

/// The trait's function, as a program calls it that has the metric in itself.
fn call(metric: &mut ThreeInputs, abi: &HostBatch) {
    // SAFETY: the batch is as the ABI says, and outlives the call.
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
        // Each begins in its turn, so that none is always behind the same other.
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
    println!("{rounds} rounds of {CALLS} calls, {pinned}, load {load}; ns a call");
    println!("{:<42} {:>8} {:>8} {:>8}", "", "least", "middle", "most");
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
    let direct = middle("views and the body");
    let across = middle("views and the body across the boundary");
    let accounted = middle("the same with the accounting");
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
            "control: a way and itself",
            middle("views and the body, again") - direct,
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

/// The library's function and an instance of it, without what the host puts around them.
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
    // SAFETY: the library is this workspace's own; it is never unloaded, and gives what the ABI says.
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

/// Keeps this thread on the CPU where it is, if the system lets it.
fn pin() -> Option<usize> {
    // SAFETY: the set is this function's own, and zeros are an empty one.
    unsafe {
        let cpu = usize::try_from(libc::sched_getcpu()).ok()?;
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        (libc::sched_setaffinity(0, size_of_val(&set), &raw const set) == 0).then_some(cpu)
    }
}
