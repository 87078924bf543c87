//! The run that is watched, and how it is reached.

use host_core::Result;
use host_serve::{Client, Remote, Server, Serving, Source};

use crate::runs::run_dir::RunDir;

/// Says how a server is reached. Asked again for each connection: a run that was resumed has another
/// address and another token.
type Resolve = Box<dyn Fn() -> Result<Remote> + Send>;

/// Where a run is read.
pub(crate) struct Target {
    resolve: Resolve,
    /// The run's folder, if the user named the run and not a server.
    dir: Option<RunDir>,
    /// A server of this process, for a run that has none of its own any more.
    serving: Option<Serving>,
}

impl Target {
    /// A server.
    pub(crate) fn server(resolve: Resolve) -> Self {
        Self {
            resolve,
            dir: None,
            serving: None,
        }
    }

    /// A run by its folder, whether at work or not.
    pub(crate) fn run(dir: RunDir, resolve: Resolve) -> Self {
        Self {
            dir: Some(dir),
            ..Self::server(resolve)
        }
    }

    /// The run's name, as far as the target says it.
    pub(crate) fn name(&self) -> Option<&str> {
        self.dir.as_ref().map(|dir| dir.name().as_str())
    }

    /// Whether the run's process is there, as far as its folder says it.
    pub(crate) fn is_live(&self) -> Option<bool> {
        let dir = self.dir.as_ref()?;
        Some(matches!(dir.live_address(), Ok(Some(_))))
    }

    /// Connects, and says to what.
    ///
    /// # Errors
    /// If nothing listens there, or the run's folder cannot be read.
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

/// Serves the runs beside this one, to this process.
fn serve(dir: &RunDir) -> Result<Serving> {
    let runs = dir.path().parent().unwrap_or(dir.path());
    let source = Source::Folder(runs.to_owned());
    Server::new(([127, 0, 0, 1], 0).into(), source).start()
}
