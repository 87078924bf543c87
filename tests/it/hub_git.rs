//! Pushing checkpoints to a server that is as strict as the Hub.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use test_hub::{Fault, TestHub, TestProxy, TlsDoor, WRITE_TOKEN};

use crate::support::{Home, files_of, git, sha256};

#[test]
fn a_run_killed_during_an_upload_is_delivered_once() {
    let home = Home::new();
    let hub = TestHub::start();
    let repo = hub.create_repo("user/model", &[(".gitattributes", "")]);
    let env = [("HF_ENDPOINT", hub.url()), ("HF_TOKEN", WRITE_TOKEN)];
    // The first upload arrives. The second is still in progress when the run is killed.
    hub.fault("PUT", Fault::Slow(1 << 30), 1);
    hub.fault("PUT", Fault::Hang, 1);
    let plugin = ["--plugin", "hub-git:repo=user/model"];
    let run = ["run", "tiny.toml", "--name", "killed"];
    let process = home.start_with(&env, &[&run[..], &plugin].concat());
    let sent = || {
        let requests = hub.requests().into_iter();
        requests.filter(|line| line.starts_with("PUT")).count()
    };
    let ends = Instant::now() + Duration::from_secs(120);
    while sent() < 2 {
        assert!(Instant::now() < ends, "{:?}", hub.requests());
        std::thread::sleep(Duration::from_millis(5));
    }
    process.kill();
    assert_eq!(process.output().signal(), Some(9));
    home.wait_for_no_child();
    let pushed = || {
        let log = git(&repo, &["log", "--reverse", "--format=%s", "killed"]);
        log.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(pushed(), ["initial commit", "step 5"]);
    assert_eq!(objects(&repo.join("lfs")).len(), 1);

    let standing = home.checkpoints("killed");
    assert!(standing.len() >= 2, "{standing:?}");
    home.host_with(&env, &["deliver", "killed"]).succeeded();
    let mut expected = vec!["initial commit".to_owned()];
    expected.extend(standing.iter().map(|step| format!("step {step}")));
    assert_eq!(pushed(), expected);
    assert_eq!(sent(), standing.len() + 1);
    for step in standing {
        let model = home.checkpoint("killed", step).join("model.safetensors");
        let oid = sha256(&fs::read(model).expect("a file"));
        let object = hub.lfs_object("user/model", &oid);
        assert_eq!(sha256(&fs::read(object).expect("an object")), oid);
    }
    git(&repo, &["fsck", "--strict"]);
}

/// Writes a fake ssh that runs the remote command on this machine, answers `git-lfs-authenticate` with a
/// file, and logs its arguments.
fn fake_ssh(home: &Home) -> PathBuf {
    let path = home.path("ssh");
    let script = r#"#!/bin/sh
while :; do
    case $1 in
    -o) shift 2 ;;
    -*) shift ;;
    *) break ;;
    esac
done
echo "$*" >>"$HOME/asked"
[ "$1" = git@example.org ] || exit 255
shift
case $* in
git-lfs-authenticate*) cat "$HOME/answer" ;;
*) eval "$*" ;;
esac
"#;
    fs::write(&path, script).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a script");
    path
}

