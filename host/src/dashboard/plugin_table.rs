//! The cost of the plugins, from the run's metrics `plugin/LABEL/…`.

use std::collections::BTreeMap;

/// The latest values of a plugin.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct PluginRow {
    pub(super) label: String,
    pub(super) calls: Option<f64>,
    pub(super) failures: Option<f64>,
    pub(super) p50_secs: Option<f64>,
    pub(super) p99_secs: Option<f64>,
    /// Share of the training loop's time; `None` if the plugin runs outside of the loop.
    pub(super) step_share: Option<f64>,
    /// Number of waiting checkpoints; `None` if the plugin is not a sink.
    pub(super) queue_depth: Option<f64>,
    /// Number of restarts of the plugin's process; `None` if the plugin runs in the host's process.
    pub(super) restarts: Option<f64>,
}

impl PluginRow {
    /// Creates the rows from metrics and their values, sorted by label.
    pub(super) fn all<'a>(values: impl Iterator<Item = (&'a str, f64)>) -> Vec<Self> {
        let mut rows: BTreeMap<&str, Self> = BTreeMap::new();
        for (name, value) in values {
            // Splits at the last slash: a label can be a path, but a quantity contains no slash.
            let Some((label, quantity)) = name
                .strip_prefix("plugin/")
                .and_then(|rest| rest.rsplit_once('/'))
            else {
                continue;
            };
            let row = rows.entry(label).or_insert_with(|| Self {
                label: label.to_owned(),
                ..Self::default()
            });
            let field = match quantity {
                "calls" => &mut row.calls,
                "failures" => &mut row.failures,
                "p50_secs" => &mut row.p50_secs,
                "p99_secs" => &mut row.p99_secs,
                "step_share" => &mut row.step_share,
                "queue_depth" => &mut row.queue_depth,
                "restarts" => &mut row.restarts,
                _ => continue,
            };
            *field = Some(value);
        }
        rows.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_has_a_row_of_its_metrics() {
        let said = [
            ("loss/train", 3.0),
            ("plugin/perplexity/calls", 4.0),
            ("plugin/perplexity/step_share", 0.02),
            ("plugin/hub-git/queue_depth", 1.0),
            ("plugin/hub-git/of_a_later_host", 1.0),
        ];
        let rows = PluginRow::all(said.into_iter());
        let labels: Vec<&str> = rows.iter().map(|row| &*row.label).collect();
        assert_eq!(labels, ["hub-git", "perplexity"]);
        assert_eq!(rows[0].queue_depth, Some(1.0));
        assert_eq!((rows[1].calls, rows[1].queue_depth), (Some(4.0), None));
    }
}
