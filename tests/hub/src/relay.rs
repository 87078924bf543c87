use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// A listener on a free port of this machine, with a thread for each connection. Dropping it closes only the
/// listener. The connections end when their peers close them.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) port: u16,
    stopped: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Relay {
    pub(crate) fn start(
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("a bound port").port();
        let stopped = Arc::new(AtomicBool::new(false));
        let is_stopped = Arc::clone(&stopped);
        let serve = Arc::new(serve);
        let acceptor = std::thread::Builder::new()
            .name("test-hub relay".to_owned())
            .spawn(move || {
                for stream in listener.incoming() {
                    if is_stopped.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(stream) = stream else { continue };
                    let serve = Arc::clone(&serve);
                    std::thread::Builder::new()
                        .name("test-hub relayed".to_owned())
                        .spawn(move || {
                            // A peer that disconnects early is not an error.
                            let _ = serve(stream);
                        })
                        .expect("a thread");
                }
            })
            .expect("a thread");
        Self {
            port,
            stopped,
            acceptor: Some(acceptor),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Copies data in both directions until both sides have ended.
pub(crate) fn join(left: TcpStream, right: TcpStream) -> io::Result<()> {
    let (left_too, right_too) = (left.try_clone()?, right.try_clone()?);
    std::thread::scope(|scope| {
        scope.spawn(|| copy(left_too, right_too));
        copy(right, left);
    });
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut piece = [0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut piece) {
        if to.write_all(&piece[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
