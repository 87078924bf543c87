use host_core::{EventBody, MetricValue, Step};
use host_proto::tracker::v1 as proto;
use host_store::{RunRecord, Writer};
use proto::tracker_service_client::TrackerServiceClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::run::serve;

/// Creates two runs: one with a value at every step up to 100, one with a value at every other step up to 50.
fn runs() -> tempfile::TempDir {
    let runs = tempfile::tempdir().expect("a folder");
    for (name, seed, steps, every) in [("a", 1, 1..101, 1), ("b", 2, 2..51, 2)] {
        let record = RunRecord {
            name: name.to_owned(),
            created_us: 1_700_000_000_000_000,
            config_json: format!(r#"{{"name":"{name}","seed":{seed},"lr":0.1}}"#),
        };
        let mut writer = Writer::create(&runs.path().join(name), &record).expect("a run");
        let drafts = steps.step_by(every).map(|step: u32| {
            let value = match step {
                50 => f64::INFINITY,
                step => f64::from(step * seed),
            };
            let mut values = vec![MetricValue::new("loss", value)];
            if name == "a" {
                values.push(MetricValue::new("only a", f64::NAN));
            }
            host_core::Draft {
                time_us: 0,
                step: Step(step.into()),
                body: EventBody::Metrics { values },
            }
        });
        writer.append(drafts.collect()).expect("written");
    }
    runs
}

#[test]
fn runs_are_compared_by_configuration_and_at_common_steps() {
    let runs = runs();
    let serving = serve(host_serve::Source::Folder(runs.path().to_owned()));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let addr = format!("http://{}", serving.addr());
        let mut client = {
            let endpoint = Channel::from_shared(addr).expect("an address");
            TrackerServiceClient::new(endpoint.connect().await.expect("there"))
        };
        let mut ask = async |runs: &[&str], metrics: &[&str], max_points| {
            let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
            let request = proto::CompareRunsRequest {
                runs: owned(runs),
                metrics: owned(metrics),
                max_points,
            };
            let answer = client.compare_runs(request).await;
            answer.map(tonic::Response::into_inner)
        };

        let compared = ask(&["b", "a"], &[], 4).await.expect("an answer");
        let names: Vec<&str> = compared.runs.iter().map(|run| &*run.name).collect();
        assert_eq!(names, ["b", "a"]);
        let differences = &compared.config_differences;
        assert_eq!(differences.len(), 1);
        assert_eq!(differences[0].key, "seed");
        assert_eq!(differences[0].values_json, ["2", "1"]);

        let [loss, only_a] = &compared.metrics[..] else {
            panic!("{compared:?}");
        };
        assert_eq!(
            (&*loss.name, &loss.steps[..]),
            ("loss", &[2, 18, 34, 50][..])
        );
        let values: Vec<&[f64]> = loss.runs.iter().map(|run| &run.values[..]).collect();
        let end = f64::INFINITY;
        assert_eq!(values, [[4.0, 36.0, 68.0, end], [2.0, 18.0, 34.0, end]]);
        let step = |point: &Option<proto::Point>| point.as_ref().map(|point| point.step);
        let b = &loss.runs[0];
        assert_eq!((b.run_index, b.point_count), (0, 25));
        assert_eq!(
            (step(&b.lowest_point), step(&b.highest_point)),
            (Some(2), Some(50))
        );

        // Only one run has this metric, and all values are NaN.
        let [a] = &only_a.runs[..] else {
            panic!("{only_a:?}")
        };
        assert_eq!((a.run_index, only_a.steps.len()), (1, 4));
        assert_eq!((&a.lowest_point, &a.highest_point), (&None, &None));
        assert!(
            a.last_point
                .as_ref()
                .is_some_and(|last| last.value.is_nan())
        );

        let code = |answer: Result<_, tonic::Status>| answer.expect_err("refused").code();
        assert_eq!(code(ask(&[], &[], 0).await), Code::InvalidArgument);
        assert_eq!(code(ask(&["a"; 17], &[], 0).await), Code::InvalidArgument);
        assert_eq!(code(ask(&["a"], &[], 10_001).await), Code::InvalidArgument);
        assert_eq!(
            code(ask(&["a", "../b"], &[], 0).await),
            Code::InvalidArgument
        );
        assert_eq!(code(ask(&["a", "c"], &[], 0).await), Code::NotFound);
        assert_eq!(code(ask(&["a"], &["no such"], 0).await), Code::NotFound);
    });
}
