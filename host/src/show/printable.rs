//! Text of others on a terminal: a plugin's, a file's, a remote's. What would move the cursor, change
//! colours or turn the reading direction becomes a space.

/// Text in one line.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if is_harmless(c) { c } else { ' ' })
        .collect()
}

/// Text of several lines, which stay.
pub(crate) fn lines(text: &str) -> String {
    let is_kept = |c| is_harmless(c) || matches!(c, '\n' | '\t');
    text.chars()
        .map(|c| if is_kept(c) { c } else { ' ' })
        .collect()
}

/// JSON in which a terminal finds nothing to obey: the same values, with `\u` for what JSON itself lets
/// through. Outside of texts JSON has no control character but the line's end.
pub(crate) fn json(text: &str) -> String {
    if text.chars().all(|c| is_harmless(c) || c == '\n') {
        return text.to_owned();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if is_harmless(c) || c == '\n' => escaped.push(c),
            // All of them are of the first plane.
            c => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    escaped
}

/// Neither a control character (Cc), nor one that ends a line or turns the direction of what follows.
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
    fn nothing_that_a_terminal_obeys_is_left() {
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
