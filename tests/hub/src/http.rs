use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A request. Each connection carries one request, and is closed after the reply.
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    headers: Vec<(String, String)>,
    stream: BufReader<TcpStream>,
    /// The connection is closed after this many bytes of the body have arrived.
    cut: u64,
    /// Bytes of the body that arrive per second.
    bytes_per_sec: Option<u64>,
}

/// A reply with its complete body.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// Reads the head of a request; the body stays in the stream. Returns `None` if the head is incomplete or
    /// too long.
    pub(crate) fn read(stream: TcpStream) -> io::Result<Option<Self>> {
        let mut stream = BufReader::new(stream);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() > 64 * 1024 || stream.read_until(b'\n', &mut head)? == 0 {
                return Ok(None);
            }
        }
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Request::new(&mut headers);
        parsed.parse(&head).map_err(io::Error::other)?;
        let target = parsed.path.unwrap_or("/");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Ok(Some(Self {
            method: parsed.method.unwrap_or("").to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers: parsed
                .headers
                .iter()
                .map(|header| {
                    let value = String::from_utf8_lossy(header.value).into_owned();
                    (header.name.to_owned(), value)
                })
                .collect(),
            stream,
            cut: u64::MAX,
            bytes_per_sec: None,
        }))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn cut_after(&mut self, bytes: u64) {
        self.cut = bytes;
    }

    pub(crate) fn slow_down(&mut self, bytes_per_sec: u64) {
        self.bytes_per_sec = Some(bytes_per_sec);
    }

    /// Copies the body, of known length or chunked, and returns its length.
    pub(crate) fn copy_body(&mut self, to: &mut dyn Write) -> io::Result<u64> {
        if self.header("expect").is_some() {
            self.stream
                .get_mut()
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let length = self.header("content-length").map(str::to_owned);
        let to = &mut Faulty {
            to,
            left: self.cut,
            bytes_per_sec: self.bytes_per_sec,
        };
        if self.header("transfer-encoding") == Some("chunked") {
            return self.copy_chunks(to);
        }
        let length = length.map_or(Ok(0), |text| text.parse().map_err(io::Error::other))?;
        let copied = io::copy(&mut (&mut self.stream).take(length), to)?;
        if copied < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(copied)
    }

    fn copy_chunks(&mut self, to: &mut dyn Write) -> io::Result<u64> {
        let mut total = 0;
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let size = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            let copied = io::copy(&mut (&mut self.stream).take(size), to)?;
            if copied < size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            total += copied;
            line.clear();
            self.stream.read_line(&mut line)?;
            if size == 0 {
                return Ok(total);
            }
        }
    }

    pub(crate) fn body(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        self.copy_body(&mut body)?;
        Ok(body)
    }

    /// Closes the connection without a reply. Dropping the stream is not enough, because the server keeps
    /// another handle to it.
    pub(crate) fn hang_up(self) -> io::Result<()> {
        self.stream.get_ref().shutdown(std::net::Shutdown::Both)
    }

    /// Sends the reply with at most `most` bytes of its body, and closes the connection.
    pub(crate) fn reply(mut self, response: &Response, most: usize) -> io::Result<()> {
        let mut head = format!("HTTP/1.1 {} -\r\nConnection: close\r\n", response.status);
        for (name, value) in &response.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", response.body.len());
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes())?;
        stream.write_all(&response.body[..most.min(response.body.len())])?;
        stream.flush()?;
        // Read the rest of the request: otherwise the kernel would reset the connection, and the
        // client might not receive the reply.
        stream.shutdown(std::net::Shutdown::Write)?;
        io::copy(&mut self.stream, &mut io::sink())?;
        self.hang_up()
    }
}

/// A writer that simulates a fault: it fails after `left` bytes, and is slowed down to `bytes_per_sec`.
struct Faulty<'a> {
    to: &'a mut dyn Write,
    left: u64,
    bytes_per_sec: Option<u64>,
}

impl Write for Faulty<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len() as u64;
        if self.left < len {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        self.left -= len;
        if let Some(rate) = self.bytes_per_sec {
            std::thread::sleep(Duration::from_secs(len) / u32::try_from(rate).unwrap_or(u32::MAX));
        }
        self.to.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl Response {
    pub(crate) fn text(status: u16, text: &str) -> Self {
        Self {
            status,
            headers: vec![("Content-Type".to_owned(), "text/plain".to_owned())],
            body: text.as_bytes().to_vec(),
        }
    }

    pub(crate) fn json(status: u16, value: &serde_json::Value) -> Self {
        Self {
            status,
            headers: vec![(
                "Content-Type".to_owned(),
                "application/vnd.git-lfs+json".to_owned(),
            )],
            body: value.to_string().into_bytes(),
        }
    }

    #[must_use]
    pub(crate) fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}
