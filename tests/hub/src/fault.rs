use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What can be made to go wrong with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The server reads the request's head and says nothing until it is dropped.
    Hang,
    /// The connection ends at once.
    Close,
    /// The connection ends after this many bytes of the request's body.
    Cut(u64),
    /// The request is served, but the connection ends after this many bytes of the reply's body.
    CutReply(usize),
    /// The request's body is read at this many bytes a second, and the request is served.
    Slow(u64),
    /// The request is served once this is set.
    Wait(Arc<AtomicBool>),
    /// The request is served, but the connection ends without the reply.
    LoseReply,
    /// This status instead of serving, and the request's own credentials in the text.
    Echo(u16),
    /// This status instead of serving, with these headers.
    Status(u16, Vec<(String, String)>),
    /// This JSON instead of serving.
    Json(serde_json::Value),
    /// The request is served if it says how long it is, and else refused with 411.
    WantLength,
}

impl Fault {
    /// The server says by this status that the request should go to another URL.
    pub fn lead(status: u16, to: &str) -> Self {
        Self::Status(status, vec![("Location".to_owned(), to.to_owned())])
    }
}

/// A fault that waits for its requests.
#[derive(Debug)]
pub(crate) struct Trap {
    /// What the request line (`POST /user/model/git-receive-pack`) must contain.
    pub(crate) matching: String,
    pub(crate) fault: Fault,
    pub(crate) times: usize,
}

/// The fault that the request meets, if any, which is then used up by one.
pub(crate) fn take(traps: &mut [Trap], request_line: &str) -> Option<Fault> {
    let trap = traps
        .iter_mut()
        .find(|trap| trap.times > 0 && request_line.contains(&trap.matching))?;
    trap.times -= 1;
    Some(trap.fault.clone())
}
