//! Tests a metric with unusual inputs. Some have an unusual layout that DLPack allows. Others are inputs that
//! the metric cannot use.

use std::sync::atomic::{AtomicUsize, Ordering};

use host_core::{Need, metric_name_fault};
use host_plugin_abi::DLDataType;

use crate::batch::{Batch, Form, Tokens};
use crate::child::{WROTE, stage_fd};
use crate::metric_laws::{same, values};
use crate::setup::Setup;
use crate::subject::{Failure, Metric, Subject, has_reason, tolerate};
use crate::test::{Stop, Test, Topic, Verdict, fault, skip};
use host_plugin::PluginKind;

const TOPIC: Topic = Topic {
    name: "metric inputs",
    kinds: &[PluginKind::Metric],
};

pub(super) const TESTS: &[Test] = &[
    TOPIC.test(
        "ordinary-batches",
        "ordinary batches give finite values",
        ordinary_batches,
    ),
    TOPIC.test(
        "value-names",
        "the names of the values are valid and the same every time",
        value_names,
    ),
    TOPIC.test(
        "zero-dim-inputs",
        "zero-dimensional inputs do not crash the plugin",
        zero_dim_inputs,
    ),
    TOPIC.test(
        "empty-batch",
        "a batch without sequences changes nothing, or is an error",
        empty_batch,
    ),
    TOPIC.test(
        "strided-inputs",
        "gaps between elements are skipped, or are an error",
        strided_inputs,
    ),
    TOPIC.test(
        "offset-inputs",
        "byte_offset is added to the address, or is an error",
        offset_inputs,
    ),
    TOPIC.test(
        "newer-host-batch",
        "larger structs are read correctly, and unknown inputs are ignored",
        newer_host_batch,
    ),
    TOPIC.test(
        "odd-dtypes",
        "elements of an unsupported type are an error",
        odd_dtypes,
    ),
    TOPIC.test(
        "missing-input",
        "a missing input is an error",
        missing_input,
    ),
    TOPIC.test(
        "update-failures-have-reasons",
        "an update that fails reports a reason",
        update_failures_have_reasons,
    ),
    TOPIC.test(
        "inputs-unmodified",
        "the inputs are not modified",
        inputs_unmodified,
    ),
    TOPIC.test(
        "not-a-number-inputs",
        "NaN and infinity are not ignored",
        not_a_number_inputs,
    ),
];

/// A metric plugin and its inputs.
struct Fed {
    needs: Vec<Need>,
    tokens: Vec<Tokens>,
    subject: Subject,
}

impl Fed {
    fn new(setup: &Setup) -> Result<Self, Stop> {
        Ok(Self {
            needs: setup.manifest().needs.clone(),
            tokens: Tokens::several(&mut setup.random(), 5),
            subject: Subject::load(setup)?,
        })
    }

    /// Creates a metric and updates it with all batches in this layout.
    fn update(&self, form: &Form, given: &str) -> Result<Result<Metric, Failure>, Stop> {
        let metric = self.subject.metric()?;
        for tokens in &self.tokens {
            let batch = tokens.batch(&self.needs, form)?;
            if let Err(failure) = tolerate(metric.update(batch.raw(), given))? {
                return Ok(Err(failure));
            }
        }
        Ok(Ok(metric))
    }

    /// Returns the metric's values for the inputs in the usual layout.
    fn plain(&self) -> Result<Vec<(String, f64)>, Stop> {
        Ok(self
            .update(&Form::default(), "an ordinary batch")??
            .compute()?)
    }

    fn has_arrays(&self) -> bool {
        let is_scalar =
            |need: &Need| matches!(need, Need::LossSum | Need::TokenCount | Need::ByteCount);
        !self.needs.iter().all(is_scalar)
    }
}

fn ordinary_batches(setup: &Setup) -> Verdict {
    let found = Fed::new(setup)?.plain()?;
    if found.is_empty() {
        return Err(fault(
            "returned no values after five ordinary batches",
            "compute returns the state's values, each with a name",
            "call put_f64 for each value in compute",
        ));
    }
    match found.iter().find(|(_, value)| !value.is_finite()) {
        None => Ok(()),
        Some((name, value)) => Err(fault(
            format!("returned {value} as {name} after five ordinary batches"),
            "finite inputs of ordinary size give finite values",
            "look for a division by a zero count, or a logarithm of zero",
        )),
    }
}

fn value_names(setup: &Setup) -> Verdict {
    let fed = Fed::new(setup)?;
    let names = |values: Vec<(String, f64)>| -> Vec<String> {
        values.into_iter().map(|(name, _)| name).collect()
    };
    let first = names(fed.plain()?);
    if let Some(why) = first.iter().find_map(|name| metric_name_fault(name)) {
        return Err(fault(
            format!("chose an invalid name: {why}"),
            "value names are readable and not reserved for the host: a run whose plugin uses this name does not start",
            "choose another name",
        ));
    }
    let metric = fed.subject.metric()?;
    for tokens in fed.tokens.iter().rev() {
        metric.reset()?;
        let batch = tokens.batch(&fed.needs, &Form::default())?;
        metric.update(batch.raw(), "an ordinary batch")?;
        let now = names(metric.compute()?);
        if now != first {
            return Err(fault(
                format!("named its values first {first:?} and then {now:?}"),
                "a metric's values have the same names, in the same order, every time",
                "call put_f64 for every value in every call of compute; infinity and NaN are valid values",
            ));
        }
    }
    Ok(())
}

