use std::path::PathBuf;

use host_core::{Error, ErrorKind, Result};

use super::RunsDir;
use crate::config::settings::HostConfig;
use crate::run::signals::EndSignal;
use crate::service::Service;
use crate::show::printer::Printer;

/// Serves the runs of a folder over gRPC, live or over, until Ctrl-C
#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    runs: RunsDir,

    /// Where to listen; port 0 is a free one, which is printed. Beyond this machine it takes TLS and
    /// --read-token-env
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    listen: String,

    /// Environment variable with the token that reading takes
    #[arg(long, value_name = "NAME")]
    read_token_env: Option<String>,

    /// self-signed: TLS with a certificate made for this time, whose fingerprint is printed
    #[arg(long, value_name = "HOW", value_parser = ["self-signed"])]
    tls: Option<String>,

    /// TLS with the certificate of this PEM file
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The certificate's key, a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl Serve {
    pub(super) fn execute(&self) -> Result<()> {
        // A burst of requests may take 100 MB.
        host_train::return_freed_memory();
        let dir = &self.runs.runs_dir;
        if !dir.is_dir() {
            let message = format!("there is no folder of runs: {}", dir.display());
            return Err(Error::new(ErrorKind::Config, message)
                .hint("--runs-dir names it; `host run` makes it with its first run"));
        }
        let service = Service::new(&HostConfig {
            listen: self.listen.clone(),
            read_token_env: self.read_token_env.clone(),
            tls: self.tls.clone(),
            tls_cert: self.tls_cert.clone(),
            tls_key: self.tls_key.clone(),
            ..HostConfig::default()
        })?;
        // Before the address is known, so that who reads it may end this at once.
        let end = EndSignal::new()?;
        let warn = |message| {
            Printer::of_process().insist(&format!("warning: {message}"));
        };
        let served = service.serve(dir, Box::new(warn))?;
        let addr = served.serving.addr();
        let mut lines = format!("gRPC at {addr}: {}\n", dir.display());
        for line in served.clients() {
            lines += &format!("{line}\n");
        }
        // A terminal that takes nothing does not keep a signal from ending this.
        Printer::of_process().conclude(&lines);
        end.wait();
        served.serving.stop()
    }
}
