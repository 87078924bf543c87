//! Tests of the sink with real git: with a bare repository on disk, and with a server that is as strict as
//! the Hub.

mod creation;
mod faults;
mod fetch;
mod hub;
mod local;
mod network;
mod parts;
mod patience;
#[cfg(feature = "peers")]
mod peers;
mod plugin;
mod preflight;
mod race;
mod redirects;
mod servers;
mod support;