#[test]
fn large_files_are_sent_by_lfs_over_ssh() {
    let home = Home::new();
    let hub = TestHub::start();
    let repo = hub.create_repo("user/model", &[(".gitattributes", "")]);
    let basic = BASE64_STANDARD.encode(format!("user:{WRITE_TOKEN}"));
    let answer = json!({
        "href": format!("{}.git/info/lfs", hub.repo_url("user/model")),
        "header": {"Authorization": format!("Basic {basic}")},
        "expires_in": 900,
    });
    fs::write(home.path("answer"), answer.to_string()).expect("a file");
    let ssh = fake_ssh(&home);
    let command = format!("{} -oBatchMode=yes", ssh.display());
    let sink = format!("hub-git:repo=git@example.org:{},lfs=always", repo.display());
    let args = ["run", "tiny.toml", "--name", "run", "--plugin", &sink];
    // Tests both variables that tell git how to run ssh. GIT_SSH_COMMAND is a command for the shell, whereas
    // GIT_SSH names a program.
    let by_program = ["--max-train-steps", "10", "--name", "program"];
    let by_program = [&args[..2], &args[4..], &by_program].concat();
    home.host_with(&[("GIT_SSH_COMMAND", &command)], &args)
        .succeeded();
    let program = ssh.to_str().expect("a path");
    home.host_with(&[("GIT_SSH", program)], &by_program)
        .succeeded();

    for (run, steps) in [("run", &[5, 10, 15, 20][..]), ("program", &[5, 10])] {
        for step in steps {
            let model = home.checkpoint(run, *step).join("model.safetensors");
            let oid = sha256(&fs::read(model).expect("a file"));
            let object = hub.lfs_object("user/model", &oid);
            assert_eq!(sha256(&fs::read(object).expect("an object")), oid);
        }
        let log = git(&repo, &["log", "--format=%s", run]);
        assert_eq!(log.lines().count(), steps.len() + 1, "{log}");
    }
    let asked = fs::read_to_string(home.path("asked")).expect("a file");
    let expected = format!(
        "git@example.org git-lfs-authenticate {} upload\n",
        repo.display()
    );
    // The command ran once for each checkpoint, and once before the first step of each run.
    assert_eq!(asked.matches(&expected).count(), 4 + 2 + 2, "{asked}");
    // The credentials that the server returned are secret, too.
    for file in files_of(&home.path("runs")).into_keys() {
        let bytes = fs::read(home.path("runs").join(&file)).expect("a file");
        let found = bytes
            .windows(basic.len())
            .any(|part| part == basic.as_bytes());
        assert!(!found, "{file}");
    }
}

#[test]
fn a_server_without_lfs_over_ssh_is_reported() {
    let home = Home::new();
    let hub = TestHub::start();
    let repo = hub.create_repo("user/model", &[(".gitattributes", "")]);
    let ssh = fake_ssh(&home);
    let script = fs::read_to_string(&ssh).expect("a script");
    let script = script.replace("cat \"$HOME/answer\"", "eval \"$*\"");
    fs::write(&ssh, script).expect("a script");
    let sink = format!("hub-git:repo=git@example.org:{},lfs=always", repo.display());
    let args = ["run", "tiny.toml", "--name", "run", "--plugin", &sink];
    let command = ssh.to_str().expect("a path");
    let output = home.host_with(&[("GIT_SSH_COMMAND", command)], &args);
    let (error, _) = output.failed_with(3);
    assert!(
        error.contains("does not support Git LFS over ssh"),
        "{error}"
    );
}

/// Searches the command lines of all processes of this machine for a text. Returns the command lines that
/// contain it.
fn processes(text: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(text)).collect()
}

