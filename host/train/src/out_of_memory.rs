//! Converts libtorch's out-of-memory failures to an error with a hint, both for a device and for main memory.
//! Such a failure can be a panic, because tch's operations panic if libtorch fails.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use host_core::{Error, ErrorKind, Result};

thread_local! {
    /// Whether this thread is inside a call of [`explained`].
    static EXPLAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`. Converts libtorch's out-of-memory panics and errors to an error with a hint. Other panics
/// continue to unwind.
pub(crate) fn explained<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    be_silent_about_it();
    let outer = EXPLAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    EXPLAINED.set(outer);
    match result {
        Ok(Err(error)) => Err(wanted(error.message()).map_or(error, full)),
        Ok(done) => done,
        Err(panic) => match said(&*panic).and_then(wanted) {
            Some(wanted) => Err(full(wanted)),
            None => panic::resume_unwind(panic),
        },
    }
}

fn full(wanted: String) -> Error {
    Error::new(
        ErrorKind::System,
        format!("out of memory: an allocation of {wanted} failed"),
    )
    .hint(
        "lower --train-batch-size and raise --gradient-accumulation-steps, turn on \
         --gradient-checkpointing, or lower --valid-batch-size if an evaluation failed",
    )
}

/// Returns the size of the failed allocation, if the message is libtorch's out-of-memory error.
fn wanted(message: &str) -> Option<String> {
    if !message.contains("out of memory") && !message.contains("can't allocate memory") {
        return None;
    }
    let (_, size) = message.split_once("ried to allocate ")?;
    let words: Vec<&str> = size.splitn(3, ' ').take(2).collect();
    Some(words.join(" ").trim_end_matches('.').to_owned())
}

fn said(panic: &(dyn Any + Send)) -> Option<&str> {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
}

/// Suppresses the output of out-of-memory panics, because the error is printed instead.
fn be_silent_about_it() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let is_explained = EXPLAINED.get() && said(info.payload()).and_then(wanted).is_some();
            if !is_explained {
                print(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;
    use crate::device::tests::device;

    #[test]
    fn too_large_a_tensor_is_an_error_and_other_panics_continue() {
        // 16 PiB. The test does not check the unit, which libtorch chooses.
        let make = || Ok(Tensor::zeros([1 << 54], (Kind::Uint8, device())));
        let error = explained(make).expect_err("too large");
        let start = "out of memory: an allocation of 1";
        assert!(error.message().starts_with(start), "{error}");
        assert!(error.hint_text().is_some());

        let other = || explained(|| -> Result<()> { panic!("another") });
        assert!(catch_unwind(other).is_err());
    }

    #[test]
    fn the_message_of_cuda_is_recognized() {
        let said =
            "libtorch failed: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total";
        let error = explained(|| -> Result<()> { Err(Error::new(ErrorKind::System, said)) });
        let error = error.expect_err("full");
        assert_eq!(
            error.message(),
            "out of memory: an allocation of 2.50 GiB failed"
        );
    }
}
