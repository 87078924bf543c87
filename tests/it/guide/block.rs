/// What a reader does with a block of the guide, as its language and the paragraph before it say:
///
/// - `sh` is run. `console` has commands behind `$ `, and what they print.
/// - Anything else is a file, or a part of one. Behind "`PATH`:" it is the new content of that file,
///   behind "From `PATH`:" the file has these lines.
/// - Commands behind a paragraph that speaks of another terminal run while those before still do.
#[derive(Debug)]
pub(super) struct Block {
    /// Where it begins in the guide.
    pub(super) line: usize,
    pub(super) deed: Deed,
}

#[derive(Debug, PartialEq)]
pub(super) enum Deed {
    Run {
        commands: Vec<Shown>,
        /// While those of the block before still run.
        beside: bool,
    },
    Write {
        path: String,
        text: String,
    },
    Find {
        path: String,
        text: String,
    },
}

/// A command, or several, and what they print if the guide shows it.
#[derive(Debug, PartialEq)]
pub(super) struct Shown {
    pub(super) command: String,
    pub(super) prints: Option<Vec<String>>,
}

/// The blocks of the guide, in order.
///
/// # Panics
/// One is nothing that a reader would know what to do with.
pub(super) fn blocks(guide: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = guide.lines().enumerate();
    let mut paragraph = String::new();
    while let Some((at, line)) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            if line.is_empty() && !paragraph.ends_with('\n') {
                paragraph.push('\n');
            } else if !line.is_empty() {
                if paragraph.ends_with('\n') {
                    paragraph.clear();
                }
                paragraph.push(' ');
                paragraph.push_str(line);
            }
            continue;
        };
        let text: Vec<&str> = lines
            .by_ref()
            .map(|(_, line)| line)
            .take_while(|line| *line != "```")
            .collect();
        let line = at + 1;
        let deed = deed(language, paragraph.trim(), &text)
            .unwrap_or_else(|why| panic!("plugins/README.md:{line}: {why}"));
        blocks.push(Block { line, deed });
        paragraph.clear();
    }
    blocks
}

fn deed(language: &str, paragraph: &str, text: &[&str]) -> Result<Deed, String> {
    let beside = paragraph.contains("another terminal");
    match language {
        "sh" => Ok(Deed::Run {
            commands: vec![Shown {
                command: text.join("\n"),
                prints: None,
            }],
            beside,
        }),
        "console" => Ok(Deed::Run {
            commands: shown(text)?,
            beside,
        }),
        "rust" | "c" | "cpp" | "toml" | "json" => {
            let path = paragraph
                .strip_suffix("`:")
                .and_then(|before| before.rsplit_once('`'));
            let Some((before, path)) = path else {
                return Err(format!(
                    "no file is named before a block of {language}: end the paragraph in \
                     \"`PATH`:\" or \"From `PATH`:\""
                ));
            };
            let (path, text) = (path.to_owned(), text.join("\n") + "\n");
            Ok(match before.trim_end().to_lowercase().ends_with("from") {
                true => Deed::Find { path, text },
                false => Deed::Write { path, text },
            })
        }
        _ => Err(format!(
            "nobody knows what to do with a block of {language:?}"
        )),
    }
}

/// Commands of a `console` block and what each prints. A command goes on behind a backslash.
fn shown(text: &[&str]) -> Result<Vec<Shown>, String> {
    let mut all: Vec<Shown> = Vec::new();
    for line in text {
        if let Some(command) = line.strip_prefix("$ ") {
            all.push(Shown {
                command: command.to_owned(),
                prints: Some(Vec::new()),
            });
            continue;
        }
        let Some(Shown { command, prints }) = all.last_mut() else {
            return Err("a console begins with a command behind $".to_owned());
        };
        let prints = prints.get_or_insert_default();
        if command.ends_with('\\') && prints.is_empty() {
            command.push('\n');
            command.push_str(line);
        } else {
            prints.push((*line).to_owned());
        }
    }
    Ok(all)
}

