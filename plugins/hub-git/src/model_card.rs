use std::collections::BTreeMap;
use std::fmt::Write;

/// Says that the card is ours to rewrite. A README without it is somebody's work and stays.
const MARKER: &str =
    "<!-- hub-git keeps this card up to date; delete this line to keep your own words -->";

/// Whether the README was written here and not taken over by somebody since.
pub(crate) fn is_ours(readme: &str) -> bool {
    readme.lines().any(|line| line.trim() == MARKER)
}

/// The model card of a checkpoint.
pub(crate) fn write(run: &str, step: u64, metrics: &BTreeMap<String, f64>) -> String {
    let mut card = format!(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n{MARKER}\n\n\
         # {run}\n\nCheckpoint of optimizer step {step}.\n"
    );
    if !metrics.is_empty() {
        card.push_str("\n| metric | value |\n|---|---:|\n");
        for (name, value) in metrics {
            let name = name.replace('|', "\\|").replace('\n', " ");
            let _ = writeln!(card, "| {name} | {} |", number(*value));
        }
    }
    card.push_str(
        "\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
         model = AutoModelForCausalLM.from_pretrained(\".\")\n\
         tokenizer = AutoTokenizer.from_pretrained(\".\")\n```\n",
    );
    card
}

fn number(value: f64) -> String {
    if value.is_finite() {
        let digits = format!("{value:.6}");
        let digits = digits.trim_end_matches('0').trim_end_matches('.');
        match digits {
            // So small that six places show nothing of it.
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

    #[test]
    fn the_card_shows_the_metrics_and_knows_itself() {
        let metrics = [
            ("loss/eval", 1.5),
            ("perplexity", f64::INFINITY),
            ("lr", 5e-9),
        ];
        let metrics = metrics.map(|(name, value)| (name.to_owned(), value)).into();
        let card = write("demo", 100, &metrics);
        for line in [
            "# demo",
            "| loss/eval | 1.5 |",
            "| perplexity | inf |",
            "| lr | 5e-9 |",
        ] {
            assert!(card.lines().any(|there| there == line), "{line}\n{card}");
        }
        assert!(is_ours(&card));
        assert!(!is_ours("# My model\n"));
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [(0.0, "0"), (2.0, "2"), (-1.25, "-1.25"), (1e6, "1000000")] {
            assert_eq!(number(value), text);
        }
    }
}
