//! Determines how long to wait before a retry, from the `Retry-After` header.

use std::time::{Duration, SystemTime};

/// The longest wait within one delivery. If a server requires a longer wait, the delivery fails, and the host
/// retries it later.
const LONGEST: Duration = Duration::from_secs(300);

/// The shortest wait. It prevents requests in a tight loop if a server requires no wait.
const SHORTEST: Duration = Duration::from_millis(500);

/// Returns the time to wait before the request is repeated. `after` is the value of the header, which is a
/// number of seconds or an HTTP date. Returns `None` in three cases: the status is neither 429 nor 503;
/// `after` is missing or not a valid time; the time is longer than [`LONGEST`].
pub(crate) fn wanted(status: u16, after: Option<&str>, now: SystemTime) -> Option<Duration> {
    if !matches!(status, 429 | 503) {
        return None;
    }
    let after = after?.trim();
    let wait = match after.parse() {
        Ok(secs) => Duration::from_secs(secs),
        Err(_) => httpdate::parse_http_date(after)
            .ok()?
            .duration_since(now)
            .unwrap_or_default(),
    };
    (wait <= LONGEST).then_some(wait.max(SHORTEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_understood() {
        let now = httpdate::parse_http_date("Fri, 31 Dec 1999 23:59:50 GMT").expect("a date");
        let secs = |status, after| wanted(status, after, now).map(|wait| wait.as_secs_f64());
        assert_eq!(secs(429, Some("17")), Some(17.0));
        assert_eq!(secs(503, Some(" 300 ")), Some(300.0));
        let date = "Sat, 01 Jan 2000 00:00:00 GMT";
        assert_eq!(secs(429, Some(date)), Some(10.0));
        assert_eq!(
            secs(429, Some("Fri, 31 Dec 1999 23:00:00 GMT")),
            Some(0.5),
            "a time in the past"
        );
        assert_eq!(secs(429, Some("0")), Some(0.5));
    }

    #[test]
    fn other_responses_are_not_waited_for() {
        let now = SystemTime::now();
        for (status, after) in [
            (429, None),
            (429, Some("soon")),
            (429, Some("-1")),
            (503, Some("301")),
            (500, Some("1")),
            (200, Some("1")),
        ] {
            assert_eq!(wanted(status, after, now), None, "{status} {after:?}");
        }
    }
}
