//! Updates the model card, a README.md. Only the part between two marks is changed. The rest, including the
//! YAML at the top, belongs to the user.

use std::collections::BTreeMap;
use std::fmt::Write;

/// The mark at the beginning of the updated part. If a README has neither this mark nor `EARLIER`, the user
/// wrote it, and it is not changed.
const BEGIN: &str = "<!-- hub-git keeps the card up to date from here to the end mark; delete this line to keep your own words -->";
const END: &str = "<!-- hub-git: end -->";
/// The single mark that earlier versions wrote instead of the two marks above.
const EARLIER: &str =
    "<!-- hub-git keeps this card up to date; delete this line to keep your own words -->";

const FRONT: &str = "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n";
const TABLE: &str = "| metric | value |\n|---|---:|\n";
const CODE: &str = "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
    model = AutoModelForCausalLM.from_pretrained(\".\")\n\
    tokenizer = AutoTokenizer.from_pretrained(\".\")\n```\n";

/// Returns the README with an updated card for a checkpoint, or `None` if the README must not be changed.
pub(crate) fn update(
    readme: Option<&str>,
    run: &str,
    step: u64,
    metrics: &BTreeMap<String, f64>,
) -> Option<String> {
    let part = part(run, step, metrics);
    let Some(readme) = readme else {
        return Some(format!("{FRONT}{part}"));
    };
    if readme.contains(char::REPLACEMENT_CHARACTER) {
        // The file is not UTF-8, so some of its bytes are lost in `readme`.
        return None;
    }
    let lines: Vec<&str> = readme.split_inclusive('\n').collect();
    let is = |line: &str, mark: &str| line.trim() == mark;
    let begin = lines
        .iter()
        .position(|line| is(line, BEGIN) || is(line, EARLIER))?;
    let length = lines[begin..].iter().position(|line| is(line, END));
    let (inside, after) = match length {
        Some(length) => {
            let end = begin + length;
            (&lines[begin + 1..end], &lines[end + 1..])
        }
        None => (&lines[begin + 1..], &[][..]),
    };
    let inside = inside.concat().replace("\r\n", "\n");
    let mut middle = part;
    let theirs = without_ours(&inside, run);
    if !theirs.is_empty() {
        let _ = write!(middle, "\n{theirs}\n");
    }
    if lines[begin].ends_with("\r\n") {
        middle = middle.replace('\n', "\r\n");
    }
    let before = lines[..begin].concat();
    Some(format!("{before}{middle}{}", after.concat()))
}

/// Returns the new part, with its marks.
fn part(run: &str, step: u64, metrics: &BTreeMap<String, f64>) -> String {
    let mut part = format!("{BEGIN}\n\n{}\n{}", heading(run), step_line(step));
    if !metrics.is_empty() {
        let _ = write!(part, "\n{TABLE}");
        for (name, value) in metrics {
            let name = name.replace('|', "\\|").replace('\n', " ");
            let _ = writeln!(part, "| {name} | {} |", number(*value));
        }
    }
    let _ = write!(part, "\n{CODE}{END}\n");
    part
}

fn heading(run: &str) -> String {
    format!("# {run}\n")
}

fn step_line(step: impl std::fmt::Display) -> String {
    format!("Checkpoint of optimizer step {step}.\n")
}

/// Returns the text that the user wrote between the marks. This text must be kept.
fn without_ours(inside: &str, run: &str) -> String {
    let mut left = inside.replacen(CODE, "", 1).replacen(&heading(run), "", 1);
    if let Some(at) = left.find(TABLE) {
        let rows = left[at..].split_inclusive('\n');
        let table = rows.take_while(|row| row.starts_with('|'));
        let length = table.map(str::len).sum::<usize>();
        left.replace_range(at..at + length, "");
    }
    let is_step = |line: &&str| {
        let number = line
            .trim_end()
            .strip_prefix(step_line("").trim_end_matches(".\n"));
        let number = number.and_then(|number| number.strip_suffix('.'));
        number.is_some_and(|number| number.parse::<u64>().is_ok())
    };
    let lines = left.split_inclusive('\n').filter(|line| !is_step(line));
    lines.collect::<String>().trim_matches('\n').to_owned()
}

fn number(value: f64) -> String {
    if value.is_finite() {
        let digits = format!("{value:.6}");
        let digits = digits.trim_end_matches('0').trim_end_matches('.');
        match digits {
            // The value is too small for six decimal places.
            "0" | "-0" if value != 0.0 => format!("{value:e}"),
            digits => digits.to_owned(),
        }
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(loss: f64) -> BTreeMap<String, f64> {
        [("loss/eval".to_owned(), loss)].into()
    }

    /// Edits the card of step 100, and returns the card after the next checkpoint.
    fn edited(edit: impl Fn(&str) -> String) -> String {
        let card = update(None, "demo", 100, &metrics(1.5)).expect("a card");
        let card = edit(&card);
        let next = update(Some(&card), "demo", 200, &metrics(1.25)).expect("ours");
        // A second update changes nothing.
        assert_eq!(
            update(Some(&next), "demo", 200, &metrics(1.25)),
            Some(next.clone())
        );
        next
    }

    #[test]
    fn the_card_shows_the_metrics() {
        let metrics = [
            ("loss/eval", 1.5),
            ("perplexity", f64::INFINITY),
            ("lr", 5e-9),
        ];
        let metrics = metrics.map(|(name, value)| (name.to_owned(), value)).into();
        let card = update(None, "demo", 100, &metrics).expect("a card");
        for line in [
            "# demo",
            "| loss/eval | 1.5 |",
            "| perplexity | inf |",
            "| lr | 5e-9 |",
        ] {
            assert!(card.lines().any(|there| there == line), "{line}\n{card}");
        }
        assert_eq!(update(Some("# My model\n"), "demo", 100, &metrics), None);
        assert_eq!(update(Some(""), "demo", 100, &metrics), None);
    }

    #[test]
    fn an_unedited_card_is_replaced() {
        let next = update(None, "demo", 200, &metrics(1.25)).expect("a card");
        assert_eq!(edited(str::to_owned), next);
    }

    #[test]
    fn text_outside_the_marks_is_kept() {
        let next = edited(|card| {
            let card = card.replace("---\nlibrary", "---\nlicense: mit\ntags:\n- code\nlibrary");
            card.replace(BEGIN, &format!("Words before.\n\n{BEGIN}"))
                + "\n## Limits\n\nNone | known.\n"
        });
        let plain = update(None, "demo", 200, &metrics(1.25)).expect("a card");
        let part = plain.strip_prefix(FRONT).expect("the part");
        assert_eq!(
            next,
            format!(
                "---\nlicense: mit\ntags:\n- code\nlibrary_name: transformers\n\
                 pipeline_tag: text-generation\n---\nWords before.\n\n{part}\n## Limits\n\nNone | known.\n"
            )
        );
        // A card without YAML, and without a newline at the end.
        let next = edited(|card| card.replace(FRONT, "") + "The end");
        assert_eq!(next, format!("{part}The end"));
    }

    #[test]
    fn text_between_the_marks_is_moved_after_them() {
        let next = edited(|card| {
            card.replace(".\n\n| metric", ".\n\nTrained on *my* code.\n\n| metric")
                .replace(
                    "```\n<!--",
                    "```\n\n## Limits\n\n| a | b |\n|---|---|\n<!--",
                )
        });
        let plain = update(None, "demo", 200, &metrics(1.25)).expect("a card");
        let theirs = next.strip_prefix(&plain).expect("the part comes first");
        assert!(theirs.starts_with("\nTrained on *my* code.\n"), "{theirs}");
        assert!(
            theirs.ends_with("\n## Limits\n\n| a | b |\n|---|---|\n"),
            "{theirs}"
        );
        // The user's text is moved behind the card even if the user deleted the end mark.
        let next = edited(|card| card.replace(&format!("{END}\n"), "\nMine.\n"));
        assert_eq!(next, format!("{plain}\nMine.\n"));
    }

    #[test]
    fn a_card_of_an_earlier_version_is_updated() {
        let earlier = format!(
            "---\nlibrary_name: transformers\nlicense: mit\n---\n{EARLIER}\n\n# demo\n\n\
             Checkpoint of optimizer step 100.\n\n{TABLE}| loss/eval | 1.5 |\n\n{CODE}\nMine.\n"
        );
        let next = update(Some(&earlier), "demo", 200, &metrics(1.25)).expect("ours");
        let part = part("demo", 200, &metrics(1.25));
        assert_eq!(
            next,
            format!("---\nlibrary_name: transformers\nlicense: mit\n---\n{part}\nMine.\n")
        );
    }

    #[test]
    fn line_endings_and_other_encodings_are_kept() {
        let next = edited(|card| (card.to_owned() + "Mine.\n").replace('\n', "\r\n"));
        assert_eq!(next.matches('\n').count(), next.matches("\r\n").count());
        assert!(
            next.contains("step 200.\r\n") && next.ends_with("Mine.\r\n"),
            "{next}"
        );
        let other = format!("{BEGIN}\nna\u{fffd}ve\n{END}\n");
        assert_eq!(update(Some(&other), "demo", 1, &BTreeMap::new()), None);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [(0.0, "0"), (2.0, "2"), (-1.25, "-1.25"), (1e6, "1000000")] {
            assert_eq!(number(value), text);
        }
    }
}
