//! The rules for the names of the values that plugins return.

/// The metrics that the host itself measures. The list does not contain the host's metrics whose names begin
/// with one of the [`HOST_PREFIXES`].
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

/// The prefixes of the host's other metrics: the cost of plugins, the state of the machine, the losses of simple
/// baseline models, and the speed of each rank.
pub const HOST_PREFIXES: [&str; 4] = ["plugin/", "system/", "baseline/", "rank/"];

/// The host computes this metric only if no plugin returns a value of exactly this name.
pub const EVAL_LOSS: &str = "loss/eval";

/// Maximum length of a value's name, in bytes.
pub const LONGEST_METRIC_NAME: usize = 200;

/// Returns why a plugin must not use this name for a value, or `None` if the name is allowed. Names of the
/// host's metrics are rejected, because the plugin's values would mix with the host's. Also rejected are
/// names that a reader could mistake for a name of the host, and names that look the same as another name.
pub fn metric_name_fault(name: &str) -> Option<String> {
    let called = || format!("the value name {name:?}");
    if name.is_empty() {
        return Some("a value has an empty name".to_owned());
    }
    if name.len() > LONGEST_METRIC_NAME {
        let bytes = name.len();
        return Some(format!(
            "the name of a value has {bytes} bytes, more than {LONGEST_METRIC_NAME}"
        ));
    }
    if HOST_METRICS.contains(&name) || HOST_PREFIXES.iter().any(|start| name.starts_with(start)) {
        return Some(format!("{} is reserved for the host", called()));
    }
    if name.contains(|c: char| c.is_control() || is_invisible(c)) {
        return Some(format!("{} contains invisible characters", called()));
    }
    let is_odd_space = |c: char| c.is_whitespace() && c != ' ';
    if name.trim() != name || name.contains("  ") || name.contains(is_odd_space) {
        return Some(format!("{} contains invisible white space", called()));
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
        "{} is too similar to {alike}, which is reserved for the host",
        called()
    ))
}

/// Returns whether a character has no width or changes how other characters are displayed.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fffc}' | '\u{e0000}'..='\u{e0fff}')
}

/// Converts the name to a form that is the same for all names that look alike. It unifies case, separators,
/// kinds of slashes, and letters of other scripts that look like Latin letters.
fn plain(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    for c in name.chars().flat_map(char::to_lowercase) {
        let c = match c {
            '\u{ff01}'..='\u{ff5e}' => {
                // The full-width forms have the same order as the ASCII characters.
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
        // `İ` in lower case is an `i` with this combining dot, which is dropped.
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
    fn ordinary_names_are_allowed() {
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
    fn names_of_the_host_are_reserved() {
        let below = HOST_PREFIXES.map(|start| format!("{start}x"));
        let names = HOST_METRICS
            .into_iter()
            .chain(below.iter().map(String::as_str));
        for name in names {
            let fault = metric_name_fault(name).expect(name);
            let expected = format!("the value name {name:?} is reserved for the host");
            assert_eq!(fault, expected);
        }
    }

    #[test]
    fn names_that_look_like_the_hosts_are_rejected() {
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
            let expected = format!("is too similar to {alike}, which is reserved for the host");
            assert!(fault.ends_with(&expected), "{name}: {fault}");
        }
    }

    #[test]
    fn invisible_characters_are_rejected() {
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
            assert!(fault.contains("invisible"), "{name:?}: {fault}");
        }
        assert_eq!(
            metric_name_fault("").as_deref(),
            Some("a value has an empty name")
        );
        let long = "x".repeat(LONGEST_METRIC_NAME + 1);
        assert!(metric_name_fault(&long).is_some_and(|fault| fault.contains("201 bytes")));
    }
}
