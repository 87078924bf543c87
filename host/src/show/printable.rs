//! Makes text of unknown origin (plugins, files, servers) safe for a terminal. Characters that move the
//! cursor, change colors or change the writing direction are replaced by spaces.

/// Returns the text as one line.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if is_harmless(c) { c } else { ' ' })
        .collect()
}

/// Like [`one_line`], but keeps line breaks and tabs.
pub(crate) fn lines(text: &str) -> String {
    let is_kept = |c| is_harmless(c) || matches!(c, '\n' | '\t');
    text.chars()
        .map(|c| if is_kept(c) { c } else { ' ' })
        .collect()
}

/// In a JSON text, escapes each character that affects a terminal, as `\u`. The values stay the same. Outside
/// of strings, line breaks are the only control characters that `text` may contain.
pub(crate) fn json(text: &str) -> String {
    if text.chars().all(|c| is_harmless(c) || c == '\n') {
        return text.to_owned();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if is_harmless(c) || c == '\n' => escaped.push(c),
            // All these characters are in the Basic Multilingual Plane, so four digits are enough.
            c => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    escaped
}

/// Returns false for control characters (Cc), line separators, and characters that change the writing
/// direction.
fn is_harmless(c: char) -> bool {
    let turns = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    !c.is_control() && !turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_affect_a_terminal_are_removed() {
        for odd in [
            "\u{1b}[2J",
            "\u{9b}31m",
            "\u{7f}",
            "\r",
            "\u{8}",
            "\u{202e}",
            "\u{2028}",
            "\u{0}",
        ] {
            let first = odd.chars().next().expect("a character");
            for made in [one_line(odd), lines(odd), json(odd)] {
                assert!(!made.contains(first), "{odd:?}: {made:?}");
            }
        }
        assert_eq!(one_line("a\u{1b}[2J\nb"), "a [2J b");
        assert_eq!(lines("a\tb\nc\u{9b}d"), "a\tb\nc d");
    }

    #[test]
    fn json_has_the_same_values() {
        let value = serde_json::json!({ "a\u{9b}": "ü\u{202e}\u{7f}\n\u{1b}" });
        let text = json(&format!("{value:#}"));
        assert!(text.is_ascii() || text.contains('ü'));
        assert!(
            text.chars().all(|c| !c.is_control() || c == '\n'),
            "{text:?}"
        );
        let back: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(back, value);
    }
}
