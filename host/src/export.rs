//! Exports a run's points to a file or stdout, one by one, so that memory use does not grow with the history.
//!
//! A file is written under a temporary name and renamed when it is complete. Existing files are never
//! replaced.

mod csv;
mod parquet;
mod tensorboard;

use std::fs::{File, Permissions};
use std::io::{BufWriter, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use host_core::{Error, ErrorKind, Result};
use host_store::{Point, Reader};

use crate::show::outlet;

/// The export formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Comma-separated values
    Csv,
    /// Apache Parquet
    Parquet,
    /// A folder for `tensorboard --logdir`
    Tensorboard,
}

/// The result of an export to a file.
pub(crate) struct Exported {
    /// The file.
    pub(crate) path: PathBuf,
    /// Number of points.
    pub(crate) points: u64,
    /// Number of metrics.
    pub(crate) metrics: u64,
}

/// Writes the points of a run, metric by metric.
trait PointWriter {
    /// Writes the next point.
    fn write(&mut self, metric: &str, point: Point) -> std::io::Result<()>;

    /// Writes buffered data.
    fn finish(self: Box<Self>) -> std::io::Result<()>;
}

/// The destination of the bytes.
type Output = Box<dyn Write + Send>;

impl Format {
    /// Returns the extension of the default file name.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Parquet => "parquet",
            Self::Tensorboard => "tensorboard",
        }
    }

    /// Whether the output is one file, so that it can be written to a pipe.
    pub(crate) fn is_one_file(self) -> bool {
        self != Self::Tensorboard
    }

    fn writer(self, out: Output, begun_us: i64) -> std::io::Result<Box<dyn PointWriter>> {
        let out = BufWriter::with_capacity(1 << 16, out);
        Ok(match self {
            Self::Csv => Box::new(csv::Csv::begin(out)?),
            Self::Parquet => Box::new(parquet::Parquet::begin(out)?),
            Self::Tensorboard => Box::new(tensorboard::EventFile::begin(out, begun_us)?),
        })
    }
}

/// Writes the points of the wanted metrics to stdout. The format must consist of one file. Returns the
/// numbers of points and metrics.
///
/// # Errors
/// Returns an error if the store cannot be read, or stdout cannot be written.
pub(crate) fn print(
    reader: &Reader,
    wanted: impl Fn(&str) -> bool,
    format: Format,
) -> Result<(u64, u64)> {
    let failed = |e: std::io::Error| {
        Error::new(ErrorKind::System, format!("cannot write to stdout: {e}"))
            .hint("free some disk space, or write the output elsewhere")
    };
    let out = Box::new(Stdout(outlet::stdout().map_err(failed)?));
    let writer = format
        .writer(out, reader.run()?.created_us)
        .map_err(failed)?;
    write_points(reader, wanted, writer, failed)
}

