//! The data provider for an unmodified TensorBoard. Tags correspond to the metrics of a run, and hparams to
//! its configuration.

mod filter;
mod hparams;

use std::sync::Arc;

use futures_util::stream::Empty;
use host_core::{Error, ErrorKind, Result, RunName};
use host_proto::tensorboard::data as proto;
use host_proto::tensorboard::{DataClass, SummaryMetadata, summary_metadata::PluginData};
use host_store::{Reader, RunRow, Series};
use proto::tensor_board_data_provider_server::TensorBoardDataProvider;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use self::filter::{Filter, of_plugin};
pub use self::hparams::HOST_SETTINGS;
use crate::source::{Runs, blocking};

/// The TensorBoard plugins that have data.
const SCALARS: &str = "scalars";
const HPARAMS: &str = "hparams";
/// Maximum number of points of a series in a response. TensorBoard requests 1,000.
const POINTS: i64 = 100_000;
/// Size of a point after decoding.
const POINT_BYTES: usize = 20;
/// Size of the entry for a name or a setting, without the text itself.
const ENTRY_BYTES: usize = 100;
/// Maximum size of the entries of a response. This is enough for a thousand series, each with the thousand
/// points that TensorBoard requests.
const ANSWER_BYTES: usize = 20 << 20;

/// Serves `tensorboard.data` for the runs of a server.
#[derive(Debug)]
pub(crate) struct TensorBoard {
    runs: Arc<Runs>,
    /// Limits how many responses are created concurrently, since each can be large.
    making: Arc<Semaphore>,
}

/// Maximum number of responses that are created concurrently.
const MAKING: usize = 2;

impl TensorBoard {
    pub(crate) fn new(runs: Arc<Runs>) -> Self {
        let making = Arc::new(Semaphore::new(MAKING));
        Self { runs, making }
    }

    /// Calls `read` for each run that matches the filter and returns the results. Omits runs for which `read`
    /// returns `None`. Also omits runs that cannot be read, but returns an error if reading fails for all
    /// runs. `read` is called on a thread where blocking is allowed.
    async fn each_run<T: Send + 'static>(
        &self,
        filter: &Filter,
        read: impl Fn(&RunName, &Reader, &mut Room) -> Result<Option<T>> + Send + 'static,
    ) -> Result<Vec<T>, Status> {
        let (runs, filter) = (Arc::clone(&self.runs), filter.clone());
        let read = move || {
            let mut room = Room::default();
            let (mut all, mut is_any_whole, mut fault) = (Vec::new(), false, None);
            for name in runs.names()? {
                if !filter.has_run(name.as_str()) {
                    continue;
                }
                match runs.read_now(&name, |reader| read(&name, reader, &mut room)) {
                    Ok(entry) => {
                        is_any_whole = true;
                        all.extend(entry);
                    }
                    Err(error) if room.is_exceeded => return Ok(Err(error)),
                    Err(error) => fault = Some(error),
                }
            }
            match fault {
                Some(error) if !is_any_whole => Err(error),
                _ => Ok(Ok(all)),
            }
        };
        // The permit is held while the runs are read.
        let _place = self.making.acquire().await;
        let too_large = |error: Error| Status::resource_exhausted(error.to_string());
        blocking(read).await?.map_err(too_large)
    }
}

/// Remaining space for the entries of a response.
struct Room {
    left: usize,
    is_exceeded: bool,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            left: ANSWER_BYTES,
            is_exceeded: false,
        }
    }
}

