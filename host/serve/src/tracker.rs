use std::sync::Arc;
use std::time::Duration;

use host_core::RunName;
use host_proto::tracker::v1 as proto;
use host_store::{Reader, RunRow};
use proto::tracker_service_server::TrackerService;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::call::Call;
use crate::compare;
use crate::gate::Streams;
use crate::source::{Runs, blocking, text};
use crate::to_proto;
use crate::watch::Watcher;
use crate::watch::pieces::Pieces;

/// Default and maximum number of runs on a page.
const RUNS: (u32, u32) = (100, 1000);
/// Default and maximum number of entries of a delivery ledger.
const ENTRIES: (u32, u32) = (1000, 10_000);
/// Default and maximum number of points of a history. At 30 bytes per point, the maximum still fits in the
/// 4 MiB that clients accept.
const POINTS: (u32, u32) = (1000, 100_000);

/// `TrackerService` of `tracker.v1`, for the runs of a server.
#[derive(Debug)]
pub(crate) struct Tracker {
    pub(crate) runs: Arc<Runs>,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) stall: Duration,
}

#[tonic::async_trait]
impl TrackerService for Tracker {
    async fn list_runs(
        &self,
        request: Request<proto::ListRunsRequest>,
    ) -> Result<Response<proto::ListRunsResponse>, Status> {
        let request = request.into_inner();
        let size = match request.page_size {
            0 => RUNS.0,
            size => size.min(RUNS.1),
        };
        let runs = Arc::clone(&self.runs);
        let page = blocking(move || {
            let mut names = runs.names()?;
            // The page token is the name of the last run on the previous page. That run may have been deleted
            // in the meantime.
            let begin = names.partition_point(|name| name.as_str() <= request.page_token.as_str());
            names.drain(..begin);
            let more = names.len() > size as usize;
            names.truncate(size as usize);
            Ok(proto::ListRunsResponse {
                next_page_token: match names.last() {
                    Some(last) if more => last.to_string(),
                    _ => String::new(),
                },
                runs: runs.rows(names).iter().map(list_row).collect(),
            })
        });
        Ok(Response::new(page.await?))
    }

    async fn get_run(
        &self,
        request: Request<proto::GetRunRequest>,
    ) -> Result<Response<proto::GetRunResponse>, Status> {
        let run = self.runs.find(&request.get_ref().run).await?;
        let row = self.runs.read(&run, Reader::run).await?;
        Ok(Response::new(proto::GetRunResponse {
            run: Some(to_proto::run(run.as_str(), &row)),
            config_json: row.config_json,
        }))
    }

    async fn list_metrics(
        &self,
        request: Request<proto::ListMetricsRequest>,
    ) -> Result<Response<proto::ListMetricsResponse>, Status> {
        let run = self.runs.find(&request.get_ref().run).await?;
        let series = self.runs.read(&run, Reader::series).await?;
        Ok(Response::new(proto::ListMetricsResponse {
            metrics: series.iter().map(to_proto::metric).collect(),
        }))
    }

    async fn list_deliveries(
        &self,
        request: Request<proto::ListDeliveriesRequest>,
    ) -> Result<Response<proto::ListDeliveriesResponse>, Status> {
        let request = request.into_inner();
        let most = match request.max_entries {
            0 => ENTRIES.0,
            n if n > ENTRIES.1 => {
                let most = ENTRIES.1;
                return Err(Status::invalid_argument(format!(
                    "max_entries is {n}, but the maximum is {most}"
                )));
            }
            n => n,
        };
        let run = self.runs.find(&request.run).await?;
        let mut ledger = self.runs.read(&run, Reader::deliveries).await?;
        ledger.retain(|entry| request.sink.is_empty() || entry.sink == request.sink);
        if let Some(surplus) = ledger.len().checked_sub(most as usize) {
            ledger.sort_by_key(|entry| entry.checkpoint);
            ledger.drain(..surplus);
            ledger.sort_by(|a, b| (&a.sink, a.checkpoint).cmp(&(&b.sink, b.checkpoint)));
        }
        Ok(Response::new(proto::ListDeliveriesResponse {
            entries: ledger.into_iter().map(to_proto::ledger_entry).collect(),
        }))
    }

    async fn read_metric(
        &self,
        request: Request<proto::ReadMetricRequest>,
    ) -> Result<Response<proto::ReadMetricResponse>, Status> {
        let request = request.into_inner();
        let max_points = match request.max_points {
            0 => POINTS.0,
            n if n > POINTS.1 => {
                return Err(Status::invalid_argument(format!(
                    "max_points is {n}, but the maximum is {}; use WatchEvents to get every point",
                    POINTS.1
                )));
            }
            n => n,
        };
        let run = self.runs.find(&request.run).await?;
        let metric = request.metric.clone();
        let points = self
            .runs
            .read(&run, move |reader| {
                reader.history(&metric, max_points as usize)
            })
            .await?
            .ok_or_else(|| {
                Status::not_found(format!("run {run} has no metric {:?}", request.metric))
            })?;
        Ok(Response::new(proto::ReadMetricResponse {
            points: points.iter().map(to_proto::point).collect(),
        }))
    }

    async fn compare_runs(
        &self,
        request: Request<proto::CompareRunsRequest>,
    ) -> Result<Response<proto::CompareRunsResponse>, Status> {
        let compared = compare::compare(&self.runs, request.into_inner()).await?;
        Ok(Response::new(compared))
    }

    type WatchEventsStream = Pieces;

    async fn watch_events(
        &self,
        request: Request<proto::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let place = Arc::clone(&self.runs.places)
            .try_acquire_owned()
            .map_err(|_| {
                Status::resource_exhausted("too many streams of events; try again later")
            })?;
        let call = request.extensions().get::<Call>().cloned();
        let request = request.into_inner();
        let run = self.runs.find(&request.run).await?;
        let last_seq = self.runs.read(&run, Reader::last_seq).await?;
        if request.after_seq > last_seq {
            return Err(Status::out_of_range(format!(
                "cursor {} is beyond the last event {last_seq} of run {run}; use a cursor of this run",
                request.after_seq
            )));
        }
        let feed = self.runs.feed(&run).await?;
        let watcher = Watcher {
            news: feed.subscribe(),
            runs: Arc::clone(&self.runs),
            run,
            feed,
            stopping: self.stopping.clone(),
            cursor: request.after_seq,
            follow: request.follow,
            known: None,
            until: None,
            stall: self.stall,
        };
        Ok(Streams::mark(Response::new(watcher.stream((call, place)))))
    }
}

/// Returns a run for a list. A run that cannot be read has its `error` set.
fn list_row((name, row): &(RunName, host_core::Result<RunRow>)) -> proto::Run {
    match row {
        Ok(row) => to_proto::run(name.as_str(), row),
        Err(error) => proto::Run {
            name: name.to_string(),
            error: text(error),
            ..proto::Run::default()
        },
    }
}
