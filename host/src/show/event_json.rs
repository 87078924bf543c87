//! An event as a line of JSON for programs.

use host_core::{Event, EventBody};
use serde_json::{Map, Value, json};

/// Converts an event to an object: `seq`, `time_us`, `step`, `kind`, and the fields of the kind. The values
/// of a `metrics` event form an object whose keys are the names of the metrics. A value that is not finite is
/// `"NaN"`, `"Infinity"` or `"-Infinity"`.
pub(crate) fn event_json(event: &Event) -> Value {
    let mut object = match serde_json::to_value(event) {
        Ok(Value::Object(object)) => object,
        // Events are plain data, so the conversion cannot fail. If it fails anyway, the output shows it.
        other => return json!({ "kind": "unreadable", "what": format!("{other:?}") }),
    };
    if let EventBody::Metrics { values } = &event.body {
        let by_name: Map<String, Value> = values
            .iter()
            .map(|metric| (metric.name.to_string(), number(metric.value)))
            .collect();
        object.insert("values".to_owned(), Value::Object(by_name));
    }
    Value::Object(object)
}

/// Converts a number. JSON has no numbers that are not finite, so those become strings.
pub(crate) fn number(value: f64) -> Value {
    match value {
        v if v.is_nan() => json!("NaN"),
        f64::INFINITY => json!("Infinity"),
        f64::NEG_INFINITY => json!("-Infinity"),
        v => json!(v),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_core::{MetricValue, Step};

    #[test]
    fn values_are_by_name_and_infinity_is_text() {
        let event = Event {
            seq: 7,
            time_us: 1,
            step: Step(3),
            body: EventBody::Metrics {
                values: vec![
                    MetricValue::new("loss/eval", 0.5),
                    MetricValue::new("perplexity", f64::INFINITY),
                ],
            },
        };
        assert_eq!(
            event_json(&event).to_string(),
            r#"{"seq":7,"time_us":1,"step":3,"kind":"metrics","values":{"loss/eval":0.5,"perplexity":"Infinity"}}"#
        );
    }
}
