//! Detects terminals on which lines can be redrawn.

use std::ffi::OsStr;
use std::io::IsTerminal;

use ratatui::crossterm::terminal::size;

/// Returns true if lines on `out` can be redrawn. This is not possible in an editor's shell, in a build
/// server's log, or in a terminal without a size. Such outputs receive only plain lines.
pub(crate) fn can_draw(out: &impl IsTerminal) -> bool {
    let (term, ci) = (std::env::var_os("TERM"), std::env::var_os("CI"));
    out.is_terminal()
        && is_drawable(term.as_deref(), ci.as_deref())
        && size().is_ok_and(|(columns, rows)| columns > 0 && rows > 0)
}

/// Returns true if the values of `TERM` and `CI` allow lines to be redrawn.
fn is_drawable(term: Option<&OsStr>, ci: Option<&OsStr>) -> bool {
    let is_terminal =
        term.is_some_and(|term| !["", "dumb", "unknown"].map(OsStr::new).contains(&term));
    let is_build = ci.is_some_and(|ci| !["", "0", "false"].map(OsStr::new).contains(&ci));
    is_terminal && !is_build
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dumb_terminal_and_a_build_get_lines() {
        let decide = |term: Option<&str>, ci: Option<&str>| {
            is_drawable(term.map(OsStr::new), ci.map(OsStr::new))
        };
        assert!(decide(Some("xterm-256color"), None));
        assert!(decide(Some("screen"), Some("false")));
        for term in [None, Some(""), Some("dumb"), Some("unknown")] {
            assert!(!decide(term, None), "{term:?}");
        }
        for ci in ["true", "1", "woodpecker"] {
            assert!(!decide(Some("xterm"), Some(ci)), "{ci}");
        }
    }
}
