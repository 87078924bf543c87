//! Warnings about plugins that are not what they seem, and hints that name a plugin.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use host_core::EventBody;

use crate::support::{Fixture, Home, built, events_of};

fn warnings(home: &Home, run: &str) -> Vec<String> {
    let warning = |event: host_core::Event| match event.body {
        EventBody::Warning { message } => Some(message),
        _ => None,
    };
    let events = events_of(&home.run_dir(run)).into_iter();
    events.filter_map(warning).collect()
}

#[test]
fn a_plugin_that_shadows_a_shipped_one_is_named_with_its_path() {
    let home = Home::new();
    let folder = home.path("mine");
    fs::create_dir(&folder).expect("made");
    let copy = folder.join("libcopy.so");
    fs::copy(built("libweight_decay.so"), &copy).expect("copied");
    let env = [("HOST_PLUGIN_PATH", folder.to_str().expect("UTF-8"))];
    // The plugin is used although the run does not name it.
    let output = home.host_with(&env, &["run", "tiny.toml", "--name", "shadowed"]);
    let output = output.succeeded();
    let (copy, shipped) = (copy.display(), built("libweight_decay.so"));
    let message = format!(
        "plugin weight-decay is {copy}, not the plugin shipped with the host: {}",
        shipped.display()
    );
    assert!(
        output.stderr.contains(&format!("warning: {message}")),
        "{output}"
    );
    assert_eq!(warnings(&home, "shadowed"), [message]);
    let file = fs::read_to_string(home.run_dir("shadowed").join("run.toml")).expect("run.toml");
    assert!(file.contains(&format!("path = \"{copy}\"")), "{file}");
    assert!(
        file.contains(&format!("shadows = \"{}\"", shipped.display())),
        "{file}"
    );

    home.train("plain", &[]).succeeded();
    assert_eq!(warnings(&home, "plain"), [""; 0]);
}

#[test]
fn a_plugin_that_any_user_can_change_causes_a_warning() {
    let home = Home::new();
    let folder = home.path("open");
    fs::create_dir(&folder).expect("made");
    let library = Fixture::metric("open").build(&folder);
    fs::set_permissions(&library, Permissions::from_mode(0o666)).expect("set");
    fs::set_permissions(&folder, Permissions::from_mode(0o777)).expect("set");
    let path = library.to_str().expect("UTF-8");
    home.train("open", &["--plugin", path]).succeeded();
    let says = |what: &str, path: &str| {
        format!(
            "any user of this machine can change plugin open: its {what} is world-writable: {path}"
        )
    };
    let real = fs::canonicalize(&library)
        .expect("there")
        .display()
        .to_string();
    let folder = folder.display().to_string();
    assert_eq!(
        warnings(&home, "open"),
        [says("file", &real), says("folder", &folder)]
    );
}

#[test]
fn two_sinks_with_the_same_destination_are_both_named() {
    let home = Home::new();
    let kept = home.text_path("kept");
    let one = format!("local-disk:dir={kept},keep=1");
    let other = format!("local-disk:dir={kept}/,keep=2");
    home.train("twice", &["--plugin", &one, "--plugin", &other]);
    let expected =
        format!("the sinks local-disk and local-disk-2 deliver to the same place: dir = {kept:?}");
    assert_eq!(warnings(&home, "twice")[0], expected);
}

/// Returns the arguments of the command in a hint. The command is between backticks.
fn command(hint: &str) -> Vec<String> {
    let text = hint.split('`').nth(1).expect("a command");
    let words = text.split(' ').skip(1);
    words
        .map(|word| word.trim_matches('\'').to_owned())
        .collect()
}

/// The command in each hint works for a plugin that was given by its path.
#[test]
fn a_hint_names_a_plugin_that_was_given_by_its_path() {
    let home = Home::new();
    let schema = serde_json::json!({
        "type": "object", "additionalProperties": false,
        "properties": { "how": { "type": "string" }, "level": { "type": "integer" } },
    });
    let library = Fixture::metric("by-path").settings(schema);
    let library = library.build(&home.path("")).display().to_string();
    for (settings, code) in [
        ("level=x", 2),
        ("how=create", 3),
        ("how=update", 3),
        ("how=create,mode=process", 3),
    ] {
        let plugin = format!("{library}:{settings}");
        let output = home.train("hinted", &["--plugin", &plugin]);
        let (error, hint) = output.failed_with(code);
        let command = command(hint);
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        assert_eq!(words, ["plugin", "info", &library], "{error}: {hint}");
        let info = home.host(&words).succeeded();
        assert!(info.stdout.contains("by-path"), "{info}");
    }
}
