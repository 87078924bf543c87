//! The documentation pages: their tables of settings, their links, and their commands.

mod block;
mod guide;
mod reader;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use block::blocks;
use reader::Reader;
use serde_json::Value;

use crate::support::{built, root};

/// Returns every page, with its path relative to the root of the repository.
fn pages() -> Vec<(PathBuf, String)> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .args(["--", "*.md"])
        .current_dir(root())
        .output()
        .expect("git runs");
    let names = String::from_utf8(output.stdout).expect("names");
    let page = |name: &str| {
        let text = fs::read_to_string(root().join(name)).expect(name);
        (PathBuf::from(name), text)
    };
    names.lines().map(page).collect()
}

/// Returns the cells of a table row, without the bars and spaces around them.
fn cells(line: &str) -> Option<Vec<String>> {
    let row = line.strip_prefix('|')?.strip_suffix('|')?;
    let row = row.replace("\\|", "\u{1}");
    let cell = |cell: &str| cell.trim().replace('\u{1}', "|");
    Some(row.split('|').map(cell).collect())
}

/// Returns the parts of a cell's text that are marked as code.
fn code(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Returns the settings in a page's tables `| HEAD | default | meaning |`, each with its default.
fn settings(text: &str, head: &str) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let mut is_within = false;
    for line in text.lines() {
        let Some(cells) = cells(line) else {
            is_within = false;
            continue;
        };
        if cells[..] == [head, "default", "meaning"] {
            is_within = true;
        } else if is_within && !cells[0].starts_with("---") {
            settings.extend(code(&cells[0]).map(|name| (name.to_owned(), cells[1].clone())));
        }
    }
    settings
}

/// Returns the arguments in the help of `host run`, each with its default. The default is empty if the help
/// states none.
fn arguments() -> BTreeMap<String, String> {
    let output = Command::new(built("host"))
        .args(["run", "--help"])
        .output()
        .expect("host runs");
    let help = String::from_utf8(output.stdout).expect("text");
    let mut arguments: Vec<(String, String)> = Vec::new();
    for line in help.lines() {
        // Lines that explain an argument are indented further than its name.
        if let Some(flag) = line.strip_prefix("      --") {
            let name = flag.split([' ', '[']).next().expect("a name");
            arguments.push((name.replace('-', "_"), String::new()));
        }
        if let Some((_, text)) = arguments.last_mut() {
            text.push(' ');
            text.push_str(line.trim());
        }
    }
    let default = |(name, text): (String, String)| {
        let default = text.split_once("[default: ").map_or("", |(_, rest)| rest);
        let default = default.split(']').next().expect("a part");
        (name, default.to_owned())
    };
    arguments.into_iter().map(default).collect()
}

#[test]
fn every_argument_of_host_run_is_in_one_table_with_its_default() {
    let mut documented: BTreeMap<String, String> = BTreeMap::new();
    for (page, text) in pages() {
        for (name, default) in settings(&text, "setting") {
            let earlier = documented.insert(name.clone(), default);
            assert_eq!(earlier, None, "{name} is documented twice: {page:?}");
        }
    }
    let arguments = arguments();
    assert!(
        documented.keys().eq(arguments.keys()),
        "{documented:?} {arguments:?}"
    );
    for (name, default) in &documented {
        let helped = &arguments[name];
        match default.is_empty() {
            // If the page states no default, the help must not state a value either. It can describe in words
            // what happens without the argument.
            true => assert!(
                helped.is_empty() || helped.contains(' '),
                "{name}: {helped}"
            ),
            false => assert_eq!(default, helped, "{name}"),
        }
    }
}

/// Returns the settings in a plugin's schema, each with its default. The default is empty if the schema has
/// none.
fn schema_settings(plugin: &str) -> Vec<(String, String)> {
    let path = root()
        .join("plugins")
        .join(plugin)
        .join("config.schema.json");
    let schema = fs::read_to_string(path).expect("a schema");
    let schema: Value = serde_json::from_str(&schema).expect("JSON");
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let default = |property: &Value| match &property["default"] {
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(", "),
        value => text(value),
    };
    let properties = schema["properties"].as_object().expect("properties");
    let setting = |(name, property): (&String, &Value)| (name.clone(), default(property));
    let mut settings: Vec<_> = properties.iter().map(setting).collect();
    settings.sort();
    settings
}

#[test]
fn every_setting_of_every_plugin_is_in_a_table_with_its_default() {
    let mut count = 0;
    for entry in fs::read_dir(root().join("plugins")).expect("a folder") {
        let folder = entry.expect("an entry");
        if !folder.path().join("config.schema.json").exists() {
            continue;
        }
        count += 1;
        let plugin = folder.file_name().into_string().expect("text");
        let head = format!("setting of {plugin}");
        let mut documented: Vec<_> = pages()
            .iter()
            .flat_map(|(_, text)| settings(text, &head))
            .collect();
        documented.sort();
        assert_eq!(documented, schema_settings(&plugin), "{plugin}");
    }
    assert!(count > 4, "{count} plugins");
}

#[test]
fn the_page_of_metrics_lists_the_metrics_of_the_host() {
    let page = fs::read_to_string(root().join("host/docs/evaluation.md")).expect("a page");
    let rows = page.lines().filter_map(cells);
    let names = rows.flat_map(|cells| code(&cells[0]).map(str::to_owned).collect::<Vec<_>>());
    let documented: BTreeSet<String> = names.collect();
    for name in host_core::HOST_METRICS {
        assert!(documented.contains(name), "{name} is not documented");
    }
    for prefix in host_core::HOST_PREFIXES {
        let is_listed = documented.iter().any(|name| name.starts_with(prefix));
        assert!(is_listed, "{prefix} is not documented");
    }
}

