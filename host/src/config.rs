//! The arguments of a run: flags, TOML file and defaults.

pub(crate) mod hub_model;
mod preflight_policy;
mod resume_policy;
pub(crate) mod script_names;
pub(crate) mod settings;
pub(crate) mod train_args;

pub(crate) use self::hub_model::HubModel;
pub(crate) use self::preflight_policy::PreflightPolicy;
pub(crate) use self::resume_policy::ResumePolicy;
pub(crate) use self::train_args::TrainArgs;
