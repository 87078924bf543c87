//! Reports the cost of plugins as metrics of the run, such as `plugin/LABEL/step_share`.

use std::time::{Duration, Instant};

use host_core::{EventBody, MetricValue, Step};
use host_plugin::{CallAccount, PluginKind};

/// The accounts of a run's plugins, and what was already reported of them.
#[derive(Debug)]
pub(crate) struct PluginAccounts {
    plugins: Vec<PluginAccount>,
    /// `since`: the start of the period that the next report covers. `until`: the end of the loop; not set
    /// before the loop has ended.
    since: Instant,
    until: Option<Instant>,
    reported: Option<Step>,
}

/// The account of a plugin.
#[derive(Debug)]
pub(crate) struct PluginAccount {
    label: String,
    account: CallAccount,
    /// Whether the training loop waits for the plugin. Sinks run in parallel with the loop, and plugins that
    /// choose parameter groups run before the loop starts.
    is_in_loop: bool,
    /// Whether any part of the plugin runs in a separate process, which the host can restart.
    is_isolated: bool,
    /// The time in the loop that was already reported.
    in_loop: Duration,
}

impl PluginAccount {
    /// Creates the account of the plugin with this label.
    pub(crate) fn new(
        label: String,
        account: CallAccount,
        kinds: &[PluginKind],
        is_isolated: bool,
    ) -> Self {
        let in_loop = [PluginKind::Metric, PluginKind::Observer];
        Self {
            label,
            is_in_loop: in_loop.iter().any(|kind| kinds.contains(kind)),
            is_isolated,
            in_loop: account.summary().in_loop,
            account,
        }
    }
}

impl PluginAccounts {
    /// Starts the accounts at the start of the loop. The step `start` is not reported, because an earlier
    /// process may have reported it.
    pub(crate) fn begin(plugins: Vec<PluginAccount>, start: Step) -> Self {
        Self {
            plugins,
            since: Instant::now(),
            until: None,
            reported: Some(start),
        }
    }

    /// Must be called at the end of the loop. Later time does not count for `step_share`.
    pub(crate) fn loop_ended(&mut self) {
        self.until = Some(Instant::now());
    }

    /// Returns the metrics at this step. Returns `None` if this step or a later step was already reported.
    /// (After a roll-back, a later step may have been reported.) `waiting` contains, for each sink, how many
    /// checkpoints wait for it.
    pub(crate) fn report(&mut self, step: Step, waiting: &[(String, usize)]) -> Option<EventBody> {
        if self.reported.is_some_and(|reported| step <= reported) {
            return None;
        }
        self.reported = Some(step);
        let until = self.until.unwrap_or_else(Instant::now);
        let loop_secs = (until - self.since).as_secs_f64();
        self.since = until;
        let mut values = Vec::new();
        for plugin in &mut self.plugins {
            let summary = plugin.account.summary();
            let in_loop = summary.in_loop - std::mem::replace(&mut plugin.in_loop, summary.in_loop);
            let mut put = |name: &str, value: f64| {
                let name = format!("plugin/{}/{name}", plugin.label);
                values.push(MetricValue::new(name, value));
            };
            put("calls", summary.calls as f64);
            put("failures", summary.failures as f64);
            put("p50_secs", summary.p50.as_secs_f64());
            put("p99_secs", summary.p99.as_secs_f64());
            if plugin.is_in_loop {
                put("step_share", in_loop.as_secs_f64() / loop_secs.max(1e-9));
            }
            if let Some((_, depth)) = waiting.iter().find(|(sink, _)| *sink == plugin.label) {
                put("queue_depth", *depth as f64);
            }
            if plugin.is_isolated || summary.restarts > 0 {
                put("restarts", summary.restarts as f64);
            }
        }
        Some(EventBody::Metrics { values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(report: Option<EventBody>) -> Vec<MetricValue> {
        match report {
            Some(EventBody::Metrics { values }) => values,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_step_is_reported_once_and_a_sink_has_no_step_share() {
        let plugin = |label: &str, kind, is_isolated| {
            let account = CallAccount::default();
            PluginAccount::new(label.to_owned(), account, &[kind], is_isolated)
        };
        let plugins = vec![
            plugin("m", PluginKind::Metric, false),
            plugin("s", PluginKind::CheckpointSink, true),
        ];
        let mut accounts = PluginAccounts::begin(plugins, Step(5));
        let waiting = [("s".to_owned(), 2)];
        // The previous process may have reported the first step.
        assert_eq!(accounts.report(Step(5), &waiting), None);
        let reported = values(accounts.report(Step(10), &waiting));
        let names: Vec<&str> = reported.iter().map(|value| &*value.name).collect();
        assert_eq!(
            names,
            [
                "plugin/m/calls",
                "plugin/m/failures",
                "plugin/m/p50_secs",
                "plugin/m/p99_secs",
                "plugin/m/step_share",
                "plugin/s/calls",
                "plugin/s/failures",
                "plugin/s/p50_secs",
                "plugin/s/p99_secs",
                "plugin/s/queue_depth",
                "plugin/s/restarts",
            ]
        );
        assert!(reported.contains(&MetricValue::new("plugin/s/queue_depth", 2.0)));
        assert_eq!(accounts.report(Step(10), &waiting), None);
        assert_eq!(accounts.report(Step(5), &waiting), None);
        accounts.loop_ended();
        let reported = values(accounts.report(Step(11), &[]));
        assert!(reported.contains(&MetricValue::new("plugin/m/step_share", 0.0)));
    }
}
