use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use crate::lock;
use crate::relay::{Relay, join};

/// An HTTP proxy, as strict as corporate proxies, and a SOCKS 5 proxy on the same port.
///
/// The HTTP proxy opens tunnels only to one allowed port, and accepts requests with a full URL. Both proxies
/// resolve the host `hub.invalid`, which does not exist, to this machine.
#[derive(Debug)]
pub struct TestProxy {
    relay: Relay,
    requests: Arc<Mutex<Vec<String>>>,
}

impl TestProxy {
    /// Starts a proxy that opens tunnels only to the port `tunnel`.
    pub fn start(tunnel: Option<u16>) -> Self {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&requests);
        let relay = Relay::start(move |stream| {
            let mut first = [0];
            stream.peek(&mut first)?;
            match first {
                [5] => socks(stream, &told),
                _ => http(stream, tunnel, &told),
            }
        });
        Self { relay, requests }
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.relay.port)
    }

    /// Returns the requests so far. A request has one of the forms `CONNECT host:port`,
    /// `GET http://host:port/path` and `SOCKS host:port`. If the request has credentials, ` as CREDENTIALS`
    /// follows.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.requests).clone()
    }
}

fn connect(authority: &str) -> io::Result<TcpStream> {
    TcpStream::connect(authority.replace("hub.invalid", "127.0.0.1"))
}

fn http(mut stream: TcpStream, tunnel: Option<u16>, told: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let line = head.lines().next().unwrap_or_default();
    let [method, target, _] = line.split(' ').collect::<Vec<_>>()[..] else {
        return Ok(());
    };
    let credentials = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("proxy-authorization")
            .then_some(value)
    });
    let who = credentials
        .map(|value| format!(" as {value}"))
        .unwrap_or_default();
    lock(told).push(format!("{method} {target}{who}"));
    if method == "CONNECT" {
        let allowed = tunnel.is_some_and(|port| target.ends_with(&format!(":{port}")));
        if !allowed {
            return stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
        }
        let server = connect(target)?;
        stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        return join(stream, server);
    }
    let Some((authority, path)) = target
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
    else {
        return stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    };
    let mut server = connect(authority)?;
    let own = ["proxy-authorization", "proxy-connection"];
    let mut forwarded = format!("{method} /{path} HTTP/1.1\r\n");
    for line in head.lines().skip(1).filter(|line| !line.is_empty()) {
        let name = line
            .split(':')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        if !own.contains(&&*name) {
            forwarded += &format!("{line}\r\n");
        }
    }
    server.write_all(format!("{forwarded}\r\n").as_bytes())?;
    join(stream, server)
}

fn socks(mut stream: TcpStream, told: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting)?;
    let mut methods = vec![0; usize::from(greeting[1])];
    stream.read_exact(&mut methods)?;
    stream.write_all(&[5, 0])?;
    let mut request = [0; 4];
    stream.read_exact(&mut request)?;
    let host = match request[3] {
        1 => {
            let mut address = [0; 4];
            stream.read_exact(&mut address)?;
            std::net::Ipv4Addr::from(address).to_string()
        }
        _ => {
            let mut length = [0];
            stream.read_exact(&mut length)?;
            let mut name = vec![0; usize::from(length[0])];
            stream.read_exact(&mut name)?;
            String::from_utf8_lossy(&name).into_owned()
        }
    };
    let mut port = [0; 2];
    stream.read_exact(&mut port)?;
    let authority = format!("{host}:{}", u16::from_be_bytes(port));
    lock(told).push(format!("SOCKS {authority}"));
    let server = connect(&authority)?;
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    join(stream, server)
}
