//! The messages and services of `proto/*/` as Rust code. The code is generated and committed, so that a
//! build needs no generator. A test checks that it is up to date; `make bless` regenerates it.
#![forbid(unsafe_code)]

/// Reads and controls runs. Documented in `tracker/v1/tracker.proto` and `tracker/v1/control.proto`.
pub mod tracker {
    /// Version 1.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        include!("generated/tracker.v1.rs");
    }
}

/// TensorBoard's data provider. Documented in `tensorboard/data/data_provider.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod tensorboard {
    include!("generated/tensorboard.rs");

    /// The service.
    pub mod data {
        include!("generated/tensorboard.data.rs");
    }

    /// The messages that TensorBoard's HParams plugin reads.
    pub mod hparams {
        include!("generated/tensorboard.hparams.rs");
    }
}

/// The encoded `FileDescriptorSet` of all files, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptors.bin");
