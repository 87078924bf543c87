//! A proxy that cuts each connection after a number of response bytes, possibly in the middle of a message.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    cuts: Arc<AtomicUsize>,
}

impl Proxy {
    pub(crate) fn to(upstream: SocketAddr, bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address");
        let cuts = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&cuts);
        spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // If the server is gone, the client is disconnected immediately.
                let Ok(server) = TcpStream::connect(upstream) else {
                    continue;
                };
                let (mut from_client, to_server) = (copy(&client), copy(&server));
                spawn(move || {
                    let _ = std::io::copy(&mut from_client, &mut &to_server);
                    let _ = to_server.shutdown(Shutdown::Both);
                });
                let count = Arc::clone(&count);
                spawn(move || {
                    if pass_on(&server, &client, bytes) {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    let _ = client.shutdown(Shutdown::Both);
                    let _ = server.shutdown(Shutdown::Both);
                });
            }
        });
        Self { addr, cuts }
    }

    /// Returns the number of connections that were cut so far.
    pub(crate) fn cuts(&self) -> usize {
        self.cuts.load(Ordering::Relaxed)
    }
}

/// Copies up to `bytes` bytes. Returns true if it reached this limit, and false if the connection ended
/// earlier.
fn pass_on(mut from: &TcpStream, mut to: &TcpStream, bytes: usize) -> bool {
    let mut buffer = [0; 4096];
    let mut left = bytes;
    while left > 0 {
        let room = buffer.len().min(left);
        match from.read(&mut buffer[..room]) {
            Ok(n) if n > 0 && to.write_all(&buffer[..n]).is_ok() => left -= n,
            _ => return false,
        }
    }
    true
}

fn copy(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("a handle")
}

fn spawn(work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().spawn(work).expect("a thread");
}