fn zero_dim_inputs(setup: &Setup) -> Verdict {
    let fed = Fed::new(setup)?;
    if !fed.has_arrays() {
        return skip("its inputs are scalars");
    }
    let form = Form {
        is_zero_dim: true,
        ..Form::default()
    };
    match fed.update(&form, "zero-dimensional inputs")? {
        Ok(metric) => tolerate(metric.compute()).map(drop),
        Err(failure) => has_reason(&failure),
    }
}

fn empty_batch(setup: &Setup) -> Verdict {
    let mut fed = Fed::new(setup)?;
    let expected = fed.plain()?;
    let nothing = Tokens::random(&mut setup.random(), 0, 7);
    fed.tokens.insert(2, nothing.clone());
    fed.tokens.push(nothing);
    match fed.update(&Form::default(), "batches, some without sequences")? {
        Err(_) => Ok(()),
        Ok(metric) => expect_same(
            &expected,
            &metric.compute()?,
            "an empty batch among others",
            "a batch without tokens adds nothing, or is an error",
            "multiply the sizes to get the number of elements; divide only in compute",
        ),
    }
}

fn expect_same(
    expected: &[(String, f64)],
    found: &[(String, f64)],
    given: &str,
    expects: &str,
    fix: &str,
) -> Verdict {
    match same(expected, found) {
        true => Ok(()),
        false => Err(fault(
            format!(
                "computed {} with {given}, but {} with ordinary batches of the same tokens",
                values(found),
                values(expected)
            ),
            expects,
            fix,
        )),
    }
}

/// Checks that another layout results in the same values, or in an error.
fn other_layout(setup: &Setup, form: &Form, given: &str, expects: &str, fix: &str) -> Verdict {
    let fed = Fed::new(setup)?;
    let expected = fed.plain()?;
    match fed.update(form, given)? {
        Err(_) => Ok(()),
        Ok(metric) => expect_same(&expected, &metric.compute()?, given, expects, fix),
    }
}

fn strided_inputs(setup: &Setup) -> Verdict {
    if !Fed::new(setup)?.has_arrays() {
        return skip("its inputs are scalars, which have no strides");
    }
    let form = Form {
        is_strided: true,
        ..Form::default()
    };
    other_layout(
        setup,
        &form,
        "inputs with gaps between their elements",
        "the element (i, j) is i * strides[0] + j * strides[1] elements after the first",
        "use the strides, or return HOST_UNSUPPORTED for inputs that are not contiguous",
    )
}

fn offset_inputs(setup: &Setup) -> Verdict {
    let form = Form {
        is_offset: true,
        ..Form::default()
    };
    other_layout(
        setup,
        &form,
        "inputs with a byte_offset",
        "the first element is at data + byte_offset",
        "add byte_offset to the address of the data",
    )
}

fn newer_host_batch(setup: &Setup) -> Verdict {
    let form = Form {
        is_newer: true,
        ..Form::default()
    };
    let fed = Fed::new(setup)?;
    let expects = "the next tensor is struct_size bytes after the previous tensor, and inputs are found by name";
    let fix = "advance by tensor->struct_size instead of indexing, and ignore unknown names";
    let expected = fed.plain()?;
    let metric = match fed.update(&form, "a batch of a newer host")? {
        Ok(metric) => metric,
        Err(failure) => return Err(fault(failure.words(), expects, fix)),
    };
    expect_same(
        &expected,
        &metric.compute()?,
        "a newer host's batch",
        expects,
        fix,
    )
}

