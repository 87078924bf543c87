use serde::Deserialize;

/// The configuration of a plugin without settings.
///
/// ```
/// use host_plugin_sdk::NoConfig;
///
/// assert!(serde_json::from_str::<NoConfig>("{}").is_ok());
/// assert!(serde_json::from_str::<NoConfig>(r#"{"threshold": 3}"#).is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}
