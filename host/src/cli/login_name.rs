//! The current user's login name.

use std::os::unix::fs::MetadataExt as _;

/// Returns the user's login name in the form that a run's gRPC service accepts. It is read from `USER` or
/// `LOGNAME`, otherwise from `/etc/passwd`. Returns an empty name if none of them contains it.
pub(crate) fn login_name() -> String {
    let said = ["USER", "LOGNAME"]
        .into_iter()
        .filter_map(|name| std::env::var(name).ok());
    let mut said = said
        .map(|name| taken(&name))
        .filter(|name| !name.is_empty());
    said.next().or_else(listed).unwrap_or_default()
}

/// Looks up the user id in `/etc/passwd`: a container's shell often sets neither `USER` nor `LOGNAME`.
fn listed() -> Option<String> {
    let uid = std::fs::metadata("/proc/self").ok()?.uid();
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    name_of(uid, &users).map(taken)
}

fn name_of(uid: u32, users: &str) -> Option<&str> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
        (id.parse() == Ok(uid)).then_some(name)
    })
}

/// Removes the characters that the gRPC service does not accept, and shortens the name to the service's
/// limit.
fn taken(name: &str) -> String {
    let graphic = name.chars().filter(char::is_ascii_graphic);
    graphic.take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_number() {
        let users = "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(name_of(1000, users), Some("ann"));
        assert_eq!(name_of(0, users), Some("root"));
        assert_eq!(name_of(7, users), None);
    }

    #[test]
    fn a_name_is_reduced_to_what_the_service_accepts() {
        assert_eq!(taken("ann b\u{e9}\n"), "annb");
        assert_eq!(taken(&"x".repeat(100)).len(), 64);
    }
}
