//! The messages and services of `proto/*/`, as Rust: generated, committed, and kept fresh by a test,
//! so that nobody who builds this needs a generator. `make bless` writes them anew.
#![forbid(unsafe_code)]

/// Reads runs: `tracker/v1/tracker.proto`, where every name is explained.
pub mod tracker {
    /// Version 1.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        include!("generated/tracker.v1.rs");
    }
}

/// What TensorBoard asks of a data provider: `tensorboard/data/data_provider.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod tensorboard {
    include!("generated/tensorboard.rs");

    /// The service.
    pub mod data {
        include!("generated/tensorboard.data.rs");
    }

    /// What the HParams plugin reads.
    pub mod hparams {
        include!("generated/tensorboard.hparams.rs");
    }
}

/// All files of this crate in one `FileDescriptorSet`, encoded, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptors.bin");
