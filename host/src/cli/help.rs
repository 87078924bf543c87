//! `host help TOPIC`: documentation pages that do not belong to a command.

use std::ffi::OsString;

/// Width of the text in columns.
const WIDTH: usize = 100;

/// The topics. Each has a name, a page, and the heading at which the text starts.
const TOPICS: [(&str, &str, &str); 2] = [
    (
        "exit-codes",
        include_str!("../../docs/errors.md"),
        "# Errors and exit codes",
    ),
    (
        "metrics",
        include_str!("../../docs/evaluation.md"),
        "## Metrics of the host",
    ),
];

/// Returns the page of the topic as text if the arguments are `host help TOPIC`.
pub(super) fn topic(args: &[OsString]) -> Option<String> {
    let [_, help, topic] = args else { return None };
    let (_, page, heading) = TOPICS.iter().find(|(name, ..)| topic == name)?;
    let start = page.find(heading)?;
    (help == "help").then(|| plain(&page[start..]))
}

/// Converts a page to plain text: wraps paragraphs, aligns tables, and leaves out blocks of code.
fn plain(page: &str) -> String {
    let mut text = String::new();
    let mut paragraph = String::new();
    let mut table: Vec<Vec<String>> = Vec::new();
    let mut is_code = false;
    for line in page.lines().chain([""]) {
        if let Some(cells) = cells(line) {
            table.push(cells);
            continue;
        }
        text.push_str(&aligned(&std::mem::take(&mut table)));
        if line.starts_with("```") {
            is_code = !is_code;
        } else if line.is_empty() && !is_code {
            text.push_str(&wrapped(&std::mem::take(&mut paragraph), ""));
            text.push('\n');
        } else if !is_code {
            paragraph.push_str(&inline(line.trim_start_matches('#').trim_start()));
            paragraph.push(' ');
        }
    }
    text.trim_end().to_owned() + "\n"
}

/// Wraps a text that follows a prefix. Indents the further lines by the length of the prefix.
fn wrapped(text: &str, prefix: &str) -> String {
    let indent = " ".repeat(prefix.chars().count());
    let mut lines = String::new();
    let mut line = prefix.to_owned();
    for word in text.split_whitespace() {
        if line.chars().count() + word.chars().count() > WIDTH && !line.trim().is_empty() {
            lines.push_str(line.trim_end());
            lines.push('\n');
            line.clone_from(&indent);
        }
        line.push_str(word);
        line.push(' ');
    }
    if !line.trim().is_empty() {
        lines.push_str(line.trim_end());
        lines.push('\n');
    }
    lines
}

/// Returns the cells of a table row. The separator row below the head has no cells.
fn cells(line: &str) -> Option<Vec<String>> {
    let row = line.strip_prefix('|')?.strip_suffix('|')?;
    let is_rule = row.chars().all(|c| c == '-' || c == '|');
    let cells = row.split('|').map(|cell| inline(cell.trim()));
    Some(if is_rule { Vec::new() } else { cells.collect() })
}

/// Returns the text without the targets of links.
fn inline(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once('[') {
        let Some((name, (_, after))) = link
            .split_once("](")
            .and_then(|(name, target)| Some((name, target.split_once(')')?)))
        else {
            break;
        };
        plain.push_str(before);
        plain.push_str(name);
        rest = after;
    }
    plain + rest
}

/// Formats a table and wraps its last column.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows.iter().filter(|row| !row.is_empty()) {
        let mut line = String::from("  ");
        for (cell, &width) in row.iter().zip(&widths).take(columns - 1) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(&wrapped(row.last().map_or("", String::as_str), &line));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_topic_is_a_page_of_plain_text() {
        for (name, ..) in TOPICS {
            let args = ["host", "help", name].map(OsString::from);
            let text = topic(&args).expect(name);
            assert!(text.lines().count() > 10, "{text}");
            assert!(!text.contains(['|', '#']), "{text}");
            assert!(text.contains('`') && !text.contains("```"), "{text}");
            for line in text.lines() {
                assert!(line.chars().count() <= WIDTH, "{line}");
            }
        }
    }

    #[test]
    fn other_arguments_have_no_topic() {
        for args in [
            &["host", "help"][..],
            &["host", "help", "run"],
            &["host", "metrics"],
        ] {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            assert_eq!(topic(&args), None);
        }
    }

    #[test]
    fn a_table_is_aligned() {
        assert_eq!(
            plain(
                "# A `b`\n\n| x | y |\n|---|---|\n| `aa` | see [c](d.md) |\n\nEnd.\n\n```sh\nls\n```\n"
            ),
            "A `b`\n\n  x     y\n  `aa`  see c\n\nEnd.\n"
        );
    }
}
