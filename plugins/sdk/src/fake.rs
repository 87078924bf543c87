//! A host without training, for a plugin's own tests.
//!
//! It calls the plugin in the same way as the real host: through the entry function, the descriptor and
//! the vtable, with C structs as arguments and callbacks for results. It panics if the plugin breaks the ABI.
//! It returns the errors that a call is allowed to return.
//!
//! ```standalone_crate
//! # use host_plugin_sdk::{Groups, GroupsRequest, Host, NoConfig, ParamGroups, Result, export_plugin};
//! use host_plugin_sdk::fake;
//! # struct Nothing;
//! # impl ParamGroups for Nothing {
//! #     type Config = NoConfig;
//! #     fn create(_: NoConfig, host: Host) -> Result<Self> { host.info("hello"); Ok(Self) }
//! #     fn group(&mut self, _: &GroupsRequest<'_>, _: &mut Groups<'_>) -> Result<()> { Ok(()) }
//! # }
//! # export_plugin! { description: "Groups nothing", param_groups: Nothing }
//!
//! let plugin = fake::Plugin::load(&PLUGIN);
//! let refused = plugin.param_groups(r#"{"unknown": 1}"#).unwrap_err();
//! assert!(refused.message.starts_with("bad configuration: unknown field"));
//! plugin.param_groups("{}").unwrap();
//! assert_eq!(plugin.log(), ["info: hello"]);
//! ```

mod batch;
mod checkpoint;
mod host;
mod metric;
mod observer;
mod param_groups;
mod plugin;
mod sink;

pub use batch::{Batch, Tensor};
pub use checkpoint::{Checkpoint, Scratch};
pub use host::{Failure, api, host};
pub use metric::Metric;
pub use observer::{Observer, event_view};
pub use param_groups::{Group, Grouping, Param, ParamGroups};
pub use plugin::Plugin;
pub use sink::{Canceller, CheckpointSink};
