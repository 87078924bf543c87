//! Calls in the way that TensorBoard makes them.

use std::time::Duration;

use host_proto::tensorboard::data as proto;
use proto::tensor_board_data_provider_client::TensorBoardDataProviderClient;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::run::{NAME, Run, serve};

fn ask<T>(
    addr: std::net::SocketAddr,
    questions: impl AsyncFnOnce(TensorBoardDataProviderClient<Channel>) -> T,
) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let server = Endpoint::from_shared(format!("http://{addr}")).expect("an address");
        let channel = server.connect().await.expect("connected");
        questions(TensorBoardDataProviderClient::new(channel)).await
    })
}

fn of(plugin: &str) -> Option<proto::PluginFilter> {
    Some(proto::PluginFilter {
        plugin_name: plugin.to_owned(),
    })
}

fn only(runs: Option<&[&str]>, tags: Option<&[&str]>) -> Option<proto::RunTagFilter> {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Some(proto::RunTagFilter {
        runs: runs.map(|names| proto::RunFilter {
            names: owned(names),
        }),
        tags: tags.map(|names| proto::TagFilter {
            names: owned(names),
        }),
    })
}

#[test]
fn a_run_s_metrics_are_scalars() {
    let run = Run::start();
    run.train(1..3000);
    run.commits().wait_beyond(2999, Duration::from_secs(60));
    let serving = serve(run.live());
    ask(serving.addr(), async |mut client| {
        let runs = client.list_runs(proto::ListRunsRequest::default()).await;
        let runs = runs.expect("runs").into_inner().runs;
        assert_eq!(runs.len(), 1);
        assert_eq!(
            (&*runs[0].name, runs[0].start_time),
            (NAME, 1_700_000_000.0)
        );

        let request = proto::ListScalarsRequest {
            plugin_filter: of("scalars"),
            ..Default::default()
        };
        let listed = client.list_scalars(request).await.expect("scalars");
        let listed = listed.into_inner().runs;
        let tags: Vec<(&str, i64)> = listed[0]
            .tags
            .iter()
            .map(|tag| {
                let metadata = tag.metadata.as_ref().expect("metadata");
                let summary = metadata.summary_metadata.as_ref().expect("a summary");
                let plugin = summary.plugin_data.as_ref().expect("a plugin");
                assert_eq!((&*plugin.plugin_name, summary.data_class), ("scalars", 1));
                (&*tag.tag_name, metadata.max_step)
            })
            .collect();
        assert_eq!(tags, [("loss/train", 2999), ("lr", 2999)]);

        for (num_points, expected) in [(1, 1), (1000, 1000), (5000, 2999), (0, 0)] {
            let request = proto::ReadScalarsRequest {
                plugin_filter: of("scalars"),
                run_tag_filter: only(Some(&[NAME]), Some(&["loss/train", "no such"])),
                downsample: Some(proto::Downsample { num_points }),
                ..Default::default()
            };
            let read = client.read_scalars(request).await.expect("points");
            let read = read.into_inner().runs;
            if expected == 0 {
                assert_eq!(read, []);
                continue;
            }
            assert_eq!((read.len(), read[0].tags.len()), (1, 1));
            let data = read[0].tags[0].data.as_ref().expect("data");
            let points = data.step.len();
            let enough = if expected == 1000 { 500 } else { expected };
            assert!((enough..=expected).contains(&points), "{points}");
            assert_eq!(data.step.len(), data.value.len());
            assert_eq!(data.step.len(), data.wall_time.len());
            assert_eq!(data.step.last(), Some(&2999));
            for (step, value) in data.step.iter().zip(&data.value) {
                #[expect(clippy::cast_precision_loss, reason = "small")]
                let expected = 1.0 / (*step as f32 + 1.0);
                assert!((value - expected).abs() < 1e-6);
            }
        }
    });
    serving.stop().expect("stopped");
    run.finish();
}

