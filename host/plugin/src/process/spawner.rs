use std::io;
use std::process::{Child, Command};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

/// A program to start, and the channel on which to return its handle.
struct Job {
    command: Command,
    answer: SyncSender<io::Result<Child>>,
}

static SPAWNER: Mutex<Option<SyncSender<Job>>> = Mutex::new(None);

/// Starts a program from a thread that lives as long as the process.
///
/// A child can request a signal for its parent's death (`PR_SET_PDEATHSIG`). The kernel sends it when the
/// *thread* that started the child ends. A sink's child may be restarted by the sink's worker thread, which
/// ends before the process does. Therefore all children are started from this one thread.
pub(super) fn spawn(command: Command) -> io::Result<Child> {
    let (answer, started) = sync_channel(1);
    let gone = |_| io::Error::other("the thread that starts processes is gone");
    spawner()?
        .send(Job { command, answer })
        .map_err(|_| gone(()))?;
    started.recv().map_err(|_| gone(()))?
}

fn spawner() -> io::Result<SyncSender<Job>> {
    let mut spawner = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(spawner) = &*spawner {
        return Ok(spawner.clone());
    }
    let (jobs, queue) = sync_channel::<Job>(1);
    std::thread::Builder::new()
        .name("plugin processes".to_owned())
        .spawn(move || {
            for Job {
                mut command,
                answer,
            } in queue
            {
                // An error means that the caller no longer waits. The child then finds its sockets closed.
                let _ = answer.send(command.spawn());
            }
        })?;
    Ok(spawner.insert(jobs).clone())
}