#[test]
fn git_ends_when_the_host_is_killed() {
    for matching in [
        "GET /user/model/info/refs",
        "POST /user/model/git-receive-pack",
    ] {
        let home = Home::new();
        let hub = TestHub::start();
        hub.create_repo("user/model", &[(".gitattributes", "")]);
        hub.fault(matching, Fault::Hang, usize::MAX);
        let env = [("HF_ENDPOINT", hub.url()), ("HF_TOKEN", WRITE_TOKEN)];
        let args = [
            "run",
            "tiny.toml",
            "--name",
            "run",
            "--plugin",
            "hub-git:repo=user/model",
        ];
        let process = home.start_with(&env, &[&args[..], &["--preflight", "off"]].concat());
        let ends = Instant::now() + Duration::from_secs(120);
        let hangs = || hub.requests().iter().any(|line| line.starts_with(matching));
        while !hangs() {
            assert!(Instant::now() < ends, "{:?}", hub.requests());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!processes(hub.url()).is_empty());
        process.kill();
        assert_eq!(process.output().signal(), Some(9));
        // The server still keeps the connection open. If git were not killed too, git would end only after a
        // minute without data.
        let ends = Instant::now() + Duration::from_secs(50);
        while !processes(hub.url()).is_empty() {
            assert!(Instant::now() < ends, "{:?}", processes(hub.url()));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Writes git configuration files that would change what is pushed. Returns environment variables that would
/// also change it.
fn hostile_git(home: &Home) -> Vec<(&'static str, String)> {
    let text = |path: &str| home.path(path).display().to_string();
    let write = |path: &str, content: &str| {
        let path = home.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, content).expect("a file");
    };
    let attributes = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n\
        *.json text eol=crlf filter=upper ident\n";
    let config = format!(
        "[core]\n\tattributesFile = {0}\n\texcludesFile = {1}\n\tautocrlf = true\n\
         \thooksPath = {2}\n\tfsmonitor = false\n\tsafecrlf = true\n\
         [filter \"lfs\"]\n\tclean = false\n\trequired = true\n\
         [filter \"upper\"]\n\tclean = tr a-z A-Z\n\trequired = true\n\
         [commit]\n\tgpgSign = true\n[push]\n\tgpgSign = true\n\tfollowTags = true\n\
         [i18n]\n\tcommitEncoding = UTF-16\n[init]\n\ttemplateDir = {3}\n\
         \tdefaultObjectFormat = sha256\n[user]\n\tuseConfigOnly = true\n\
         [url \"/nowhere/\"]\n\tinsteadOf = /\n\tpushInsteadOf = /\n",
        text("attributes"),
        text("ignore"),
        text("hooks"),
        text("template"),
    );
    write("attributes", attributes);
    write("ignore", "*\n");
    write("hooks/pre-push", "#!/bin/sh\nexit 1\n");
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(home.path("hooks/pre-push"), mode).expect("a hook");
    write("template/info/attributes", attributes);
    write("template/info/exclude", "*\n");
    write(".config/git/attributes", attributes);
    write(".config/git/ignore", "*\n");
    write(".config/git/config", &config);
    write(".gitconfig", &config);
    // The host's working directory is itself a repository.
    git(&home.path("."), &["init", "--quiet"]);
    write(".git/config", &config);
    write(".git/info/attributes", attributes);
    write(".gitattributes", attributes);
    let set = |name, value: &str| (name, value.to_owned());
    vec![
        set("GIT_CONFIG_NOSYSTEM", ""),
        set("GIT_CONFIG_SYSTEM", &text(".gitconfig")),
        set("GIT_CONFIG_COUNT", "1"),
        set("GIT_CONFIG_KEY_0", "core.attributesFile"),
        set("GIT_CONFIG_VALUE_0", &text("attributes")),
        set("GIT_CONFIG_PARAMETERS", "'core.autocrlf=true'"),
        set("GIT_ATTR_SOURCE", "HEAD"),
        set("GIT_DIR", &text(".git")),
        set("GIT_WORK_TREE", &text("")),
        set("GIT_INDEX_FILE", &text("index")),
        set("GIT_OBJECT_DIRECTORY", &text("objects")),
        set("GIT_NAMESPACE", "mine"),
        set("GIT_DEFAULT_HASH", "sha256"),
        set("GIT_TEMPLATE_DIR", &text("template")),
        set("GIT_AUTHOR_NAME", "Somebody Else"),
        set("GIT_COMMITTER_EMAIL", "else@example.org"),
        set("GIT_LITERAL_PATHSPECS", "1"),
        set("GIT_TRACE", &text("trace")),
    ]
}

#[test]
fn the_users_git_settings_do_not_change_what_is_pushed() {
    let home = Home::new();
    let repo = home.path("remote.git");
    git(
        &home.path("."),
        &["init", "--quiet", "--bare", "-b", "main", "remote.git"],
    );
    let sink = format!("hub-git:repo={},trainer=true", repo.display());
    let args = ["run", "tiny.toml", "--name", "run", "--plugin", &sink];
    let args = [&args[..], &["--max-train-steps", "5"]].concat();
    let set = hostile_git(&home);
    let env: Vec<(&str, &str)> = set.iter().map(|(name, value)| (*name, &**value)).collect();
    home.host_with(&env, &args).succeeded();

    let checkpoint = home.checkpoint("run", 5);
    for name in files_of(&checkpoint).into_keys() {
        let path = checkpoint.join(&name);
        let path = path.to_str().expect("a path");
        let here = git(&repo, &["hash-object", "--no-filters", path]);
        assert_eq!(
            git(&repo, &["rev-parse", &format!("run:{name}")]),
            here,
            "{name}"
        );
    }
    let log = git(&repo, &["log", "--format=%an %ae %s %G?", "run"]);
    assert_eq!(log, "hub-git hub-git@localhost step 5 N\n");
    let refs = git(&repo, &["for-each-ref", "--format=%(refname)"]);
    assert_eq!(refs, "refs/heads/run\n");
    assert!(!home.path("trace").exists());
}

#[test]
fn the_users_git_configuration_sets_the_proxy_and_the_certificates() {
    let home = Home::new();
    let hub = TestHub::start();
    let attributes = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n";
    let repo = hub.create_repo("user/model", &[(".gitattributes", attributes)]);
    let door = TlsDoor::open(hub.url().trim_start_matches("http://"));
    let proxy = TestProxy::start(Some(door.port()));
    fs::write(home.path("company.pem"), door.authority()).expect("a file");
    let server = format!("https://hub.invalid:{}/", door.port());
    let config = format!(
        "[http]\n\tproxy = {}\n[http \"{server}\"]\n\tsslCAInfo = ~/company.pem\n",
        proxy.address()
    );
    fs::write(home.path(".gitconfig"), config).expect("a file");
    let sink = format!("hub-git:repo={server}user/model,token_env=MINE");
    let args = [
        "run",
        "tiny.toml",
        "--name",
        "run",
        "--max-train-steps",
        "5",
        "--plugin",
        &sink,
    ];
    home.host_with(&[("MINE", WRITE_TOKEN)], &args).succeeded();
    let log = git(&repo, &["log", "--format=%s", "run"]);
    assert_eq!(log, "step 5\ninitial commit\n");
    let tunnel = format!("CONNECT hub.invalid:{}", door.port());
    let requests = proxy.requests();
    assert!(requests.contains(&tunnel), "{requests:?}");
    let puts = requests
        .iter()
        .filter(|line| line.starts_with("PUT http://127.0.0.1:"));
    assert_eq!(puts.count(), 1, "{requests:?}");
}

#[test]
fn a_safe_directory_of_another_user_accepts_checkpoints() {
    let home = Home::new();
    git(
        &home.path("."),
        &["init", "--quiet", "--bare", "-b", "main", "remote.git"],
    );
    let repo = home.path("remote.git");
    if std::os::unix::fs::chown(&repo, Some(12345), None).is_err() {
        eprintln!("skipped: only root can change the owner of a folder");
        return;
    }
    let sink = format!("hub-git:repo={}", repo.display());
    let args = [
        "run",
        "tiny.toml",
        "--name",
        "run",
        "--max-train-steps",
        "5",
        "--plugin",
        &sink,
    ];
    let refused = home.host(&args);
    let (error, _) = refused.failed_with(3);
    assert!(error.contains("safe.directory"), "{error}");
    let config = format!("[safe]\n\tdirectory = {}\n", repo.display());
    fs::write(home.path(".gitconfig"), config).expect("a file");
    home.host(&args).succeeded();
    std::os::unix::fs::chown(&repo, Some(0), None).expect("owner restored");
    let log = git(&repo, &["log", "--format=%s", "run"]);
    assert_eq!(log, "step 5\n");
}

#[test]
fn common_spellings_are_understood() {
    let home = Home::new();
    let hub = TestHub::start();
    let repo = hub.create_repo("user/model", &[(".gitattributes", "")]);
    // This test uses the older name of the token's environment variable, and the URL of a repository's page.
    let env = [
        ("HF_ENDPOINT", hub.url()),
        ("HUGGING_FACE_HUB_TOKEN", WRITE_TOKEN),
    ];
    let page = format!("hub-git:repo={}/tree/main", hub.repo_url("user/model"));
    let args = [
        "run",
        "tiny.toml",
        "--name",
        "run",
        "--max-train-steps",
        "5",
    ];
    let args = [&args[..], &["--plugin", &page]].concat();
    home.host_with(&env, &args).succeeded();
    let log = git(&repo, &["log", "--format=%s", "run"]);
    assert_eq!(log, "step 5\ninitial commit\n");
    let at_home = [
        "run",
        "tiny.toml",
        "--name",
        "second",
        "--max-train-steps",
        "5",
    ];
    let sink = [
        "--plugin",
        "hub-git:repo=~/m.git,create=true,branch=refs/heads/main",
    ];
    home.host(&[&at_home[..], &sink].concat()).succeeded();
    let log = git(&home.path("m.git"), &["log", "--format=%s", "main"]);
    assert_eq!(log, "step 5\n");
}

/// Returns all files of an object store, including partial uploads.
fn objects(store: &std::path::Path) -> Vec<String> {
    files_of(store).into_keys().collect()
}