/// The process's stdout. A closed pipe, as with `| head`, ends the process without an error.
struct Stdout(File);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match outlet::write(self.0.as_fd(), bytes, &|| {}) {
            Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
            outcome => outcome.map(|()| bytes.len()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes the points of the wanted metrics to the file `out`. For TensorBoard, `out` is a folder, and the
/// file is created in it.
///
/// # Errors
/// Returns an error if the file already exists, if it cannot be written, or if the store cannot be read.
pub(crate) fn export(
    reader: &Reader,
    wanted: impl Fn(&str) -> bool,
    format: Format,
    out: &Path,
) -> Result<Exported> {
    let run = reader.run()?;
    let path = match format {
        Format::Tensorboard => {
            refuse_second(out)?;
            std::fs::create_dir_all(out).map_err(|e| Error::io("create the folder", out, &e))?;
            out.join(tensorboard::file_name(&run.name, run.created_us))
        }
        Format::Csv | Format::Parquet => out.to_owned(),
    };
    if path.symlink_metadata().is_ok() {
        return Err(is_there(&path));
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        let path = folder.display();
        return Err(Error::new(
            ErrorKind::Config,
            format!("the folder for the export does not exist: {path}"),
        )
        .hint("create it, or choose another path with --out"));
    }
    let failed = |e: std::io::Error| Error::io("write the export", &path, &e);
    let file = tempfile::Builder::new()
        .prefix(".export-")
        // The umask removes some of these permissions, as for any new file.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(failed)?;
    let out = Box::new(file.as_file().try_clone().map_err(failed)?);
    let writer = format.writer(out, run.created_us).map_err(failed)?;
    let (points, metrics) = write_points(reader, wanted, writer, failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist_noclobber(&path)
        .map_err(|e| match e.error.kind() {
            std::io::ErrorKind::AlreadyExists => is_there(&path),
            _ => failed(e.error),
        })?;
    Ok(Exported {
        path,
        points,
        metrics,
    })
}

fn write_points(
    reader: &Reader,
    wanted: impl Fn(&str) -> bool,
    mut writer: Box<dyn PointWriter>,
    failed: impl Fn(std::io::Error) -> Error,
) -> Result<(u64, u64)> {
    let (mut points, mut metrics, mut current) = (0, 0, String::new());
    reader.points(wanted, |metric, point| {
        if points == 0 || metric != current {
            metrics += 1;
            metric.clone_into(&mut current);
        }
        points += 1;
        writer.write(metric, point).map_err(&failed)
    })?;
    writer.finish().map_err(failed)?;
    Ok((points, metrics))
}

/// Rejects a folder that already has an event file, because TensorBoard would read both files as one run.
fn refuse_second(folder: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("read the folder", folder, &e)),
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().contains("tfevents") {
            return Err(is_there(&entry.path()));
        }
    }
    Ok(())
}

fn is_there(path: &Path) -> Error {
    Error::new(
        ErrorKind::Config,
        format!(
            "the file already exists and is not replaced: {}",
            path.display()
        ),
    )
    .hint("choose another path with --out")
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_core::{Draft, EventBody, MetricValue, Step};
    use host_store::{RunRecord, Writer};

    /// Creates a run with two metrics, one of them with an unusual name and unusual values.
    fn run(dir: &Path) -> Reader {
        let record = RunRecord {
            name: "r".to_owned(),
            created_us: 1_700_000_000_000_000,
            config_json: "{}".to_owned(),
        };
        let draft = |step: u64, values: &[(&str, f64)]| Draft {
            time_us: 1_700_000_000_000_000 + i64::try_from(step).expect("small") * 1_500_000,
            step: Step(step),
            body: EventBody::Metrics {
                values: values
                    .iter()
                    .map(|&(n, v)| MetricValue::new(n, v))
                    .collect(),
            },
        };
        let mut writer = Writer::create(dir, &record).expect("a run");
        let odd = "a \"b\", c";
        let drafts = vec![
            draft(1, &[("loss", 0.1), (odd, f64::NAN)]),
            draft(2, &[("loss", f64::INFINITY), (odd, f64::NEG_INFINITY)]),
        ];
        writer.append(drafts).expect("written");
        Reader::open(dir).expect("a run")
    }

    #[test]
    fn a_csv_file_has_quoted_names_nan_and_infinities() {
        let dir = tempfile::tempdir().expect("a folder");
        let reader = run(&dir.path().join("r"));
        let out = dir.path().join("r.csv");
        let written = export(&reader, |_| true, Format::Csv, &out).expect("written");
        assert_eq!((written.points, written.metrics), (4, 2));
        let text = std::fs::read_to_string(&out).expect("a file");
        assert_eq!(
            text,
            "step,time,metric,value\n\
             1,2023-11-14T22:13:21.500000Z,\"a \"\"b\"\", c\",NaN\n\
             2,2023-11-14T22:13:23.000000Z,\"a \"\"b\"\", c\",-inf\n\
             1,2023-11-14T22:13:21.500000Z,loss,0.1\n\
             2,2023-11-14T22:13:23.000000Z,loss,inf\n"
        );
        export(&reader, |_| true, Format::Csv, &out)
            .err()
            .expect("it exists already");
        assert_eq!(std::fs::read_to_string(&out).expect("a file"), text);
        let left = std::fs::read_dir(dir.path()).expect("a folder").count();
        assert_eq!(left, 2, "only the run and the export, no temporary file");
    }

    #[test]
    fn only_wanted_metrics_are_written_and_a_second_event_file_is_an_error() {
        let dir = tempfile::tempdir().expect("a folder");
        let reader = run(&dir.path().join("r"));
        let out = dir.path().join("logs/r");
        let loss = |name: &str| name == "loss";
        let written = export(&reader, loss, Format::Tensorboard, &out).expect("written");
        assert_eq!((written.points, written.metrics), (2, 1));
        let name = written.path.file_name().expect("a name");
        assert_eq!(name, "events.out.tfevents.1700000000.r");
        let second = export(&reader, |_| true, Format::Tensorboard, &out)
            .err()
            .expect("refused");
        assert!(
            second.message().starts_with("the file already exists"),
            "{second}"
        );
    }
}
