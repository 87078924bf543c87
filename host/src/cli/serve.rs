use std::path::PathBuf;

use host_core::{Error, ErrorKind, Result};

use super::RunsDir;
use crate::config::settings::HostConfig;
use crate::run::signals::EndSignal;
use crate::service::Service;
use crate::show::printer::Printer;

const EXAMPLE: &str = "\
Example:
  host serve --runs-dir runs --listen 127.0.0.1:6006";

/// Serves the live and finished runs of a folder over gRPC, until Ctrl-C
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Serve {
    #[command(flatten)]
    runs: RunsDir,

    /// Address to listen on; port 0 selects a free port. The actual address is printed. To be reachable
    /// from other machines, it requires TLS and --read-token-env
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    listen: String,

    /// Environment variable with the token that clients need for reading
    #[arg(long, value_name = "NAME", help_heading = "Security")]
    read_token_env: Option<String>,

    /// self-signed: use TLS with a newly generated certificate, and print its fingerprint
    #[arg(long, value_name = "HOW", value_parser = ["self-signed"], help_heading = "Security")]
    tls: Option<String>,

    /// Use TLS with the certificate in this PEM file
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_key",
        help_heading = "Security"
    )]
    tls_cert: Option<PathBuf>,

    /// PEM file with the private key of --tls-cert
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_cert",
        help_heading = "Security"
    )]
    tls_key: Option<PathBuf>,
}

impl Serve {
    pub(super) fn execute(&self) -> Result<()> {
        // Returns freed memory to the system, because a burst of requests can allocate 100 MB.
        host_train::return_freed_memory();
        let dir = &self.runs.runs_dir;
        if !dir.is_dir() {
            let message = format!("no such folder of runs: {}", dir.display());
            return Err(Error::new(ErrorKind::Config, message)
                .hint("set --runs-dir, or create the folder by starting a run"));
        }
        let service = Service::new(&HostConfig {
            listen: self.listen.clone(),
            read_token_env: self.read_token_env.clone(),
            tls: self.tls.clone(),
            tls_cert: self.tls_cert.clone(),
            tls_key: self.tls_key.clone(),
            ..HostConfig::default()
        })?;
        // Handles signals before the address is printed, because a program that reads the address can send a
        // signal right away.
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
        // Does not block: a signal must stop the server even if the terminal is frozen.
        Printer::of_process().conclude(&lines);
        end.wait();
        served.serving.stop()
    }
}
