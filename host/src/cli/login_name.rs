//! Who sits at this program, as far as the machine knows.

use std::os::unix::fs::MetadataExt as _;

/// This user's login name as the service takes it: what the session says, or else whom the machine's
/// list of users has. Empty if neither knows.
pub(crate) fn login_name() -> String {
    let said = ["USER", "LOGNAME"]
        .into_iter()
        .filter_map(|name| std::env::var(name).ok());
    let mut said = said
        .map(|name| taken(&name))
        .filter(|name| !name.is_empty());
    said.next().or_else(listed).unwrap_or_default()
}

/// The name beside this process's user id. A container's shell often sets no variable.
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

/// What of a name the service takes.
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
    fn a_name_is_what_the_service_takes() {
        assert_eq!(taken("ann b\u{e9}\n"), "annb");
        assert_eq!(taken(&"x".repeat(100)).len(), 64);
    }
}
