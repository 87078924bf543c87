//! The run to watch, and how to connect to it.

use host_core::Result;
use host_serve::{Client, Remote, Server, Serving, Source};

use crate::runs::run_dir::RunDir;

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

/// Starts a server on the loopback interface, for this process. It serves all runs in the parent folder of
/// `dir`.
fn serve(dir: &RunDir) -> Result<Serving> {
    let runs = dir.path().parent().unwrap_or(dir.path());
    let source = Source::Folder(runs.to_owned());
    Server::new(([127, 0, 0, 1], 0).into(), source).start()
}
