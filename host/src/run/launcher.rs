//! `host run --nproc N`: starts the ranks of this machine, passes signals on, and ends all ranks when one fails.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use host_core::{Error, ErrorKind, Result};
use host_train::StoreServer;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

/// The signals that are passed on to the ranks.
const PASSED_ON: [(i32, Signal); 6] = [
    (SIGINT, Signal::INT),
    (SIGTERM, Signal::TERM),
    (SIGHUP, Signal::HUP),
    (SIGQUIT, Signal::QUIT),
    (SIGUSR1, Signal::USR1),
    (SIGUSR2, Signal::USR2),
];
const POLL: Duration = Duration::from_millis(20);
/// How long the other ranks may take to end after one has failed. Then they are asked to end, and later killed.
const GRACE: Duration = Duration::from_secs(15);

/// Runs this command again in `count` processes, which train together. Returns their exit code.
///
/// # Errors
/// Returns an error if a process cannot be started.
pub(crate) fn launch(count: usize) -> Result<u8> {
    let server = StoreServer::start()?;
    let flags: Vec<(Arc<AtomicBool>, Signal)> = PASSED_ON
        .into_iter()
        .map(|(number, signal)| {
            let flag = Arc::<AtomicBool>::default();
            signal_hook::flag::register(number, Arc::clone(&flag)).map_err(cannot_start)?;
            Ok((flag, signal))
        })
        .collect::<Result<_>>()?;
    let mut ranks = Vec::new();
    for rank in 0..count {
        match start(rank, count, server.port()) {
            Ok(child) => ranks.push(Rank {
                child,
                status: None,
            }),
            Err(error) => {
                ranks.iter().for_each(|rank| rank.send(Signal::KILL));
                return Err(cannot_start(error));
            }
        }
    }
    let mut codes = Vec::new();
    let mut failed: Option<Instant> = None;
    let mut is_asked = false;
    while ranks.iter().any(|rank| rank.status.is_none()) {
        for (flag, signal) in &flags {
            if flag.swap(false, Ordering::SeqCst) {
                ranks.iter().for_each(|rank| rank.send(*signal));
            }
        }
        for rank in ranks.iter_mut().filter(|rank| rank.status.is_none()) {
            let Some(status) = rank.child.try_wait().map_err(cannot_start)? else {
                continue;
            };
            rank.status = Some(status);
            if let code @ 1.. = code(status) {
                failed.get_or_insert_with(Instant::now);
                codes.push(code);
            }
        }
        match failed.map(|at| at.elapsed()) {
            Some(since) if since > 2 * GRACE => {
                ranks.iter().for_each(|rank| rank.send(Signal::KILL));
            }
            Some(since) if since > GRACE && !is_asked => {
                is_asked = true;
                ranks.iter().for_each(|rank| rank.send(Signal::TERM));
            }
            _ => {}
        }
        thread::sleep(POLL);
    }
    // A rank that ends because of another has the code 1.
    let own = codes.iter().find(|&&code| code != 1);
    Ok(own.or(codes.first()).copied().unwrap_or(0))
}

struct Rank {
    child: Child,
    status: Option<ExitStatus>,
}

impl Rank {
    fn send(&self, signal: Signal) {
        if self.status.is_none()
            && let Ok(pid) = i32::try_from(self.child.id())
            && let Some(pid) = Pid::from_raw(pid)
        {
            // The process can have ended just now.
            let _ = kill_process(pid, signal);
        }
    }
}

fn start(rank: usize, count: usize, port: u16) -> std::io::Result<Child> {
    let mut args = std::env::args_os();
    let mut command = Command::new(std::env::current_exe()?);
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command
        .args(args)
        .env("RANK", rank.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("WORLD_SIZE", count.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .env("TORCHELASTIC_USE_AGENT_STORE", "True")
        // A terminal sends Ctrl-C to its whole process group. The ranks must get it once, from this process.
        .process_group(0)
        .spawn()
}

fn code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

fn cannot_start(error: std::io::Error) -> Error {
    Error::new(
        ErrorKind::System,
        format!("cannot start the ranks: {error}"),
    )
}

/// Checks the number of ranks.
///
/// # Errors
/// Returns an error if the number is 0.
pub(crate) fn check(count: usize) -> Result<()> {
    if count > 0 {
        return Ok(());
    }
    Err(
        Error::new(ErrorKind::Config, "nproc is 0, but must be at least 1")
            .hint("use --nproc N to train with N processes, or leave it out"),
    )
}
