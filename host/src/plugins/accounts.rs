//! What the plugins cost, as metrics of the run: `plugin/LABEL/step_share` and its like.

use std::time::{Duration, Instant};

use host_core::{EventBody, MetricValue, Step};
use host_plugin::{CallAccount, PluginKind};

/// The accounts of a run's plugins, which go on counting, and what of them was reported.
#[derive(Debug)]
pub(crate) struct PluginAccounts {
    plugins: Vec<PluginAccount>,
    /// When the time began that the next report's shares are of, and when it ended, if it has.
    since: Instant,
    until: Option<Instant>,
    reported: Option<Step>,
}

/// A plugin's account.
#[derive(Debug)]
pub(crate) struct PluginAccount {
    label: String,
    account: CallAccount,
    /// Whether the loop waits for any of its kinds. Sinks run beside the loop, and parameter groups are
    /// made before it.
    is_in_loop: bool,
    /// Whether any of it runs in a process of its own, which may have to be started again.
    is_isolated: bool,
    /// The time in the loop that was reported.
    in_loop: Duration,
}

impl PluginAccount {
    /// The account of the plugin of this label.
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
    /// The loop begins now, at this step, of which an earlier process has reported if there was one.
    pub(crate) fn begin(plugins: Vec<PluginAccount>, start: Step) -> Self {
        Self {
            plugins,
            since: Instant::now(),
            until: None,
            reported: Some(start),
        }
    }

    /// The loop has ended: what comes now is in no share of its time.
    pub(crate) fn loop_ended(&mut self) {
        self.until = Some(Instant::now());
    }

    /// The accounts at this step, none if they were reported at it or, before a roll-back, at a later
    /// one. For each sink, `waiting` is how many checkpoints wait for it.
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
    fn a_step_is_reported_once_and_a_sink_has_no_share_of_it() {
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
        // The process before this one has reported of it.
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