#[test]
fn the_page_of_codeparrots_arguments_names_arguments_of_host_run() {
    let page = fs::read_to_string(root().join("host/docs/codeparrot.md")).expect("a page");
    let arguments = arguments();
    let rows: Vec<Vec<String>> = page.lines().filter_map(cells).skip(2).collect();
    assert!(rows.len() > 5, "{rows:?}");
    for row in rows {
        let [theirs, ours] = &row[..] else {
            panic!("not a pair: {row:?}");
        };
        let names = match ours.starts_with("the same") {
            true => theirs,
            false if ours.starts_with('`') => ours,
            // The cell is an explanation, not the name of an argument.
            false => continue,
        };
        for name in code(names).filter(|name| !name.contains([' ', '.'])) {
            assert!(arguments.contains_key(name), "host run has no {name}");
        }
    }
}

/// Returns the anchors of a page's headings, as GitHub generates them.
fn anchors(text: &str) -> Vec<String> {
    let mut is_code = false;
    let mut anchors = Vec::new();
    for line in text.lines() {
        is_code ^= line.starts_with("```");
        if !is_code && line.starts_with('#') {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = |c: char| (c.is_alphanumeric() || "-_ ".contains(c)).then_some(c);
            let anchor: String = heading.chars().filter_map(kept).collect();
            anchors.push(anchor.replace(' ', "-"));
        }
    }
    anchors
}

/// Returns the targets of a page's links and images. Ignores code blocks.
fn links(text: &str) -> Vec<String> {
    let prose: Vec<&str> = text.split("```").step_by(2).collect();
    prose
        .iter()
        .flat_map(|part| part.split("](").skip(1))
        .filter_map(|rest| rest.split(')').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_link_leads_to_a_file_and_every_anchor_to_a_heading() {
    let mut count = 0;
    let mut broken = Vec::new();
    for (page, text) in pages() {
        let folder = page.parent().expect("a folder");
        for link in links(&text) {
            if link.starts_with("https://") {
                continue;
            }
            count += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match path {
                "" => page.clone(),
                path => folder.join(path),
            };
            let is_found = root().join(&target).exists()
                && (anchor.is_empty()
                    || fs::read_to_string(root().join(&target))
                        .is_ok_and(|text| anchors(&text).iter().any(|known| known == anchor)));
            if !is_found {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(count > 60, "{count} links");
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_readme_leads_to_every_page() {
    let readme = fs::read_to_string(root().join("README.md")).expect("a page");
    assert!(readme.lines().count() <= 150);
    let linked = links(&readme);
    for entry in fs::read_dir(root().join("host/docs")).expect("a folder") {
        let name = entry.expect("an entry").file_name();
        let path = format!("host/docs/{}", name.to_string_lossy());
        if path.ends_with(".md") {
            assert!(linked.contains(&path), "{path} is not linked");
        }
    }
}

#[test]
fn every_command_of_the_pages_does_what_they_say() {
    let mut count = 0;
    for (page, text) in pages() {
        if page.starts_with("host/docs") {
            let blocks = blocks(&page.display().to_string(), &text);
            count += blocks.len();
            Reader::new().read(&blocks);
        }
    }
    assert!(count > 6, "{count} blocks");
}

#[test]
fn the_commands_of_the_readme_work() {
    let reader = Reader::new();
    let home = reader.home();
    let sources = root().join("host/core/src");
    let copied = Command::new("cp")
        .arg("-r")
        .args([&sources, &home.join("src")])
        .status();
    assert!(copied.expect("cp runs").success());
    let remote = home.join("my-model.git");
    let made = Command::new("git")
        .args(["init", "--quiet", "--bare"])
        .arg(&remote)
        .status();
    assert!(made.expect("git runs").success());

    let mut text = fs::read_to_string(root().join("README.md")).expect("a page");
    let at_home = |path: &str| home.join(path).display().to_string();
    // This test skips the first command, because it takes too long. It runs the other commands with a smaller
    // model and fewer steps.
    for (shown, tested) in [
        ("\nmake demo\n", "\n:\n".to_owned()),
        ("--seq-length 256", "--seq-length 64".to_owned()),
        (
            "--model demo",
            "--model tiny --device cpu --vocab-size 300".to_owned(),
        ),
        ("--max-train-steps 1000", "--max-train-steps 3".to_owned()),
        ("/tmp/checkpoints", at_home("checkpoints")),
        ("/home/me/src", at_home("src")),
        (
            "model = \"demo\"",
            "model = \"tiny\"\nvocab_size = 300\ndevice = \"cpu\"".to_owned(),
        ),
        ("seq_length = 256", "seq_length = 32".to_owned()),
        ("num_warmup_steps = 50", "num_warmup_steps = 1".to_owned()),
        ("max_train_steps = 1000", "max_train_steps = 2".to_owned()),
        ("me/my-model", at_home("my-model.git")),
    ] {
        assert_eq!(text.matches(shown).count(), 1, "{shown}");
        text = text.replace(shown, &tested);
    }
    reader.read(&blocks("README.md", &text));

    assert!(home.join("checkpoints/mine/step-000003").is_dir());
    let pushed = Command::new("git")
        .arg("-C")
        .arg(&remote)
        .args(["log", "main", "--format=%s"])
        .output();
    let pushed = String::from_utf8(pushed.expect("git runs").stdout).expect("text");
    assert!(pushed.contains("step 2"), "{pushed}");
}