/// Whether the lines were printed: `…` stands for anything within a line and, alone, for any lines.
/// How wide a gap between words is does not matter.
pub(super) fn is_printed(expected: &[String], printed: &[&str]) -> bool {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let expected: Vec<String> = expected.iter().map(|line| words(line)).collect();
    let printed: Vec<String> = printed.iter().map(|line| words(line)).collect();
    let parts: Vec<&[String]> = expected.split(|line| line == "…").collect();
    let is_at = |part: &[String], at: usize| {
        let lines = printed.get(at..at + part.len());
        lines.is_some_and(|lines| {
            part.iter()
                .zip(lines)
                .all(|(line, text)| is_like(line, text))
        })
    };
    fits_in_order(&parts, printed.len(), <[String]>::len, is_at)
}

fn is_like(pattern: &str, text: &str) -> bool {
    let parts: Vec<&str> = pattern.split('…').collect();
    let is_at = |part: &str, at: usize| text.as_bytes()[at..].starts_with(part.as_bytes());
    fits_in_order(&parts, text.len(), str::len, is_at)
}

/// Whether the parts stand in something of this length in their order, with anything between them, the
/// first at its beginning and the last at its end. Taking the first place that fits is enough.
fn fits_in_order<T: ?Sized>(
    parts: &[&T],
    len: usize,
    len_of: impl Fn(&T) -> usize,
    is_at: impl Fn(&T, usize) -> bool,
) -> bool {
    let [first, middle @ .., last] = parts else {
        // Nothing between, before or behind: it is the whole.
        return parts
            .iter()
            .all(|whole| len_of(whole) == len && is_at(whole, 0));
    };
    let mut at = len_of(first);
    if at > len || !is_at(first, 0) {
        return false;
    }
    for part in middle {
        let Some(place) = (at..=len.saturating_sub(len_of(part))).find(|&place| is_at(part, place))
        else {
            return false;
        };
        at = place + len_of(part);
    }
    at + len_of(last) <= len && is_at(last, len - len_of(last))
}

#[test]
fn a_block_is_what_its_paragraph_says() {
    let guide = "First `a`.\n\nA file,\n`x/y.c`:\n\n```c\nint x;\n```\n\nFrom\n`z.rs`:\n\n```rust\nfn z() {}\n```\n\
                 In another terminal:\n```console\n$ a \\\n  b\none\n\ntwo\n$ c\n```\n";
    let deeds: Vec<Deed> = blocks(guide).into_iter().map(|block| block.deed).collect();
    let shown = |command: &str, prints: &[&str]| Shown {
        command: command.to_owned(),
        prints: Some(prints.iter().map(|&line| line.to_owned()).collect()),
    };
    assert_eq!(
        deeds,
        [
            Deed::Write {
                path: "x/y.c".to_owned(),
                text: "int x;\n".to_owned()
            },
            Deed::Find {
                path: "z.rs".to_owned(),
                text: "fn z() {}\n".to_owned()
            },
            Deed::Run {
                commands: vec![shown("a \\\n  b", &["one", "", "two"]), shown("c", &[])],
                beside: true
            },
        ]
    );
}

#[test]
fn a_block_that_nobody_knows_is_refused() {
    for (language, paragraph) in [("", "A:"), ("python", "`a.py`:"), ("rust", "Like this:")] {
        assert!(deed(language, paragraph, &["x"]).is_err(), "{language}");
    }
    assert!(deed("console", "", &["no command"]).is_err());
}

#[test]
fn dots_stand_for_what_differs() {
    let is = |expected: &str, printed: &str| {
        let expected: Vec<String> = expected.lines().map(str::to_owned).collect();
        is_printed(&expected, &printed.lines().collect::<Vec<_>>())
    };
    assert!(is("a  … c\n…\nd", "a b c c\nx\ny\nd"));
    assert!(is("…", "") && is("…", "a\nb") && is("", ""));
    assert!(is("a\n…\nb …\n…", "a\nb 1\nb 2") && is("a…a", "aa"));
    for (expected, printed) in [
        ("a", "a\nb"),
        ("a …", "b a"),
        ("…\na", "a\nb"),
        ("a", ""),
        ("a…a", "a"),
        ("a\n…\na", "a"),
        ("…\nb\nc\n…", "b\nx\nc"),
    ] {
        assert!(!is(expected, printed), "{expected:?} {printed:?}");
    }
}
