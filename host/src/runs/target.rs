//! The run to watch, and how to connect to it.

use host_core::Result;
use host_serve::{Client, Remote, Server, Serving, Source};
use host_store::RunRow;

use crate::runs::run_dir::RunDir;

/// Maximum number of runs that a hint lists.
const MOST_NAMES: usize = 10;

/// A function that returns how to reach a server. It is called for each connection, because a resumed run has
/// a new address and token.
type Resolve = Box<dyn Fn() -> Result<Remote> + Send>;

/// The server that a run is read from.
pub(crate) struct Target {
    resolve: Resolve,
    /// The run's folder, if the user gave a run and not a server.
    dir: Option<RunDir>,
    /// A server in this process, for a run that is not live.
    serving: Option<Serving>,
}

impl Target {
    /// Creates a target that is a server.
    pub(crate) fn server(resolve: Resolve) -> Self {
        Self {
            resolve,
            dir: None,
            serving: None,
        }
    }

    /// Creates a target that is a run, live or not.
    pub(crate) fn run(dir: RunDir, resolve: Resolve) -> Self {
        Self {
            dir: Some(dir),
            ..Self::server(resolve)
        }
    }

    /// Returns the run's name, if the target is a run.
    pub(crate) fn name(&self) -> Option<&str> {
        self.dir.as_ref().map(|dir| dir.name().as_str())
    }

    /// Whether the run is live, according to its folder. None if the target is a server.
    pub(crate) fn is_live(&self) -> Option<bool> {
        let dir = self.dir.as_ref()?;
        Some(matches!(dir.live_address(), Ok(Some(_))))
    }

    /// Connects. Returns the client and a text for the user: the server's address, or the run's folder if the
    /// run is not live.
    ///
    /// # Errors
    /// Returns an error if the server does not answer, or the run's folder cannot be read.
    pub(crate) fn connect(&mut self) -> Result<(Client, String)> {
        if let Some(dir) = &self.dir
            && dir.live_address()?.is_none()
        {
            let serving = match &mut self.serving {
                Some(serving) => serving,
                none => none.insert(serve(dir)?),
            };
            let client = Client::connect(&serving.addr().to_string())?;
            return Ok((client, dir.path().display().to_string()));
        }
        let remote = (self.resolve)()?;
        Ok((Client::connect_to(&remote)?, remote.addr))
    }
}

/// Reads a run. An empty name means the server's only run.
///
/// # Errors
/// Returns an error if the server does not respond, if it has no such run, or if the name is empty and the
/// server has several runs. In the last case, the hint lists runs of the server.
pub(crate) fn read_run(client: &Client, name: &str) -> Result<RunRow> {
    client.run(name).map_err(|error| {
        let runs = match client.runs() {
            Ok(runs) if name.is_empty() && runs.len() > 1 => runs,
            _ => return error,
        };
        let names: Vec<&str> = runs.iter().map(|(name, _)| name.as_str()).collect();
        let shown = names[..names.len().min(MOST_NAMES)].join(", ");
        let more = match names.len().saturating_sub(MOST_NAMES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        error.hint(format!("add --run NAME; the server has {shown}{more}"))
    })
}

/// Starts a server on the loopback interface, for this process. It serves all runs in the parent folder of
/// `dir`.
fn serve(dir: &RunDir) -> Result<Serving> {
    let runs = dir.path().parent().unwrap_or(dir.path());
    let source = Source::Folder(runs.to_owned());
    Server::new(([127, 0, 0, 1], 0).into(), source).start()
}