/// Returns element types that no input has.
fn odd() -> [(DLDataType, &'static str); 4] {
    let dtype = |code, bits, lanes| DLDataType { code, bits, lanes };
    [
        (dtype(2, 16, 1), "f16"),
        (dtype(0, 8, 1), "i8"),
        (dtype(5, 64, 1), "complex f32"),
        (dtype(1, 64, 1), "u64"),
    ]
}

fn odd_dtypes(setup: &Setup) -> Verdict {
    let fed = Fed::new(setup)?;
    for &need in &fed.needs {
        for (dtype, name) in odd() {
            let form = Form {
                dtype: Some((need, dtype)),
                ..Form::default()
            };
            let given = format!("{} in {name}", need.name());
            if fed.update(&form, &given)?.is_ok() {
                return Err(fault(
                    format!("accepted {given} as if it had the declared type"),
                    "an update with an unsupported element type returns HOST_UNSUPPORTED",
                    "check dtype.code and dtype.bits before reading the data",
                ));
            }
        }
    }
    Ok(())
}

fn missing_input(setup: &Setup) -> Verdict {
    let fed = Fed::new(setup)?;
    for &need in &fed.needs {
        let form = Form {
            missing: Some(need),
            ..Form::default()
        };
        let given = format!("a batch without {}", need.name());
        if fed.update(&form, &given)?.is_ok() {
            return Err(fault(
                format!("accepted {given}"),
                "if an input that the manifest lists in needs is missing, update returns HOST_UNSUPPORTED",
                "find the input by its name, and return an error if it is missing",
            ));
        }
    }
    Ok(())
}

fn update_failures_have_reasons(setup: &Setup) -> Verdict {
    let fed = Fed::new(setup)?;
    for &need in &fed.needs {
        let missing = Form {
            missing: Some(need),
            ..Form::default()
        };
        let odd = Form {
            dtype: Some((need, odd()[0].0)),
            ..Form::default()
        };
        let name = need.name();
        for (form, given) in [
            (missing, format!("a batch without {name}")),
            (odd, format!("{name} in f16")),
        ] {
            if let Err(failure) = fed.update(&form, &given)? {
                has_reason(&failure)?;
            }
        }
    }
    Ok(())
}

fn inputs_unmodified(setup: &Setup) -> Verdict {
    let fed = Fed::new(setup)?;
    let metric = fed.subject.metric()?;
    for tokens in &fed.tokens {
        let batch = tokens.batch(&fed.needs, &Form::default())?;
        let before: Vec<Vec<u8>> = batch.memories.iter().map(|m| m.bytes().to_vec()).collect();
        let given = "read-only inputs";
        // If the test runs in the suite's own process, no handler is set, so that a debugger stops at the
        // write itself.
        protect(&batch, !setup.in_process);
        metric.update(batch.raw(), given)?;
        let mut both = batch.memories.iter().zip(&before);
        if both.any(|(memory, before)| memory.bytes() != before) {
            return Err(fault(
                "wrote into its inputs, after making them writable",
                "tensors are borrowed and read-only",
                "copy the data before changing it",
            ));
        }
    }
    Ok(())
}

/// The range of addresses that contains the read-only inputs.
static LOWEST: AtomicUsize = AtomicUsize::new(0);
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

/// Makes the inputs read-only. If `is_handled`, a signal handler records a write into them.
fn protect(batch: &Batch, is_handled: bool) {
    let ranges = batch.memories.iter().map(super::memory::Memory::range);
    let lowest = ranges.clone().map(|range| range.start).min();
    LOWEST.store(lowest.unwrap_or(0), Ordering::Relaxed);
    let highest = ranges.map(|range| range.end).max();
    HIGHEST.store(highest.unwrap_or(0), Ordering::Relaxed);
    for memory in &batch.memories {
        memory.protect();
    }
    if !is_handled {
        return;
    }
    // SAFETY: the handler makes only calls that are async-signal-safe; zero is valid for the other fields.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
        action.sa_sigaction = handler as *const () as usize;
        // The handler runs only for the first fault. After the handler returns, the same instruction faults
        // again, which ends the process.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND;
        libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut());
    }
}

extern "C" fn on_fault(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo, which contains an address for SIGSEGV.
    let at = unsafe { (*info).si_addr() }.addr();
    if at >= LOWEST.load(Ordering::Relaxed) && at < HIGHEST.load(Ordering::Relaxed) {
        let note = WROTE.as_bytes();
        // SAFETY: `pwrite` is async-signal-safe, and the bytes are readable. Zeros terminate the text.
        unsafe {
            libc::pwrite(stage_fd(), note.as_ptr().cast(), note.len(), 0);
            libc::pwrite(
                stage_fd(),
                [0u8; 200].as_ptr().cast(),
                200,
                note.len() as i64,
            );
        }
    }
}

fn not_a_number_inputs(setup: &Setup) -> Verdict {
    let mut fed = Fed::new(setup)?;
    let is_real = |need: &Need| matches!(need, Need::LossSum | Need::Nll | Need::Logits);
    if !fed.needs.iter().any(is_real) {
        return skip("its inputs are integers");
    }
    let first = fed.tokens[0].clone();
    // The metric's values if the first token of the first batch has a loss of zero.
    fed.tokens[0] = first.clone().with_first(0.0);
    let without = fed.plain()?;
    if without.is_empty() {
        return skip("it returns no values");
    }
    for odd in [f32::NAN, f32::INFINITY] {
        fed.tokens[0] = first.clone().with_first(odd);
        let given = format!("{odd} in the inputs of the first token");
        let Ok(metric) = fed.update(&Form::default(), &given)? else {
            continue;
        };
        let Ok(found) = tolerate(metric.compute())? else {
            continue;
        };
        if found.iter().all(|(_, value)| value.is_finite()) && same(&without, &found) {
            return Err(fault(
                format!(
                    "ignored {given}: the computed values are {}",
                    values(&found)
                ),
                "NaN or infinity in the inputs changes a value, for example to NaN, or is an error",
                "let it propagate through the sums; f32::max and fmax drop NaN",
            ));
        }
    }
    Ok(())
}
