use std::net::SocketAddr;

use host_core::Result;
use host_serve::{Server, Source};

use super::{RunsDir, print};
use crate::{plan, signals};

/// Serves the runs of a folder over gRPC, live or over, until Ctrl-C
#[derive(Debug, clap::Args)]
pub(super) struct Serve {
    #[command(flatten)]
    runs: RunsDir,

    /// Where to listen; port 0 is a free one, which is printed
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0", value_parser = plan::listen_address)]
    listen: SocketAddr,
}

impl Serve {
    pub(super) fn execute(&self) -> Result<()> {
        let serving = Server::start(self.listen, Source::Folder(self.runs.runs_dir.clone()))?;
        let runs = self.runs.runs_dir.display();
        print(&format!("gRPC at {}: {runs}\n", serving.addr()));
        signals::wait()?;
        serving.stop()
    }
}