impl Room {
    /// Reserves space for entries.
    ///
    /// # Errors
    /// Returns an error if the remaining space is too small.
    fn take(&mut self, bytes: usize) -> Result<()> {
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None => self.is_exceeded = true,
        }
        match self.is_exceeded {
            true => Err(Error::new(
                ErrorKind::Config,
                "the response would be too large; request fewer runs, metrics or points",
            )),
            false => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl TensorBoardDataProvider for TensorBoard {
    async fn get_experiment(
        &self,
        _: Request<proto::GetExperimentRequest>,
    ) -> Result<Response<proto::GetExperimentResponse>, Status> {
        let created =
            |_: &RunName, reader: &Reader, _: &mut Room| Ok(Some(reader.run()?.created_us));
        let created = self.each_run(&Filter::all(), created).await?;
        let creation_time = created.iter().min().map(|&us| prost_types::Timestamp {
            seconds: us.div_euclid(1_000_000),
            nanos: (us.rem_euclid(1_000_000) * 1000) as i32,
        });
        let (data_location, name) = self.runs.place();
        Ok(Response::new(proto::GetExperimentResponse {
            data_location,
            name,
            description: String::new(),
            creation_time,
        }))
    }

    async fn list_plugins(
        &self,
        _: Request<proto::ListPluginsRequest>,
    ) -> Result<Response<proto::ListPluginsResponse>, Status> {
        let plugin = |name: &str| proto::Plugin {
            name: name.to_owned(),
        };
        Ok(Response::new(proto::ListPluginsResponse {
            plugins: vec![plugin(SCALARS), plugin(HPARAMS)],
        }))
    }

    async fn list_runs(
        &self,
        _: Request<proto::ListRunsRequest>,
    ) -> Result<Response<proto::ListRunsResponse>, Status> {
        let run = |name: &RunName, reader: &Reader, room: &mut Room| {
            room.take(ENTRY_BYTES + name.as_str().len())?;
            Ok(Some(proto::Run {
                name: name.to_string(),
                start_time: seconds(reader.run()?.created_us),
            }))
        };
        let runs = self.each_run(&Filter::all(), run).await?;
        Ok(Response::new(proto::ListRunsResponse { runs }))
    }

    async fn list_scalars(
        &self,
        request: Request<proto::ListScalarsRequest>,
    ) -> Result<Response<proto::ListScalarsResponse>, Status> {
        use proto::list_scalars_response::{RunEntry, TagEntry};
        let request = request.into_inner();
        if of_plugin(request.plugin_filter)? != SCALARS {
            return Ok(Response::new(Default::default()));
        }
        let filter = Filter::new(request.run_tag_filter);
        let tags = filter.clone();
        let entry = move |name: &RunName, reader: &Reader, room: &mut Room| {
            let mut series = reader.series()?;
            series.retain(|series| tags.has_tag(&series.name));
            for one in &series {
                room.take(ENTRY_BYTES + one.name.len())?;
            }
            let tags: Vec<TagEntry> = series
                .into_iter()
                .map(|series| TagEntry {
                    tag_name: series.name.to_string(),
                    metadata: Some(proto::ScalarMetadata {
                        max_step: step(series.last.step.0),
                        max_wall_time: seconds(series.last.time_us),
                        summary_metadata: Some(summary(SCALARS, DataClass::Scalar, Vec::new())),
                    }),
                })
                .collect();
            let run_name = name.to_string();
            Ok((!tags.is_empty()).then_some(RunEntry { run_name, tags }))
        };
        let runs = self.each_run(&filter, entry).await?;
        Ok(Response::new(proto::ListScalarsResponse { runs }))
    }

    async fn read_scalars(
        &self,
        request: Request<proto::ReadScalarsRequest>,
    ) -> Result<Response<proto::ReadScalarsResponse>, Status> {
        use proto::read_scalars_response::{RunEntry, TagEntry};
        let request = request.into_inner();
        let plugin = of_plugin(request.plugin_filter)?;
        let points = points(request.downsample)?;
        if plugin != SCALARS || points == 0 {
            return Ok(Response::new(Default::default()));
        }
        let filter = Filter::new(request.run_tag_filter);
        let tags = filter.clone();
        let entry = move |name: &RunName, reader: &Reader, room: &mut Room| {
            let mut entries = Vec::new();
            for series in reader.series()? {
                if !tags.has_tag(&series.name) {
                    continue;
                }
                let mut data = proto::ScalarData::default();
                let history = reader.history(&series.name, points)?.unwrap_or_default();
                room.take(ENTRY_BYTES + series.name.len() + history.len() * POINT_BYTES)?;
                for point in history {
                    data.step.push(step(point.step.0));
                    data.wall_time.push(seconds(point.time_us));
                    data.value.push(point.value as f32);
                }
                entries.push(TagEntry {
                    tag_name: series.name.to_string(),
                    data: Some(data),
                });
            }
            Ok((!entries.is_empty()).then_some(RunEntry {
                run_name: name.to_string(),
                tags: entries,
            }))
        };
        let runs = self.each_run(&filter, entry).await?;
        Ok(Response::new(proto::ReadScalarsResponse { runs }))
    }

    async fn list_tensors(
        &self,
        request: Request<proto::ListTensorsRequest>,
    ) -> Result<Response<proto::ListTensorsResponse>, Status> {
        use proto::list_tensors_response::{RunEntry, TagEntry};
        let request = request.into_inner();
        if of_plugin(request.plugin_filter)? != HPARAMS {
            return Ok(Response::new(Default::default()));
        }
        let filter = Filter::new(request.run_tag_filter);
        // The experiment tag belongs to the first run. It describes all runs, even those that the filter
        // excludes.
        let run = |name: &RunName, reader: &Reader, room: &mut Room| {
            let (row, series): (RunRow, Vec<Series>) = (reader.run()?, reader.series()?);
            // Each setting also appears in the experiment tag.
            room.take(2 * row.config_json.len() + series.len() * ENTRY_BYTES)?;
            Ok(Some((name.to_string(), row, series)))
        };
        let runs = self.each_run(&Filter::all(), run).await?;
        let all = runs.iter().map(|(_, row, series)| (row, &series[..]));
        let mut experiment = Some(hparams::experiment(all));
        let entry = |(run_name, row, _): &(String, RunRow, _)| {
            let of_all = experiment.take();
            if !filter.has_run(run_name) {
                return None;
            }
            let tags = hparams::tags(row).into_iter().chain(of_all);
            let tags: Vec<TagEntry> = tags
                .filter(|(tag, _)| filter.has_tag(tag))
                .map(|(tag, content)| TagEntry {
                    tag_name: tag.to_owned(),
                    metadata: Some(proto::TensorMetadata {
                        max_step: 0,
                        max_wall_time: seconds(row.created_us),
                        summary_metadata: Some(summary(HPARAMS, DataClass::Tensor, content)),
                    }),
                })
                .collect();
            let run_name = run_name.clone();
            (!tags.is_empty()).then_some(RunEntry { run_name, tags })
        };
        let runs = runs.iter().filter_map(entry).collect();
        Ok(Response::new(proto::ListTensorsResponse { runs }))
    }

    async fn read_tensors(
        &self,
        request: Request<proto::ReadTensorsRequest>,
    ) -> Result<Response<proto::ReadTensorsResponse>, Status> {
        let request = request.into_inner();
        of_plugin(request.plugin_filter)?;
        points(request.downsample)?;
        Ok(Response::new(Default::default()))
    }

    async fn list_blob_sequences(
        &self,
        request: Request<proto::ListBlobSequencesRequest>,
    ) -> Result<Response<proto::ListBlobSequencesResponse>, Status> {
        of_plugin(request.into_inner().plugin_filter)?;
        Ok(Response::new(Default::default()))
    }

    async fn read_blob_sequences(
        &self,
        request: Request<proto::ReadBlobSequencesRequest>,
    ) -> Result<Response<proto::ReadBlobSequencesResponse>, Status> {
        let request = request.into_inner();
        of_plugin(request.plugin_filter)?;
        points(request.downsample)?;
        Ok(Response::new(Default::default()))
    }

    type ReadBlobStream = Empty<Result<proto::ReadBlobResponse, Status>>;

    async fn read_blob(
        &self,
        _: Request<proto::ReadBlobRequest>,
    ) -> Result<Response<Self::ReadBlobStream>, Status> {
        Err(Status::not_found("there are no blobs"))
    }
}

fn summary(plugin: &str, class: DataClass, content: Vec<u8>) -> SummaryMetadata {
    SummaryMetadata {
        plugin_data: Some(PluginData {
            plugin_name: plugin.to_owned(),
            content,
        }),
        display_name: String::new(),
        summary_description: String::new(),
        data_class: class.into(),
    }
}

/// Returns how many points per series the response to a read request may contain.
fn points(downsample: Option<proto::Downsample>) -> Result<usize, Status> {
    let asked = downsample
        .ok_or_else(|| Status::invalid_argument("downsample is missing"))?
        .num_points;
    usize::try_from(asked.min(POINTS))
        .map_err(|_| Status::invalid_argument(format!("bad num_points: {asked}")))
}

fn step(step: u64) -> i64 {
    i64::try_from(step).unwrap_or(i64::MAX)
}

fn seconds(us: i64) -> f64 {
    us as f64 / 1e6
}
