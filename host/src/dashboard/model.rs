//! The state that the dashboard shows of a run. The run's events update this state. Uses no clock and no
//! terminal.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use host_core::{DeliveryState, EVAL_LOSS, Event, EventBody, Request, StopReason};
use host_store::{Delivery, Point, RunRow, RunStatus, Series};

use super::curve::Curve;
use super::ledger::{self, Ledger};
use super::plugin_table::PluginRow;
use crate::show::event_line::event_line;
use crate::show::meter::Meter;

/// Maximum number of metrics. A run has a few dozen; plugins can add more.
const METRICS: usize = 512;
/// Maximum number of log lines.
const LOG: usize = 1000;
/// Number of recent steps from which the median step time is computed.
const STEP_TIMES: usize = 256;

/// The state of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RunState {
    /// Preparing, training or finishing.
    Running,
    /// Paused until a request to continue.
    Paused,
    /// Ended, for this reason.
    Ended(StopReason),
    /// The process ended without an event that reports the end.
    Crashed,
}

/// The connection to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    /// Receiving events as they happen.
    Live,
    /// Broken. The client tries to reconnect. Contains the reason and the number of attempts.
    Lost { reason: String, tries: u32 },
    /// Everything was read.
    Over,
    /// The server refused to continue, for this reason.
    Refused(String),
}

/// The importance of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    /// Normal.
    Plain,
    /// A success.
    Good,
    /// Needs attention.
    Warning,
}

/// A line of the log.
#[derive(Clone, Debug)]
pub(super) struct LogLine {
    pub(super) time_us: i64,
    pub(super) weight: Weight,
    pub(super) text: String,
    /// The delivery that the line is about. If `text` does not fit, a shorter text is made from the delivery.
    pub(super) delivery: Option<Delivery>,
}

/// The state of the run.
#[derive(Clone, Debug)]
pub(super) struct Model {
    name: String,
    state: RunState,
    address: String,
    connection: Connection,
    last_step: u64,
    meter: Meter,
    /// The highest step so far. It starts with the run's recorded step, because the run may have ended before
    /// the dashboard receives an event.
    step: u64,
    metrics: BTreeMap<Arc<str>, Curve>,
    step_secs: VecDeque<f64>,
    ledger: Ledger,
    log: VecDeque<LogLine>,
}

impl Model {
    /// Creates the model of a run from the run's description.
    pub(super) fn new(run: &RunRow, address: String) -> Self {
        let config: serde_json::Value = serde_json::from_str(&run.config_json).unwrap_or_default();
        let last_step = config["max_train_steps"].as_u64().unwrap_or(0);
        Self {
            name: run.name.clone(),
            state: match run.status {
                RunStatus::Running => RunState::Running,
                RunStatus::Finished(reason) => RunState::Ended(reason),
                RunStatus::Crashed => RunState::Crashed,
            },
            address,
            connection: Connection::Live,
            last_step,
            meter: Meter::new(last_step),
            step: run.last_step.0,
            metrics: BTreeMap::new(),
            step_secs: VecDeque::new(),
            ledger: Ledger::default(),
            log: VecDeque::new(),
        }
    }

    /// Adds the metrics that the run has so far, with their last points.
    pub(super) fn put_series(&mut self, all: &[Series]) {
        for series in all {
            if self.metrics.len() < METRICS {
                let curve = self.metrics.entry(Arc::clone(&series.name));
                curve.or_insert_with(|| Curve::of(series));
            }
        }
    }

    /// Sets a metric's history.
    pub(super) fn put_history(&mut self, metric: &str, points: Vec<Point>) {
        if let Some(curve) = self.metrics.get_mut(metric) {
            curve.put_history(points);
        }
    }

    /// Adds the entries that the delivery ledger has so far.
    pub(super) fn put_deliveries(&mut self, entries: Vec<Delivery>) {
        for entry in entries {
            self.ledger.put(entry);
        }
    }

    /// Records an event. Events must arrive in order.
    pub(super) fn note(&mut self, event: &Event) {
        self.meter.note(event);
        self.ledger.note(event);
        self.step = self.step.max(event.step.0);
        match &event.body {
            EventBody::RunStarted { .. } => self.state = RunState::Running,
            EventBody::RunFinished { reason, .. } => self.state = RunState::Ended(*reason),
            EventBody::Request { request, .. } => match request {
                Request::Pause => self.state = RunState::Paused,
                Request::Continue => self.state = RunState::Running,
                _ => {}
            },
            EventBody::Superseded { from_step, .. } => {
                self.step = from_step.0;
                for curve in self.metrics.values_mut() {
                    curve.supersede(*from_step, event.seq);
                }
            }
            EventBody::Metrics { values } => {
                for metric in values {
                    let point = Point {
                        seq: event.seq,
                        step: event.step,
                        time_us: event.time_us,
                        value: metric.value,
                    };
                    self.put_point(&metric.name, point);
                }
            }
            _ => {}
        }
        if let Some(text) = event_line(event) {
            if self.log.len() == LOG {
                self.log.pop_front();
            }
            self.log.push_back(LogLine {
                time_us: event.time_us,
                weight: weight(&event.body),
                text,
                delivery: ledger::entry(event),
            });
        }
    }

