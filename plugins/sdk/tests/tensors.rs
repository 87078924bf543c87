//! Checks the tensors that a metric can read, and the errors for all others.

use std::sync::Mutex;

use host_plugin_sdk::fake::Tensor;
use host_plugin_sdk::{Batch, Device, Dtype, Host, Metric, NoConfig, Result, Values};
use host_plugin_sdk::{export_plugin, fake};

/// The function that the running test applies to a batch.
type Look = fn(&Batch<'_>) -> Result<()>;

/// The function for the next metric that is created. It is not part of the configuration, because JSON cannot
/// contain a function. The tests take turns, because they share it.
static LOOK: Mutex<Option<Look>> = Mutex::new(None);

struct Looker(Look);

impl Metric for Looker {
    type Config = NoConfig;

    fn create(_config: NoConfig, _host: Host) -> Result<Self> {
        Ok(Self(LOOK.lock().expect("a turn").expect("a look")))
    }
    fn reset(&mut self) {}
    fn update(&mut self, batch: &Batch<'_>) -> Result<()> {
        (self.0)(batch)
    }
    fn export_state(&self) -> Vec<u8> {
        Vec::new()
    }
    fn merge_state(&mut self, _state: &[u8]) -> Result<()> {
        Ok(())
    }
    fn compute(&self, _values: &mut Values<'_>) -> Result<()> {
        Ok(())
    }
}

export_plugin! { description: "Reads tensors", metric: Looker }

fn look(batch: &fake::Batch, look: Look) -> Result<(), fake::Failure> {
    static TURN: Mutex<()> = Mutex::new(());
    let mut metric = {
        let _turn = TURN.lock().expect("a turn");
        *LOOK.lock().expect("the look") = Some(look);
        fake::Plugin::load(&PLUGIN).metric("{}").expect("created")
    };
    metric.update(batch)
}

fn x(tensor: impl Into<Tensor>) -> fake::Batch {
    fake::Batch::new().with("other", 1.0).with("x", tensor)
}

const SIX: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];

#[test]
fn a_contiguous_tensor_is_a_slice_of_its_type() {
    look(&x(Tensor::f32(&[2, 3], &SIX)), |batch| {
        let x = batch.tensor("x")?;
        assert_eq!((x.shape(), x.strides()), (&[2, 3][..], &[3, 1][..]));
        assert_eq!(
            (x.dtype(), x.device(), x.numel()),
            (Dtype::F32, Device::Cpu, 6)
        );
        assert_eq!(x.as_f32()?, SIX);
        assert!(x.iter_f32()?.eq(SIX));
        Ok(())
    })
    .expect("read");
    look(&x(Tensor::i64(&[2], &[-1, i64::MAX])), |batch| {
        assert_eq!(batch.tensor("x")?.as_i64()?, [-1, i64::MAX]);
        Ok(())
    })
    .expect("read");
}

#[test]
fn iterators_support_any_strides() {
    // One view is transposed, one is reversed and limited to every second element, and one is broadcast.
    look(
        &x(Tensor::f32(&[2, 3], &SIX).strided(&[3, 2], &[1, 3])),
        |batch| {
            let x = batch.tensor("x")?;
            assert!(!x.is_contiguous());
            assert!(x.iter_f32()?.eq([1.0, 4.0, 2.0, 5.0, 3.0, 6.0]));
            assert_eq!(x.iter_f32()?.len(), 6);
            Ok(())
        },
    )
    .expect("read");
    let reversed = Tensor::f32(&[6], &SIX).strided(&[3], &[-2]).byte_offset(20);
    look(&x(reversed), |batch| {
        assert!(batch.tensor("x")?.iter_f32()?.eq([6.0, 4.0, 2.0]));
        Ok(())
    })
    .expect("read");
    look(
        &x(Tensor::f32(&[6], &SIX).strided(&[2, 2], &[0, 1])),
        |batch| {
            assert!(batch.tensor("x")?.iter_f32()?.eq([1.0, 2.0, 1.0, 2.0]));
            Ok(())
        },
    )
    .expect("read");
}

