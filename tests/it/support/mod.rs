//! Helpers for the tests of the program.

mod built;
mod checkpoint;
mod disk;
mod fixture;
mod git;
mod home;
mod http2;
mod process;
mod pty;
mod small_disk;
mod store;

pub(crate) use built::{built, cargo, root};
pub(crate) use checkpoint::{assert_complete, files_of, manifest_of, sha256};
pub(crate) use disk::{Disk, Operation, Unsynced, read_record};
pub(crate) use fixture::{Fixture, fake_libtorch, kill_at, record_writes};
pub(crate) use git::{bare_repository, git, git_bytes};
pub(crate) use home::Home;
pub(crate) use http2::Http2;
pub(crate) use process::{Output, Process, takes};
pub(crate) use pty::Pty;
pub(crate) use small_disk::SmallDisk;
pub(crate) use store::{await_event, curve, events_of};
