//! The sink against real git: a bare repository on disk, and a server as strict as the Hub.

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
