//! The summary that is printed when a run is over.

use std::collections::BTreeMap;

use host_core::{DeliveryState, EVAL_LOSS, Event, EventBody, Step, StopReason};

use crate::delivery::Undelivered;
use crate::runs::how_to_name;
use crate::runs::run_dir::RunDir;
use crate::show::event_line::{one_line, reason_word, receipt};
use crate::show::number;

/// The values from a run's events that the summary needs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Digest {
    /// First and last value of each evaluation metric, by name.
    evaluation: BTreeMap<String, (f64, f64)>,
    baselines: Vec<(String, f64)>,
    checkpoints: u64,
    /// Whether the events start at a resume.
    is_resumed: bool,
    step: Step,
    /// For each sink, the number of its deliveries and the last receipt.
    delivered: BTreeMap<String, (u64, String)>,
}

impl Digest {
    /// Adds an event.
    pub(crate) fn note(&mut self, event: &Event) {
        self.step = self.step.max(event.step);
        match &event.body {
            EventBody::Metrics { values } => {
                for metric in values {
                    let name = &*metric.name;
                    if name.starts_with("baseline/") {
                        self.baselines.push((name.to_owned(), metric.value));
                    } else if name == EVAL_LOSS || name == "perplexity" {
                        self.evaluation
                            .entry(name.to_owned())
                            .or_insert((metric.value, metric.value))
                            .1 = metric.value;
                    }
                }
            }
            EventBody::RunStarted { generation } => self.is_resumed |= *generation > 0,
            EventBody::CheckpointWritten { .. } => self.checkpoints += 1,
            EventBody::Delivery {
                sink,
                state: DeliveryState::Delivered,
                detail,
                ..
            } => {
                let of_sink = self.delivered.entry(sink.clone()).or_default();
                of_sink.0 += 1;
                of_sink.1.clone_from(detail);
            }
            _ => {}
        }
    }

    /// Returns the highest step of the events.
    pub(crate) fn step(&self) -> Step {
        self.step
    }

    /// Returns the lines of the summary, each with a newline. They show the run, its results, its
    /// checkpoints, its deliveries, and the commands that the user can run next.
    pub(crate) fn lines(
        &self,
        dir: &RunDir,
        end: (StopReason, Step),
        secs: f64,
        undelivered: &[Undelivered],
    ) -> String {
        let (reason, step) = end;
        let mut lines = vec![(
            "run".to_owned(),
            format!(
                "{} {} at step {step}, {}: {}",
                dir.name(),
                reason_word(reason),
                number::duration(secs),
                dir.path().display()
            ),
        )];
        for (name, (first, last)) in &self.evaluation {
            let (first, last) = (number::value(*first), number::value(*last));
            let change = match first == last {
                true => last,
                false => format!("{last} (first {first})"),
            };
            lines.push((name.clone(), change));
        }
        for (name, value) in &self.baselines {
            let name = name.trim_start_matches("baseline/").replace('_', " ");
            lines.push((name, number::value(*value)));
        }
        let newest = dir.newest_checkpoint();
        if let Some((step, path)) = &newest {
            let (count, path) = (self.checkpoints, path.display());
            let since = match self.is_resumed {
                true => " since the resume",
                false => "",
            };
            let text = format!("{count} written{since}, the last at step {step}: {path}");
            lines.push(("checkpoints".to_owned(), text));
        }
        lines.extend(self.deliveries(undelivered));
        let run = how_to_name(dir);
        let mut next = vec![format!("host runs show {run}")];
        if newest.is_some() {
            if reason != StopReason::Completed {
                next.insert(0, format!("host resume {run}"));
            }
            next.push(format!("host generate {run} --prompt 'fn main() {{'"));
        }
        if undelivered.iter().any(|left| !left.is_lost) {
            next.insert(0, format!("host deliver {run}"));
        }
        for (i, command) in next.into_iter().enumerate() {
            let label = if i == 0 { "next" } else { "" };
            lines.push((label.to_owned(), command));
        }
        aligned(&lines)
    }

    /// Returns only the lines about the deliveries.
    pub(crate) fn delivery_lines(&self, undelivered: &[Undelivered]) -> String {
        aligned(&self.deliveries(undelivered))
    }

    fn deliveries(&self, undelivered: &[Undelivered]) -> Vec<(String, String)> {
        let delivered = self.delivered.iter();
        let delivered = delivered.map(|(sink, (count, last))| {
            (sink.clone(), format!("{count} delivered{}", receipt(last)))
        });
        let undelivered = undelivered.iter().map(|left| {
            let steps: Vec<String> = left.steps.iter().map(ToString::to_string).collect();
            let steps = steps.join(", ");
            let text = format!("not delivered: step {steps}: {}", left.reason);
            (left.sink.clone(), text)
        });
        delivered.chain(undelivered).collect()
    }
}

fn aligned(lines: &[(String, String)]) -> String {
    let width = lines.iter().map(|(label, _)| label.chars().count()).max();
    let width = width.unwrap_or(0);
    lines
        .iter()
        .map(|(label, text)| format!("{label:<width$}  {}\n", one_line(text)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_core::MetricValue;

    #[test]
    fn the_summary_has_the_results_and_the_next_commands() {
        let runs = tempfile::tempdir().expect("a folder");
        let name = "r".parse().expect("a name");
        let dir = RunDir::create(runs.path(), Some(&name), "tiny").expect("made");
        let mut digest = Digest::default();
        let mut note = |body| {
            digest.note(&Event {
                seq: 1,
                time_us: 0,
                step: Step(1),
                body,
            });
        };
        for perplexity in [900.0, 40.5] {
            note(EventBody::Metrics {
                values: vec![MetricValue::new("perplexity", perplexity)],
            });
        }
        let checkpoint = dir.checkpoints().join("step-000002");
        std::fs::create_dir_all(&checkpoint).expect("made");
        std::fs::write(checkpoint.join("manifest.json"), "{}").expect("written");
        note(EventBody::CheckpointWritten {
            name: "step-000002".to_owned(),
            bytes: 2,
            stall_secs: 0.0,
            write_secs: 0.0,
        });
        note(EventBody::Delivery {
            sink: "local-disk".to_owned(),
            checkpoint: Step(1),
            state: DeliveryState::Delivered,
            detail: r#"{"path":"/c"}"#.to_owned(),
            retry_time_us: None,
        });
        let left = [Undelivered {
            sink: "hub-git".to_owned(),
            steps: vec![Step(1), Step(2)],
            reason: "no route".to_owned(),
            is_lost: false,
        }];
        let text = digest.lines(&dir, (StopReason::Interrupted, Step(2)), 61.0, &left);
        let path = dir.path().display();
        assert_eq!(
            text,
            format!(
                "\
run          r interrupted at step 2, 1m01s: {path}
perplexity   40.500 (first 900)
checkpoints  1 written, the last at step 2: {path}/checkpoints/step-000002
local-disk   1 delivered: path /c
hub-git      not delivered: step 1, 2: no route
next         host deliver {path}
             host resume {path}
             host runs show {path}
             host generate {path} --prompt 'fn main() {{'
"
            )
        );

        digest.note(&Event {
            seq: 1,
            time_us: 0,
            step: Step(1),
            body: EventBody::RunStarted { generation: 1 },
        });
        let text = digest.lines(&dir, (StopReason::Completed, Step(2)), 61.0, &[]);
        let expected = "checkpoints  1 written since the resume, the last at step 2: ";
        assert!(text.contains(expected), "{text}");
    }
}