#[test]
fn filters_and_errors_follow_tensorboard_s_rules() {
    let run = Run::start();
    run.train(1..10);
    run.commits().wait_beyond(9, Duration::from_secs(60));
    let serving = serve(run.folder());
    ask(serving.addr(), async |mut client| {
        let list = |plugin_filter, run_tag_filter| proto::ListScalarsRequest {
            plugin_filter,
            run_tag_filter,
            ..Default::default()
        };
        for (filter, runs) in [
            (None, 1),
            (only(None, None), 1),
            (only(Some(&[]), None), 0),
            (only(None, Some(&[])), 0),
            (only(Some(&["../demo"]), None), 0),
            (only(None, Some(&["lr"])), 1),
        ] {
            let listed = client.list_scalars(list(of("scalars"), filter)).await;
            assert_eq!(listed.expect("listed").into_inner().runs.len(), runs);
        }
        let other = client.list_scalars(list(of("images"), None)).await;
        assert_eq!(other.expect("listed").into_inner().runs, []);
        for nobody in [None, of("")] {
            let refused = client.list_scalars(list(nobody, None)).await;
            let refused = refused.expect_err("refused");
            assert_eq!(refused.code(), Code::InvalidArgument);
        }
        let read = |downsample| proto::ReadScalarsRequest {
            plugin_filter: of("scalars"),
            downsample,
            ..Default::default()
        };
        for downsample in [None, Some(proto::Downsample { num_points: -1 })] {
            let refused = client.read_scalars(read(downsample)).await;
            let refused = refused.expect_err("refused");
            assert_eq!(refused.code(), Code::InvalidArgument);
        }
    });
    serving.stop().expect("stopped");
    run.finish();
}

#[test]
fn missing_data_is_an_empty_response() {
    let run = Run::start();
    run.train(1..10);
    run.commits().wait_beyond(9, Duration::from_secs(60));
    let serving = serve(run.folder());
    ask(serving.addr(), async |mut client| {
        let plugins = client.list_plugins(proto::ListPluginsRequest::default());
        let plugins = plugins.await.expect("plugins").into_inner().plugins;
        let plugins: Vec<&str> = plugins.iter().map(|plugin| &*plugin.name).collect();
        assert_eq!(plugins, ["scalars", "hparams"]);
        let request = proto::GetExperimentRequest::default();
        let experiment = client.get_experiment(request).await.expect("one");
        let created = experiment.into_inner().creation_time.expect("a time");
        assert_eq!(created.seconds, 1_700_000_000);

        let downsample = Some(proto::Downsample { num_points: 10 });
        let request = proto::ListTensorsRequest {
            plugin_filter: of("histograms"),
            ..Default::default()
        };
        let tensors = client.list_tensors(request).await.expect("an answer");
        assert_eq!(tensors.into_inner().runs, []);
        let request = proto::ListTensorsRequest {
            plugin_filter: of("hparams"),
            ..Default::default()
        };
        let tensors = client.list_tensors(request).await.expect("an answer");
        let tags = &tensors.into_inner().runs[0].tags;
        let names: Vec<&str> = tags.iter().map(|tag| &*tag.tag_name).collect();
        let both = ["_hparams_/session_start_info", "_hparams_/experiment"];
        assert_eq!(names, both);
        let request = proto::ReadTensorsRequest {
            plugin_filter: of("histograms"),
            downsample,
            ..Default::default()
        };
        client.read_tensors(request).await.expect("an answer");
        let request = proto::ListBlobSequencesRequest {
            plugin_filter: of("images"),
            ..Default::default()
        };
        client
            .list_blob_sequences(request)
            .await
            .expect("an answer");
        let request = proto::ReadBlobSequencesRequest {
            plugin_filter: of("images"),
            downsample,
            ..Default::default()
        };
        client
            .read_blob_sequences(request)
            .await
            .expect("an answer");
        let blob = client.read_blob(proto::ReadBlobRequest::default()).await;
        assert_eq!(blob.expect_err("none").code(), Code::NotFound);
    });
    serving.stop().expect("stopped");
    run.finish();
}
