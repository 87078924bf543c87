use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A fault to inject into a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The server reads the request's head and sends nothing until the server is dropped.
    Hang,
    /// The connection is closed at once.
    Close,
    /// The connection is closed after this many bytes of the request's body.
    Cut(u64),
    /// The request is served, but the connection is closed after this many bytes of the reply's body.
    CutReply(usize),
    /// The request is served, but its body is read at this many bytes per second.
    Slow(u64),
    /// The request is served only after this flag is set.
    Wait(Arc<AtomicBool>),
    /// The request is served, but the connection is closed without the reply.
    LoseReply,
    /// The server replies with this status, and with the request's credentials in the text.
    Echo(u16),
    /// The server replies with this status and these headers.
    Status(u16, Vec<(String, String)>),
    /// The server replies with this JSON.
    Json(serde_json::Value),
    /// The request is served if it announces its length, and rejected with status 411 otherwise.
    WantLength,
}

impl Fault {
    /// Returns a redirect to another URL with this status.
    pub fn lead(status: u16, to: &str) -> Self {
        Self::Status(status, vec![("Location".to_owned(), to.to_owned())])
    }
}

/// A fault for the next `times` requests that match.
#[derive(Debug)]
pub(crate) struct Trap {
    /// The text that the request line (`POST /user/model/git-receive-pack`) must contain.
    pub(crate) matching: String,
    pub(crate) fault: Fault,
    pub(crate) times: usize,
}

/// Returns the fault for a request, if there is one, and decrements the trap's `times`.
pub(crate) fn take(traps: &mut [Trap], request_line: &str) -> Option<Fault> {
    let trap = traps
        .iter_mut()
        .find(|trap| trap.times > 0 && request_line.contains(&trap.matching))?;
    trap.times -= 1;
    Some(trap.fault.clone())
}
