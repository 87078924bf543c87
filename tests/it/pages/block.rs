/// A code block of a page. Its language and the paragraph before it determine what the reader does:
///
/// - `sh` is run. `console` contains commands after `$ ` and their output.
/// - Any other block is a file or a part of a file. If the paragraph ends with "`PATH`:", the block is the
///   new content of the file; if it ends with "From `PATH`:", the file must contain the block's lines.
/// - If the paragraph mentions another terminal, the commands are run while the previous commands still run.
#[derive(Debug)]
pub(super) struct Block {
    /// The page, and the line at which the block begins: `plugins/README.md:12`.
    pub(super) place: String,
    pub(super) deed: Deed,
}

#[derive(Debug, PartialEq)]
pub(super) enum Deed {
    Run {
        commands: Vec<Shown>,
        /// Whether the commands of the previous block are still running.
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

/// One or more commands, and their output if the page shows it.
#[derive(Debug, PartialEq)]
pub(super) struct Shown {
    pub(super) command: String,
    pub(super) prints: Option<Vec<String>>,
}

/// Programs that `make test-peers` installs. Blocks with a command of one of these programs are run only by
/// tests/peers/pages.py.
const PEERS: [&str; 3] = ["grpcurl", "tensorboard", "python3"];

/// Returns the blocks of a page in order. Omits blocks that need one of the programs in `PEERS`.
///
/// # Panics
/// Panics if it is not clear what a reader does with a block.
pub(super) fn blocks(page: &str, text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().enumerate();
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
        let needs_peer = |line: &&str| PEERS.iter().any(|name| line.starts_with(name));
        if language == "sh" && text.iter().any(needs_peer) {
            paragraph.clear();
            continue;
        }
        let place = format!("{page}:{}", at + 1);
        let deed =
            deed(language, paragraph.trim(), &text).unwrap_or_else(|why| panic!("{place}: {why}"));
        blocks.push(Block { place, deed });
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
        _ => Err(format!("unknown language of a block: {language:?}")),
    }
}

/// Returns the commands of a `console` block and their output. A command continues after a backslash.
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
            return Err("a console block begins with a command after $".to_owned());
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

/// Whether the printed lines match the expected lines. An expected line that is only `…` matches any number
/// of lines. Elsewhere, `…` matches any text within its line. The number of spaces between words does not
/// matter.
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

/// Whether the parts occur in this order in a sequence of `len` elements. The first part must be at the
/// beginning and the last part at the end; anything can be between the parts. A greedy search for the first
/// position of each part is sufficient.
fn fits_in_order<T: ?Sized>(
    parts: &[&T],
    len: usize,
    len_of: impl Fn(&T) -> usize,
    is_at: impl Fn(&T, usize) -> bool,
) -> bool {
    let [first, middle @ .., last] = parts else {
        // A single part must be the whole sequence.
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
fn a_block_is_read_as_its_paragraph_says() {
    let guide = "First `a`.\n\nA file,\n`x/y.c`:\n\n```c\nint x;\n```\n\nFrom\n`z.rs`:\n\n```rust\nfn z() {}\n```\n\
                 In another terminal:\n```console\n$ a \\\n  b\none\n\ntwo\n$ c\n```\n";
    let deeds: Vec<Deed> = blocks("page.md", guide)
        .into_iter()
        .map(|block| block.deed)
        .collect();
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
fn an_unknown_block_is_an_error() {
    for (language, paragraph) in [("", "A:"), ("python", "`a.py`:"), ("rust", "Like this:")] {
        assert!(deed(language, paragraph, &["x"]).is_err(), "{language}");
    }
    assert!(deed("console", "", &["no command"]).is_err());
}

#[test]
fn an_ellipsis_matches_anything() {
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