    fn put_point(&mut self, name: &Arc<str>, point: Point) {
        if &**name == "step_secs" && point.value.is_finite() {
            if self.step_secs.len() == STEP_TIMES {
                self.step_secs.pop_front();
            }
            self.step_secs.push_back(point.value);
        }
        if let Some(curve) = self.metrics.get_mut(name) {
            curve.push(point);
        } else if self.metrics.len() < METRICS {
            let curve = self.metrics.entry(Arc::clone(name)).or_default();
            curve.push(point);
        }
    }

    /// Records that the run's process ended without an event that reports the end.
    pub(super) fn crashed(&mut self) {
        self.state = RunState::Crashed;
    }

    /// Sets the state of the connection and, if given, the server's address.
    pub(super) fn connect(&mut self, connection: Connection, address: Option<String>) {
        self.connection = connection;
        if let Some(address) = address {
            self.address = address;
        }
    }

    /// Returns the run's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the state of the run.
    pub(super) fn state(&self) -> RunState {
        self.state
    }

    /// Returns true if the run can still receive requests.
    pub(super) fn is_at_work(&self) -> bool {
        matches!(self.state, RunState::Running | RunState::Paused)
    }

    /// Returns the server's address.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Returns the state of the connection.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Returns the number of finished optimizer steps.
    pub(super) fn step(&self) -> u64 {
        self.step.max(self.meter.step().0)
    }

    /// Returns the number of optimizer steps of the training; 0 if unknown.
    pub(super) fn last_step(&self) -> u64 {
        self.last_step
    }

    /// Returns the expected seconds until the training ends, if it is running.
    pub(super) fn seconds_left(&self) -> Option<f64> {
        let goes_on = self.state == RunState::Running && self.last_step > self.step();
        self.meter.seconds_left().filter(|_| goes_on)
    }

    /// Returns the newest value of a metric.
    pub(super) fn value(&self, metric: &str) -> Option<f64> {
        let curve = self.metrics.get(metric)?;
        curve.last().map(|point| point.value)
    }

    /// Returns the median time of the last steps.
    pub(super) fn step_secs_p50(&self) -> Option<f64> {
        let mut times: Vec<f64> = self.step_secs.iter().copied().collect();
        let middle = times.len() / 2;
        (!times.is_empty()).then(|| *times.select_nth_unstable_by(middle, f64::total_cmp).1)
    }

    /// Returns a metric's curve.
    pub(super) fn curve(&self, metric: &str) -> Option<&Curve> {
        self.metrics.get(metric)
    }

    /// Returns the names of the metrics, in this order: the most important metrics; other metrics; metrics of
    /// plugins; metrics of the system. All but the first group are sorted by name.
    pub(super) fn metric_names(&self) -> Vec<&Arc<str>> {
        const FIRST: [&str; 7] = [
            "loss/train",
            EVAL_LOSS,
            "perplexity",
            "lr",
            "grad_norm",
            "tokens_per_second",
            "step_secs",
        ];
        let rank = |name: &str| match FIRST.iter().position(|first| *first == name) {
            Some(place) => place,
            None if name.starts_with("plugin/") => FIRST.len() + 1,
            None if name.starts_with("system/") => FIRST.len() + 2,
            None => FIRST.len(),
        };
        let mut names: Vec<&Arc<str>> = self.metrics.keys().collect();
        names.sort_by_key(|name| rank(name));
        names
    }

    /// Returns the cost of the plugins, sorted by label.
    pub(super) fn plugins(&self) -> Vec<PluginRow> {
        let metrics = self.metrics.iter();
        let values = metrics.filter_map(|(name, curve)| Some((&**name, curve.last()?.value)));
        PluginRow::all(values)
    }

    /// Returns the system metrics. Their names lack the prefix `system/`. The most important metrics come
    /// first. The others follow, sorted by name.
    pub(super) fn system(&self) -> Vec<(&str, f64)> {
        const FIRST: [&str; 4] = ["gpu", "process_cpu_percent", "cpu_percent", "memory_bytes"];
        let rank = |name: &str| {
            let place = FIRST.iter().position(|first| name.starts_with(first));
            place.unwrap_or(FIRST.len())
        };
        let metrics = self.metrics.iter();
        let mut system: Vec<(&str, f64)> = metrics
            .filter_map(|(name, curve)| Some((name.strip_prefix("system/")?, curve.last()?.value)))
            .collect();
        system.sort_by_key(|(name, _)| rank(name));
        system
    }

