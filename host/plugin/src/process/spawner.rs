use std::io;
use std::process::{Child, Command};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

/// A program to start, and where its handle goes.
struct Job {
    command: Command,
    answer: SyncSender<io::Result<Child>>,
}

static SPAWNER: Mutex<Option<SyncSender<Job>>> = Mutex::new(None);

/// Starts a program from a thread that lives as long as the process.
///
/// The signal that a child asked for at its parent's death (`PR_SET_PDEATHSIG`) comes when the
/// *thread* that started it ends. A sink's child is started again on the sink's worker, which ends
/// before the process does, so no such thread starts any.
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
                // Who asked may have gone; the child then sees its sockets closed.
                let _ = answer.send(command.spawn());
            }
        })?;
    Ok(spawner.insert(jobs).clone())
}
