use std::io::{self, Seek};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::http::{Request, Response};

/// Answers a request by running git's own server, `git http-backend`, as a CGI program.
pub(crate) fn answer(root: &Path, path: &str, request: &mut Request) -> io::Result<Response> {
    let mut body = tempfile::tempfile()?;
    request.copy_body(&mut body)?;
    body.rewind()?;

    let mut backend = Command::new("git");
    backend
        .arg("http-backend")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", path)
        .env("QUERY_STRING", &request.query)
        .env("REQUEST_METHOD", &request.method)
        // `receive-pack` requires a user name. Whether the user may push was already checked.
        .env("REMOTE_USER", "user")
        .stdin(Stdio::from(body))
        .stderr(Stdio::inherit());
    for (variable, header) in [
        ("CONTENT_TYPE", "content-type"),
        ("HTTP_CONTENT_ENCODING", "content-encoding"),
        ("HTTP_GIT_PROTOCOL", "git-protocol"),
        ("GIT_PROTOCOL", "git-protocol"),
    ] {
        if let Some(value) = request.header(header) {
            backend.env(variable, value);
        }
    }
    let output = backend.output()?;
    Ok(parse(&output.stdout))
}

/// Parses a CGI program's output: header lines, an empty line, the body.
fn parse(output: &[u8]) -> Response {
    let end = output
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap_or(output.len());
    let mut response = Response {
        status: if end == output.len() { 500 } else { 200 },
        headers: Vec::new(),
        body: output.get(end + 4..).unwrap_or_default().to_vec(),
    };
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        match line.split_once(": ") {
            Some(("Status", status)) => {
                let code = status.split(' ').next().unwrap_or_default();
                response.status = code.parse().unwrap_or(500);
            }
            Some((name, value)) => response.headers.push((name.to_owned(), value.to_owned())),
            None => {}
        }
    }
    response
}
