//! Which names a plugin may give to its values.

/// The metrics that the host measures itself. Beside them it has those that begin with one of
/// [`HOST_PREFIXES`].
pub const HOST_METRICS: [&str; 15] = [
    "loss/train",
    "lr",
    "grad_norm",
    "samples",
    "steps",
    "tokens",
    "tokens_per_second",
    "model_flops_per_second",
    "mfu",
    "step_secs",
    "data_wait_secs",
    "checkpoint_copy_secs",
    "checkpoint_wait_secs",
    "peak_memory_bytes",
    "eval_secs",
];

/// What the names of the host's other metrics begin with: the plugins' cost, the machine, the simple
/// models that the loss is compared with.
pub const HOST_PREFIXES: [&str; 3] = ["plugin/", "system/", "baseline/"];

/// The host's only where no plugin gives it, by exactly this name.
pub const EVAL_LOSS: &str = "loss/eval";

/// Longest name of a value, in bytes.
pub const LONGEST_METRIC_NAME: usize = 200;

/// Why a plugin may not give this name to a value, if so, as in "it gives a value called …". A name is
/// refused that is the host's, since the values would mix with the host's; that a reader takes for one
/// of the host's; or that cannot be told from another name by looking at it.
pub fn metric_name_fault(name: &str) -> Option<String> {
    let called = || format!("it gives a value called {name:?}, which");
    if name.is_empty() {
        return Some("it gives a value an empty name".to_owned());
    }
    if name.len() > LONGEST_METRIC_NAME {
        let bytes = name.len();
        return Some(format!(
            "it gives a value a name of {bytes} bytes, more than {LONGEST_METRIC_NAME}"
        ));
    }
    if HOST_METRICS.contains(&name) || HOST_PREFIXES.iter().any(|start| name.starts_with(start)) {
        return Some(format!("{} is a name of the host's own", called()));
    }
    if name.contains(|c: char| c.is_control() || is_invisible(c)) {
        return Some(format!("{} has characters that are not shown", called()));
    }
    let is_odd_space = |c: char| c.is_whitespace() && c != ' ';
    if name.trim() != name || name.contains("  ") || name.contains(is_odd_space) {
        return Some(format!("{} has white space that is not shown", called()));
    }
    if name == EVAL_LOSS {
        return None;
    }
    let plain = plain(name);
    let alike = HOST_METRICS
        .into_iter()
        .chain([EVAL_LOSS])
        .find(|known| plain == *known)
        .or_else(|| {
            HOST_PREFIXES
                .into_iter()
                .find(|start| plain.starts_with(start))
        })?;
    Some(format!(
        "{} looks like {alike}, a name of the host's own",
        called()
    ))
}

/// Characters that take no room, or change how others are shown.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fffc}' | '\u{e0000}'..='\u{e0fff}')
}

/// The name without what makes little difference to the eye: case, separators, slashes, and letters
/// of other scripts that look like Latin ones.
fn plain(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    for c in name.chars().flat_map(char::to_lowercase) {
        let c = match c {
            '\u{ff01}'..='\u{ff5e}' => {
                // The full-width forms of ASCII, in its order.
                char::from_u32(u32::from(c) - 0xff01 + 0x21).unwrap_or(c)
            }
            'а' | 'α' => 'a',
            'ԁ' => 'd',
            'е' => 'e',
            'һ' => 'h',
            'і' | 'ι' | 'ı' => 'i',
            'ӏ' | 'ⅼ' => 'l',
            'м' => 'm',
            'о' | 'ο' => 'o',
            'р' | 'ρ' => 'p',
            'ԛ' => 'q',
            'г' => 'r',
            'ѕ' => 's',
            'с' => 'c',
            'υ' => 'u',
            'ν' | 'ѵ' => 'v',
            'х' | 'χ' => 'x',
            'у' | 'γ' => 'y',
            '\\' | '∕' | '⁄' | '⧸' | '╱' => '/',
            ' ' | '-' | '.' | '‐' | '‑' | '–' | '—' | '−' => '_',
            c => c,
        };
        let c = c.to_ascii_lowercase();
        let is_doubled = matches!(c, '/' | '_') && plain.ends_with(c);
        // The dot that Unicode puts over a capital I.
        if !is_doubled && c != '\u{307}' {
            plain.push(c);
        }
    }
    plain
        .trim_start_matches(['/', '_'])
        .trim_end_matches('_')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_free() {
        for name in [
            "perplexity",
            "loss/eval",
            "loss/worst_token",
            "loss_train",
            "train/loss",
            "lrs",
            "systematic_error",
            "system",
            "plugins/x",
            "accuracy top 5",
            "précision",
            "точность",
            "a//b",
            &"x".repeat(LONGEST_METRIC_NAME),
        ] {
            assert_eq!(metric_name_fault(name), None, "{name}");
        }
    }

    #[test]
    fn the_hosts_names_are_the_hosts() {
        let below = HOST_PREFIXES.map(|start| format!("{start}x"));
        let names = HOST_METRICS
            .into_iter()
            .chain(below.iter().map(String::as_str));
        for name in names {
            let fault = metric_name_fault(name).expect(name);
            let expected =
                format!("it gives a value called {name:?}, which is a name of the host's own");
            assert_eq!(fault, expected);
        }
    }

    #[test]
    fn what_looks_like_the_hosts_is_refused() {
        for (name, alike) in [
            ("LR", "lr"),
            ("Loss/Train", "loss/train"),
            ("loss//train", "loss/train"),
            ("/loss/train", "loss/train"),
            ("loss\\train", "loss/train"),
            ("loss∕train", "loss/train"),
            ("lоss/train", "loss/train"),
            ("ｌｒ", "lr"),
            ("grad-norm", "grad_norm"),
            ("tokens per second", "tokens_per_second"),
            ("LOSS/EVAL", "loss/eval"),
            ("System/cpu_percent", "system/"),
            ("SYSTEM//gpu", "system/"),
            ("ѕystem/x", "system/"),
            ("Plugin/a/calls", "plugin/"),
        ] {
            let fault = metric_name_fault(name).expect(name);
            let expected = format!("looks like {alike}, a name of the host's own");
            assert!(fault.ends_with(&expected), "{name}: {fault}");
        }
    }

    #[test]
    fn what_cannot_be_seen_is_refused() {
        for name in [
            " lr",
            "lr ",
            "a  b",
            "a\tb",
            "a\u{a0}b",
            "a\nb",
            "a\u{7f}",
            "a\u{200b}b",
            "\u{feff}a",
            "a\u{202e}b",
            "a\u{ad}b",
            "\u{3000}a",
            "a\u{2028}b",
        ] {
            let fault = metric_name_fault(name).expect(name);
            assert!(fault.contains("not shown"), "{name:?}: {fault}");
        }
        assert_eq!(
            metric_name_fault("").as_deref(),
            Some("it gives a value an empty name")
        );
        let long = "x".repeat(LONGEST_METRIC_NAME + 1);
        assert!(metric_name_fault(&long).is_some_and(|fault| fault.contains("201 bytes")));
    }
}
