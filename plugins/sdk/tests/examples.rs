//! Checks that every public item of the SDK has an example: either its own, or an example of its type that
//! contains the item's name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, iter};

use syn::{Attribute, Expr, ImplItem, Item, Lit, Meta, TraitItem, Visibility};

/// A public item: its path and its documentation.
struct PublicItem {
    /// The path, such as `fake::Batch::with`.
    path: String,
    /// The enclosing item.
    parent: Option<String>,
    docs: String,
}

#[test]
fn every_public_item_has_an_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut items = Vec::new();
    for file in rust_files(&root) {
        let text = fs::read_to_string(&file).expect("a source");
        let source = syn::parse_file(&text).expect("Rust");
        let module = file
            .parent()
            .expect("a folder")
            .strip_prefix(&root)
            .expect("below");
        public_items(&source.items, &module.display().to_string(), &mut items);
    }
    let by_path: BTreeMap<&str, &PublicItem> =
        items.iter().map(|item| (&*item.path, item)).collect();
    assert!(by_path.contains_key("::Metric::update") && by_path.contains_key("fake::Batch::with"));
    let without: Vec<&str> = items
        .iter()
        // Excludes the items of hidden types.
        .filter(|item| {
            item.parent
                .as_deref()
                .is_none_or(|path| by_path.contains_key(path))
        })
        .filter(|item| {
            let parent = item.parent.as_deref().and_then(|path| by_path.get(path));
            let name = item.path.rsplit("::").next().expect("a name");
            let is_shown = parent.is_some_and(|parent| names(&example(&parent.docs), name));
            example(&item.docs).is_empty() && !is_shown
        })
        .map(|item| &*item.path)
        .collect();
    assert!(without.is_empty(), "without an example: {without:#?}");
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let files = |path: PathBuf| match path.is_dir() {
        true => rust_files(&path),
        false => vec![path],
    };
    paths.flat_map(files).collect()
}

/// Collects the items that are public and not hidden. The path of an item contains the folder's module, but
/// not the file's module. The reason is that the files' modules are private, and their items are re-exported.
fn public_items(items: &[Item], module: &str, found: &mut Vec<PublicItem>) {
    let mut add = |visibility: Option<&Visibility>, attributes: &[Attribute], name, parent| {
        let is_public = visibility.is_none_or(|v| matches!(v, Visibility::Public(_)));
        if is_public && !is_hidden(attributes) {
            found.push(PublicItem {
                path: match &parent {
                    None => format!("{module}::{name}"),
                    Some(parent) => format!("{parent}::{name}"),
                },
                parent,
                docs: docs(attributes),
            });
        }
    };
    for item in items {
        match item {
            Item::Const(it) => add(Some(&it.vis), &it.attrs, it.ident.to_string(), None),
            Item::Enum(it) => add(Some(&it.vis), &it.attrs, it.ident.to_string(), None),
            Item::Fn(it) => add(Some(&it.vis), &it.attrs, it.sig.ident.to_string(), None),
            Item::Struct(it) => add(Some(&it.vis), &it.attrs, it.ident.to_string(), None),
            Item::Type(it) => add(Some(&it.vis), &it.attrs, it.ident.to_string(), None),
            Item::Macro(it) if it.attrs.iter().any(|a| a.path().is_ident("macro_export")) => {
                let name = it.ident.as_ref().expect("a macro's name").to_string();
                add(None, &it.attrs, name, None);
            }
            Item::Trait(it) => {
                add(Some(&it.vis), &it.attrs, it.ident.to_string(), None);
                if !matches!(it.vis, Visibility::Public(_)) || is_hidden(&it.attrs) {
                    continue;
                }
                let parent = || Some(format!("{module}::{}", it.ident));
                for item in &it.items {
                    let (attributes, name) = match item {
                        TraitItem::Const(it) => (&it.attrs, &it.ident),
                        TraitItem::Fn(it) => (&it.attrs, &it.sig.ident),
                        TraitItem::Type(it) => (&it.attrs, &it.ident),
                        _ => continue,
                    };
                    add(None, attributes, name.to_string(), parent());
                }
            }
            // The items of a trait's implementation are documented in the trait.
            Item::Impl(it) if it.trait_.is_none() => {
                let syn::Type::Path(of) = &*it.self_ty else {
                    continue;
                };
                let name = &of.path.segments.last().expect("a name").ident;
                for item in &it.items {
                    if let ImplItem::Fn(it) = item {
                        let parent = Some(format!("{module}::{name}"));
                        add(Some(&it.vis), &it.attrs, it.sig.ident.to_string(), parent);
                    }
                }
            }
            _ => {}
        }
    }
}

fn is_hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let hidden = |list: &syn::MetaList| list.tokens.to_string() == "hidden";
        attribute.path().is_ident("doc") && attribute.meta.require_list().is_ok_and(hidden)
    })
}

fn docs(attributes: &[Attribute]) -> String {
    let line = |attribute: &Attribute| {
        let Meta::NameValue(doc) = &attribute.meta else {
            return None;
        };
        let Expr::Lit(text) = &doc.value else {
            return None;
        };
        match &text.lit {
            Lit::Str(text) if doc.path.is_ident("doc") => Some(text.value() + "\n"),
            _ => None,
        }
    };
    attributes.iter().filter_map(line).collect()
}

/// Returns the visible lines of the examples that run as tests.
fn example(docs: &str) -> String {
    let mut lines = docs.lines().map(str::trim);
    let mut shown = String::new();
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            continue;
        };
        let is_run = ["", "rust", "standalone_crate"].contains(&language);
        let block = iter::from_fn(|| lines.next().filter(|line| !line.starts_with("```")));
        for line in block {
            if is_run && !line.starts_with("# ") {
                shown.push_str(line);
                shown.push('\n');
            }
        }
    }
    shown
}

/// Whether the code contains the name as a whole word.
fn names(code: &str, name: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|word| word == name)
}

#[test]
fn an_example_is_code_that_runs_and_is_visible() {
    let docs = "It puts.\n```text\nput();\n```\n```\n# hide();\nput_all(1);\n```\n";
    assert_eq!(example(docs), "put_all(1);\n");
    assert!(names(&example(docs), "put_all") && !names(&example(docs), "put"));
}
