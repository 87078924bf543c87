//! The sink against real git: a bare repository on disk, and a server as strict as the Hub.

mod faults;
mod hub;
mod local;
mod plugin;
mod support;
