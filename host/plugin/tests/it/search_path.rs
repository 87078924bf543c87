use std::fs;

use host_core::ErrorKind;
use host_plugin::{PluginKind, SearchPath, Target};
use serde_json::json;

use crate::fixture::{Fixture, dir};

fn id(id: &str) -> Target {
    Target::Id(id.to_owned())
}

#[test]
fn the_id_comes_from_the_manifest_and_the_first_folder_counts() {
    let (first, second) = (dir(), dir());
    let search = SearchPath::new([first.path().to_owned(), second.path().to_owned()]);
    Fixture::metric("found").build_as(second.path(), "zzz.so");
    let found = search.find(&id("found")).unwrap();
    assert_eq!(found.path, second.path().join("zzz.so"));
    assert_eq!(found.manifest.kinds, [PluginKind::Metric]);
    let before = found.sha256().unwrap();
    Fixture::metric("found")
        .manifest_with("description", json!("newer"))
        .build_as(first.path(), "any.so");
    let found = search.find(&id("found")).unwrap();
    assert_eq!(found.path, first.path().join("any.so"));
    assert_ne!(found.sha256().unwrap(), before);
}

#[test]
fn a_rejected_library_is_not_skipped_for_an_older_library() {
    let (first, second) = (dir(), dir());
    let search = SearchPath::new([first.path().to_owned(), second.path().to_owned()]);
    let bad = Fixture::metric("passed-over")
        .flag("-DENTRY=host_plugin_entry_v2")
        .build(first.path());
    Fixture::metric("passed-over").build(second.path());
    let error = search.find(&id("passed-over")).unwrap_err();
    assert_eq!(
        error.message(),
        format!(
            "plugin passed-over uses ABI 2, but this host supports ABI 1: {}",
            bad.display()
        )
    );
}

#[test]
fn a_library_with_the_plugins_name_explains_why_it_is_not_the_plugin() {
    let dir = dir();
    fs::write(dir.path().join("libmy_metric.so"), "a text of twenty bytes").unwrap();
    let search = SearchPath::new([dir.path().to_owned()]);
    let error = search.find(&id("my-metric")).unwrap_err();
    assert_eq!(
        error.message(),
        format!(
            "plugin is a file without an ELF header, not a shared library: {}/libmy_metric.so",
            dir.path().display()
        )
    );
}

#[test]
fn an_unknown_id_lists_the_nearest_or_all() {
    let dir = dir();
    let search = SearchPath::new([dir.path().to_owned()]);
    let error = search.find(&id("perplexity")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(error.message(), "unknown plugin: \"perplexity\"");
    let found = |what: &str| {
        format!(
            "found {what} in {}; pass the library's path, or set HOST_PLUGIN_PATH to its folder",
            dir.path().display()
        )
    };
    assert_eq!(error.hint_text(), Some(found("nothing").as_str()));
    Fixture::metric("perplexity").build(dir.path());
    Fixture::metric("accuracy").build(dir.path());
    let error = search.find(&id("perplexty")).unwrap_err();
    assert_eq!(error.hint_text(), Some("did you mean perplexity?"));
    let error = search.find(&id("weight-decay")).unwrap_err();
    assert_eq!(
        error.hint_text(),
        Some(found("accuracy, perplexity").as_str())
    );
}

#[test]
fn the_list_contains_shadowed_and_rejected_libraries() {
    let (first, second, missing) = (dir(), dir(), dir());
    let winner = Fixture::metric("listed").build(first.path());
    let shadowed = Fixture::metric("listed").build_as(second.path(), "a.so");
    let refused = second.path().join("b.so");
    fs::write(&refused, "a text of twenty bytes").unwrap();
    fs::write(second.path().join("c.txt"), "no library").unwrap();
    let folder = second.path().join("d.so");
    fs::create_dir(&folder).unwrap();
    let search = SearchPath::new([
        first.path().to_owned(),
        missing.path().join("none"),
        second.path().to_owned(),
        first.path().to_owned(),
    ]);
    let list = search.list();
    let paths: Vec<_> = list.iter().map(|listed| listed.path.clone()).collect();
    assert_eq!(paths, [winner.clone(), shadowed, refused, folder]);
    let shadows: Vec<_> = list
        .iter()
        .map(|listed| listed.shadowed_by.clone())
        .collect();
    assert_eq!(shadows, [None, Some(winner), None, None]);
    let ids: Vec<_> = list
        .iter()
        .map(|listed| listed.outcome.as_ref().ok().map(|its| its.id.as_str()))
        .collect();
    assert_eq!(ids, [Some("listed"), Some("listed"), None, None]);
    let reasons: Vec<_> = list
        .iter()
        .filter_map(|listed| Some(listed.outcome.as_ref().err()?.message().to_owned()))
        .collect();
    let place = second.path().display();
    assert_eq!(
        reasons,
        [
            format!("plugin is a file without an ELF header, not a shared library: {place}/b.so"),
            format!("plugin is not a file: {place}/d.so"),
        ]
    );
}
