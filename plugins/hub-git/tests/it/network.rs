//! Tests company networks. Git and the built-in client must use the same certificate authorities and proxies.

use std::fs;

use hub_git::Error;
use serde_json::json;
use test_hub::{TestHub, TestProxy, TlsDoor, WRITE_TOKEN};

use crate::support::{Run, messages, permanent, publisher};

/// Returns a hub and the path of its repository `user/model`.
fn hub() -> (TestHub, String) {
    let hub = TestHub::start();
    let attributes = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n";
    let repo = hub.create_repo("user/model", &[(".gitattributes", attributes)]);
    let repo = repo.to_str().expect("a path").to_owned();
    (hub, repo)
}

fn address(hub: &TestHub) -> &str {
    hub.url().trim_start_matches("http://")
}

#[test]
fn a_private_authority_is_read_from_each_setting() {
    let (hub, repo) = hub();
    let door = TlsDoor::open(address(&hub));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("company.pem");
    fs::write(&file, door.authority()).expect("a file");
    let file = file.to_str().expect("a path");
    let empty = folder.path().join("empty.pem");
    fs::write(&empty, "# nothing\n").expect("a file");
    let url = format!("https://localhost:{}/user/model", door.port());
    let base = json!({"repo": url, "token_env": "MINE"});

    let run = Run::new("run");
    let mut step = 0;
    let mut publish = |config: serde_json::Value, env: &[(&str, &str)]| {
        let env = [&[("MINE", WRITE_TOKEN)], env].concat();
        let publisher = publisher(config, &env)?;
        step += 1;
        run.publish(&publisher, &run.checkpoint(step, 1000))
    };
    let error = publish(base.clone(), &[]).expect_err("an unknown authority");
    assert!(matches!(error, Error::Permanent(_)), "{error}");
    for name in [
        "GIT_SSL_CAINFO",
        "CURL_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_FILE",
    ] {
        publish(base.clone(), &[(name, file)]).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let mut config = base.clone();
    config["ca_file"] = json!(file);
    publish(config, &[("SSL_CERT_FILE", "/nowhere")]).expect("the setting has precedence");
    assert_eq!(messages(&repo, "run").len(), 5 + 1);

    let nowhere = empty.to_str().expect("a path");
    for (path, why) in [
        ("/nowhere.pem", "No such file"),
        (nowhere, "no certificate"),
    ] {
        let words = permanent(publish(base.clone(), &[("SSL_CERT_FILE", path)]));
        assert!(words.contains(why) && words.ends_with(path), "{words}");
    }
}

#[test]
fn plain_http_is_proxied_with_full_urls() {
    let (hub, repo) = hub();
    let proxy = TestProxy::start(None);
    let port = address(&hub).rsplit_once(':').expect("a port").1;
    let config =
        json!({"repo": format!("http://hub.invalid:{port}/user/model"), "token_env": "MINE"});
    let to = format!("http://ann:a%40b@{}", proxy.address());
    let env = [
        ("MINE", WRITE_TOKEN),
        ("http_proxy", &to),
        ("no_proxy", "localhost"),
    ];
    let run = Run::new("run");
    let publisher = publisher(config, &env).expect("a publisher");
    run.publish(&publisher, &run.checkpoint(1, 100_000))
        .expect("published");
    assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);
    let requests = proxy.requests();
    for part in ["info/refs", "objects/batch", "git-receive-pack"] {
        let through = requests.iter().filter(|line| line.contains(part));
        let through: Vec<_> = through.collect();
        assert!(!through.is_empty(), "{part}: {requests:?}");
        assert!(
            through
                .iter()
                .all(|line| line.contains(" http://hub.invalid:")),
            "{through:?}"
        );
    }
    // Git sends the proxy's password only if the proxy requires it. The built-in client always sends it.
    let as_ann = |line: &&String| line.ends_with(" as Basic YW5uOmFAYg==");
    let own = requests.iter().filter(as_ann);
    let own: Vec<&str> = own.filter_map(|line| line.split('/').next()).collect();
    assert_eq!(
        own,
        ["POST http:", "PUT http:", "POST http:"],
        "{requests:?}"
    );
}

#[test]
fn https_is_proxied_through_a_tunnel() {
    let (hub, repo) = hub();
    let door = TlsDoor::open(address(&hub));
    let proxy = TestProxy::start(Some(door.port()));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("company.pem");
    fs::write(&file, door.authority()).expect("a file");
    let url = format!("https://hub.invalid:{}/user/model", door.port());
    let config = json!({"repo": url, "token_env": "MINE", "ca_file": file});
    let to = proxy.address();
    let run = Run::new("run");
    for (step, name) in [(1, "https_proxy"), (2, "HTTPS_PROXY"), (3, "ALL_PROXY")] {
        let before = proxy.requests().len();
        let env = [
            ("MINE", WRITE_TOKEN),
            (name, &*to),
            ("NO_PROXY", "127.0.0.0/8, .local"),
        ];
        let publisher = publisher(config.clone(), &env).expect("a publisher");
        run.publish(&publisher, &run.checkpoint(step, 1000))
            .expect(name);
        let tunnel = format!("CONNECT hub.invalid:{}", door.port());
        let requests = proxy.requests();
        let since = &requests[before..];
        assert!(
            since.len() > 2 && since.iter().all(|line| *line == tunnel),
            "{since:?}"
        );
    }
    assert_eq!(messages(&repo, "run").len(), 3 + 1);
}

#[test]
fn socks_works_and_no_proxy_hosts_are_reached_directly() {
    let (hub, repo) = hub();
    let proxy = TestProxy::start(None);
    let port = address(&hub).rsplit_once(':').expect("a port").1;
    let run = Run::new("run");
    let to = format!("socks5h://{}", proxy.address());
    let publish = |host: &str, step: u64, more: &[(&str, &str)]| {
        let config = json!({
            "repo": format!("http://{host}:{port}/user/model"), "token_env": "MINE", "proxy": to,
        });
        let env = [&[("MINE", WRITE_TOKEN)], more].concat();
        let publisher = publisher(config, &env).expect("a publisher");
        run.publish(&publisher, &run.checkpoint(step, 1000))
            .expect("published");
    };
    publish("hub.invalid", 1, &[]);
    let through = format!("SOCKS hub.invalid:{port}");
    let before = proxy.requests();
    // Both git and the built-in client send requests through the proxy.
    assert!(
        before.iter().filter(|line| **line == through).count() > 3,
        "{before:?}"
    );
    for (step, direct) in [(2, "127.0.0.0/8"), (3, "localhost 127.0.0.1"), (4, "*")] {
        publish("127.0.0.1", step, &[("no_proxy", direct)]);
    }
    assert_eq!(proxy.requests(), before);
    assert_eq!(messages(&repo, "run").len(), 4 + 1);
}

#[test]
fn a_proxy_with_a_password_is_refused_in_the_configuration() {
    let proxy = "http://ann:hunter2@proxy:3128";
    let config = json!({"repo": "https://example.org/r", "proxy": proxy});
    let error = publisher(config, &[]).expect_err("refused").to_string();
    assert!(
        error.contains("https_proxy") && !error.contains("hunter2"),
        "{error}"
    );
}