    /// Returns the delivery ledger.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Returns the log, oldest line first.
    pub(super) fn log(&self) -> &VecDeque<LogLine> {
        &self.log
    }
}

fn weight(body: &EventBody) -> Weight {
    match body {
        EventBody::Warning { .. }
        | EventBody::PluginFault { .. }
        | EventBody::CheckpointFailed { .. }
        | EventBody::Superseded { .. }
        | EventBody::Delivery {
            state: DeliveryState::Failed,
            ..
        }
        | EventBody::RunFinished {
            reason: StopReason::Failed,
            ..
        } => Weight::Warning,
        EventBody::Delivery {
            state: DeliveryState::Delivered,
            ..
        } => Weight::Good,
        _ => Weight::Plain,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use host_core::{MetricValue, Step};

    /// Creates the description of a run of 2000 steps that has no events yet.
    pub(in crate::dashboard) fn row() -> RunRow {
        RunRow {
            name: "rust-4m".to_owned(),
            created_us: 0,
            config_json: r#"{"max_train_steps":2000}"#.to_owned(),
            status: RunStatus::Running,
            generation: 0,
            last_seq: 0,
            last_step: Step(0),
            last_time_us: 0,
        }
    }

    pub(in crate::dashboard) fn event(seq: u64, step: u64, body: EventBody) -> Event {
        Event {
            seq,
            time_us: seq as i64 * 500_000,
            step: Step(step),
            body,
        }
    }

    pub(in crate::dashboard) fn metrics(values: &[(&str, f64)]) -> EventBody {
        let values = values.iter();
        EventBody::Metrics {
            values: values
                .map(|&(name, value)| MetricValue::new(name, value))
                .collect(),
        }
    }

    #[test]
    fn a_run_is_paused_continued_ended_and_resumed_by_its_events() {
        let mut model = Model::new(&row(), "127.0.0.1:1".to_owned());
        let asked = |request| EventBody::Request {
            by: "client:ann".to_owned(),
            request,
            reason: "lunch".to_owned(),
        };
        let end = EventBody::RunFinished {
            reason: StopReason::Interrupted,
            message: String::new(),
        };
        let bodies = [
            (asked(Request::Pause), RunState::Paused),
            (asked(Request::Checkpoint), RunState::Paused),
            (asked(Request::Continue), RunState::Running),
            (end, RunState::Ended(StopReason::Interrupted)),
            (EventBody::RunStarted { generation: 1 }, RunState::Running),
        ];
        for (seq, (body, state)) in (1..).zip(bodies) {
            model.note(&event(seq, 10, body));
            assert_eq!(model.state(), state, "{seq}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut model = Model::new(&row(), String::new());
        for seq in 1..=5000 {
            let name = format!("m{seq}");
            model.note(&event(
                seq,
                seq,
                metrics(&[(&name, 1.0), ("step_secs", 0.1)]),
            ));
            let message = format!("warning {seq}");
            model.note(&event(seq, seq, EventBody::Warning { message }));
        }
        assert_eq!(model.metric_names().len(), METRICS);
        assert_eq!(model.log().len(), LOG);
        assert_eq!(model.log()[0].text, "warning: warning 4001");
        assert_eq!(model.step_secs.len(), STEP_TIMES);
    }

    #[test]
    fn important_metrics_are_first_and_those_of_plugins_are_last() {
        let mut model = Model::new(&row(), String::new());
        let names = [
            "a",
            "lr",
            "plugin/p/calls",
            "perplexity",
            "system/cpu",
            "loss/train",
        ];
        for (seq, name) in (1..).zip(names) {
            model.note(&event(seq, 1, metrics(&[(name, 1.0)])));
        }
        let names: Vec<&str> = model.metric_names().iter().map(|name| &***name).collect();
        assert_eq!(
            names,
            [
                "loss/train",
                "perplexity",
                "lr",
                "a",
                "plugin/p/calls",
                "system/cpu"
            ]
        );
    }

    #[test]
    fn a_resume_removes_superseded_values() {
        let mut model = Model::new(&row(), String::new());
        for step in 1..=20 {
            model.note(&event(step, step, metrics(&[("loss/train", step as f64)])));
        }
        let body = EventBody::Superseded {
            from_step: Step(10),
            generation: 1,
        };
        model.note(&event(21, 10, body));
        assert_eq!(model.value("loss/train"), Some(10.0));
        assert_eq!(model.step(), 10);
    }

    #[test]
    fn the_median_of_the_step_times_skips_nan() {
        let mut model = Model::new(&row(), String::new());
        assert_eq!(model.step_secs_p50(), None);
        for (seq, secs) in (1..).zip([9.0, 0.3, 0.1, f64::NAN, 0.2, 0.4]) {
            model.note(&event(seq, seq, metrics(&[("step_secs", secs)])));
        }
        assert_eq!(model.step_secs_p50(), Some(0.3));
    }
}