#[test]
fn a_byte_offset_moves_the_start() {
    let tail = Tensor::f32(&[6], &SIX).strided(&[2], &[1]).byte_offset(16);
    look(&x(tail), |batch| {
        assert_eq!(batch.tensor("x")?.as_f32()?, [5.0, 6.0]);
        Ok(())
    })
    .expect("read");
}

#[test]
fn an_axis_of_one_may_have_any_stride() {
    look(
        &x(Tensor::f32(&[6], &SIX).strided(&[1, 6], &[77, 1])),
        |batch| {
            assert_eq!(batch.tensor("x")?.as_f32()?, SIX);
            Ok(())
        },
    )
    .expect("read");
}

#[test]
fn an_empty_tensor_has_no_elements() {
    look(&x(Tensor::f32(&[0, 3], &[])), |batch| {
        let x = batch.tensor("x")?;
        assert!(x.as_f32()?.is_empty());
        assert_eq!(x.iter_f32()?.count(), 0);
        assert!(x.scalar::<f32>().is_err());
        Ok(())
    })
    .expect("read");
}

#[test]
fn scalars_are_read_by_name() {
    let batch = fake::Batch::new()
        .at_step(9)
        .with("a", 1.5)
        .with("b", -2i64);
    look(&batch, |batch| {
        assert_eq!(batch.step(), 9);
        assert_eq!(batch.scalar_f64("a")?, 1.5);
        assert_eq!(batch.scalar_i64("b")?, -2);
        let names: Result<Vec<&str>> = batch.tensors()?.map(|t| Ok(t?.name())).collect();
        assert_eq!(names?, ["a", "b"]);
        Ok(())
    })
    .expect("read");
}

#[test]
fn an_unreadable_tensor_is_unsupported() {
    let read: Look = |batch| batch.tensor("x")?.as_f32().map(drop);
    let six = || Tensor::f32(&[6], &SIX);
    for (tensor, says) in [
        (six().claim_device(2), "is on Cuda(0)"),
        (six().claim_device(77), "is on Other(77)"),
        (six().claim_dtype(2, 64, 1), "type F64, not F32"),
        (six().claim_dtype(4, 16, 1), "type Bf16"),
        (six().claim_dtype(2, 32, 4), "type Other"),
        (six().claim_dtype(200, 1, 1), "type Other"),
        (six().strided(&[3], &[2]), "is not contiguous"),
    ] {
        let failure = look(&x(tensor), read).expect_err(says);
        assert!(failure.is_unsupported(), "{failure}");
        assert!(failure.message.contains(says), "{failure}");
    }
    let failure = look(&fake::Batch::new(), read).expect_err("absent");
    assert!(failure.is_unsupported());
    assert!(failure.message.contains("no tensor \"x\""), "{failure}");
    let failure = look(&x(six()), |batch| batch.scalar_f64("x").map(drop));
    assert!(failure.expect_err("six").message.contains("not a scalar"));
}

#[test]
fn an_invalid_layout_is_an_error_before_any_element_is_read() {
    let read: Look = |batch| batch.tensor("x")?.iter_f32().map(drop);
    let six = || Tensor::f32(&[6], &SIX);
    for tensor in [
        six().byte_offset(2),                          // not aligned
        six().byte_offset(u64::MAX),                   // wraps around
        six().strided(&[-1], &[1]),                    // a negative size
        six().strided(&[i64::MAX, i64::MAX], &[1, 1]), // too many elements
        six().strided(&[2], &[i64::MAX]),              // too far
        six().strided(&[3, 3], &[i64::MAX, i64::MAX]), // too far twice
        six().strided(&[2, 2], &[i64::MIN / 4, 1]),    // too far back
        Tensor::f32(&[0], &[]).strided(&[1], &[1]),    // null pointer, but one element
    ] {
        let failure = look(&x(tensor.clone()), read).expect_err("refused");
        assert!(
            failure.message.starts_with("the host passed tensor \"x\""),
            "{failure}"
        );
    }
}
