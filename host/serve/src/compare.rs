use std::collections::BTreeSet;
use std::sync::Arc;

use host_core::RunName;
use host_proto::tracker::v1 as proto;
use host_store::{MetricComparison, Reader, config_differences};
use serde_json::Value;
use tonic::Status;

use crate::source::{Runs, blocking};
use crate::to_proto;

/// Maximum number of runs to compare.
const RUNS: usize = 16;
/// How many steps to compare for each metric: the default and the maximum.
const POINTS: (u32, u32) = (100, 10_000);
/// Maximum number of values plus steps in a response. Each takes nine bytes, so all fit in the 4 MiB that
/// clients accept.
const VALUES: usize = 350_000;

/// Compares the runs of a request.
pub(crate) async fn compare(
    runs: &Arc<Runs>,
    request: proto::CompareRunsRequest,
) -> Result<proto::CompareRunsResponse, Status> {
    let max_points = match request.max_points {
        0 => POINTS.0,
        n if n > POINTS.1 => {
            let most = POINTS.1;
            return Err(Status::invalid_argument(format!(
                "max_points is {n}, but the maximum is {most}; use ReadMetric to get more points"
            )));
        }
        n => n,
    } as usize;
    if request.runs.is_empty() || request.runs.len() > RUNS {
        return Err(Status::invalid_argument(format!(
            "the request names {} runs, but must name 1 to {RUNS}",
            request.runs.len()
        )));
    }
    let mut names = Vec::new();
    for asked in &request.runs {
        names.push(runs.find(asked).await?);
    }
    let rows = each(runs, &names, Reader::run).await?;
    let known: BTreeSet<Arc<str>> = each(runs, &names, Reader::series)
        .await?
        .into_iter()
        .flatten()
        .map(|series| series.name)
        .collect();
    let metrics: BTreeSet<Arc<str>> = match &request.metrics[..] {
        [] => known,
        asked => {
            if let Some(name) = asked.iter().find(|name| !known.contains(&***name)) {
                return Err(Status::not_found(format!("no run has the metric {name:?}")));
            }
            asked.iter().map(|name| Arc::from(&**name)).collect()
        }
    };

    let mut response = proto::CompareRunsResponse::default();
    let mut values = 0;
    for metric in metrics {
        let name = Arc::clone(&metric);
        let curves = each(runs, &names, move |reader| reader.curve(&name)).await?;
        let compared =
            blocking(move || Ok(MetricComparison::new(metric, curves, max_points))).await?;
        values += compared.steps.len() * (1 + compared.runs.len());
        if values > VALUES {
            return Err(Status::resource_exhausted(
                "the response would be too large; request fewer metrics or points",
            ));
        }
        response.metrics.push(to_proto::comparison(&compared));
    }
    let config = |json: &str| serde_json::from_str(json).unwrap_or(Value::Null);
    let configs: Vec<Value> = rows.iter().map(|row| config(&row.config_json)).collect();
    response.config_differences = config_differences(&configs)
        .iter()
        .map(to_proto::config_difference)
        .collect();
    response.runs = std::iter::zip(&names, &rows)
        .map(|(name, row)| to_proto::run(name.as_str(), row))
        .collect();
    Ok(response)
}

/// Reads the same kind of data from each run. Does not read several runs at once, because this would occupy
/// all threads.
async fn each<T: Send + 'static>(
    runs: &Arc<Runs>,
    names: &[RunName],
    read: impl Fn(&Reader) -> host_core::Result<T> + Clone + Send + 'static,
) -> Result<Vec<T>, Status> {
    let mut all = Vec::with_capacity(names.len());
    for name in names {
        all.push(runs.read(name, read.clone()).await?);
    }
    Ok(all)
}
