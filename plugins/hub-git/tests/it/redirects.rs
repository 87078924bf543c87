//! Redirects are followed, and no token is sent to another server.

use serde_json::json;
use test_hub::{Fault, TestHub, WRITE_TOKEN};

use crate::support::{Run, count, hub_publisher, messages, model_hub, permanent, publisher};

const FIRST: &str = "GET /user/old/info/refs";

/// Returns a publisher that pushes to `user/old`, with a token.
fn to_old(hub: &TestHub) -> hub_git::Publisher {
    hub_publisher(hub, WRITE_TOKEN, &[("repo", json!("user/old"))])
}

#[test]
fn a_renamed_repository_is_found_for_git_and_for_lfs() {
    for status in [301, 302, 307, 308] {
        for to in ["", "http://SERVER"] {
            let (hub, repo) = model_hub();
            let server = hub.url().trim_start_matches("http://");
            let to = to.replace("SERVER", server);
            let to = format!("{to}/user/model/info/refs?service=git-upload-pack");
            hub.fault(FIRST, Fault::lead(status, &to), usize::MAX);
            let publisher = to_old(&hub);
            let run = Run::new("run");
            for step in [1, 2] {
                let receipt = run.publish(&publisher, &run.checkpoint(step, 1000));
                let receipt = receipt.expect("published");
                assert_eq!(receipt.remote, hub.repo_url("user/old"));
            }
            assert_eq!(
                messages(&repo, "run"),
                ["step 2", "step 1", "initial commit"]
            );
            // In total, git sends one request to the old URL, and the sink sends one to find the new URL.
            assert_eq!(count(&hub, FIRST), 2);
        }
    }
}

#[test]
fn no_token_is_sent_to_the_new_server_of_a_repository() {
    let (hub, _) = model_hub();
    let (other, _) = model_hub();
    let other_host = hub.url().replace("127.0.0.1", "localhost");
    for to in [other.url(), &other_host] {
        let to = format!("{to}/user/model/info/refs?service=git-upload-pack");
        hub.fault(FIRST, Fault::lead(307, &to), 2);
        let run = Run::new("run");
        let before = hub.requests().len();
        let words = permanent(run.publish(&to_old(&hub), &run.checkpoint(1, 1000)));
        assert!(words.contains("has moved to another server"), "{words}");
        assert!(words.contains("/user/model"), "{words}");
        assert_eq!(hub.requests().len(), before + 2);
    }
    assert_eq!(other.requests(), Vec::<String>::new());
}

#[test]
fn a_redirect_to_a_login_page_is_an_error() {
    let (hub, _) = model_hub();
    hub.fault(FIRST, Fault::lead(302, "/login?return_to=secret"), 2);
    let run = Run::new("run");
    let words = permanent(run.publish(&to_old(&hub), &run.checkpoint(1, 1000)));
    assert!(
        words.contains("redirects to a URL that is not a repository"),
        "{words}"
    );
    assert!(
        words.contains("/login)") && !words.contains("secret"),
        "{words}"
    );
}

#[test]
fn a_redirect_loop_is_an_error() {
    let (hub, _) = model_hub();
    let to = "/user/old/info/refs?service=git-upload-pack";
    hub.fault(FIRST, Fault::lead(307, to), usize::MAX);
    let run = Run::new("run");
    run.publish(&to_old(&hub), &run.checkpoint(1, 1000))
        .expect_err("refused");
    assert!(hub.requests().len() < 10, "{:?}", hub.requests());
}

#[test]
fn without_a_token_redirects_to_another_server_are_followed() {
    let (other, _) = model_hub();
    let run = Run::new("main");
    let writer = hub_publisher(&other, WRITE_TOKEN, &[("trainer", json!(true))]);
    run.publish(&writer, &run.checkpoint(1, 1000))
        .expect("published");
    other.make_public("user/model");
    let hub = TestHub::start();
    let to = format!(
        "{}/info/refs?service=git-upload-pack",
        other.repo_url("user/model")
    );
    hub.fault("/user/old/info/refs", Fault::lead(301, &to), 2);
    let reader = publisher(json!({"repo": hub.repo_url("user/old")}), &[]).expect("a publisher");
    let folder = tempfile::tempdir().expect("a folder");
    let wanted = hub_git::Wanted {
        revision: Some("main"),
        for_resume: true,
        state_dir: folder.path(),
    };
    reader.fetch(&wanted, &|| false).expect("fetched");
}

#[test]
fn redirects_of_an_lfs_server_are_followed_only_on_the_same_server() {
    let batch = "POST /user/model.git/info/lfs/objects/batch";
    for status in [301, 307, 308] {
        let (hub, repo) = model_hub();
        hub.fault(
            batch,
            Fault::lead(status, "/user/model/info/lfs/objects/batch"),
            1,
        );
        let run = Run::new("run");
        run.publish(
            &hub_publisher(&hub, WRITE_TOKEN, &[]),
            &run.checkpoint(1, 1000),
        )
        .expect("published");
        assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);
    }
    let (hub, _) = model_hub();
    let (other, _) = model_hub();
    let to = format!(
        "{}.git/info/lfs/objects/batch",
        other.repo_url("user/model")
    );
    hub.fault(batch, Fault::lead(307, &to), 1);
    let run = Run::new("run");
    let publisher = hub_publisher(&hub, WRITE_TOKEN, &[]);
    let words = permanent(run.publish(&publisher, &run.checkpoint(1, 1000)));
    assert!(words.contains("where its token is not sent"), "{words}");
    assert_eq!(other.requests().len(), 1);
    assert_eq!(other.requests_with_credentials(), Vec::<String>::new());
}

#[test]
fn redirects_of_an_upload_are_followed() {
    let (hub, repo) = model_hub();
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 100_000);
    let oid = &checkpoint.files["model.safetensors"].sha256;
    // The redirect goes to a relative URL that contains a signature.
    let to = format!("/user/model/{oid}?signature=5f2b&moved");
    hub.fault("PUT", Fault::lead(307, &to), 1);
    run.publish(&hub_publisher(&hub, WRITE_TOKEN, &[]), &checkpoint)
        .expect("published");
    let mut puts = hub
        .requests()
        .into_iter()
        .filter(|line| line.starts_with("PUT"));
    assert_eq!(puts.next_back(), Some(format!("PUT {to}")));
    assert!(hub.lfs_object("user/model", oid).is_file());
    assert_eq!(messages(&repo, "run"), ["step 1", "initial commit"]);
}

#[test]
fn an_object_hosts_credentials_are_not_sent_to_another() {
    let (hub, repo) = model_hub();
    let (other, _) = model_hub();
    let run = Run::new("run");
    let checkpoint = run.checkpoint(1, 1000);
    let entry = &checkpoint.files["model.safetensors"];
    // The upload link contains credentials for the git server, which redirects the upload to the other
    // server's store.
    let upload = json!({
        "href": format!("{}/objects/{}", hub.url(), entry.sha256),
        "header": {"Authorization": "Basic c2VjcmV0"},
    });
    let object = json!({"oid": entry.sha256, "size": entry.size, "actions": {"upload": upload}});
    hub.fault(
        "objects/batch",
        Fault::Json(json!({"objects": [object]})),
        1,
    );
    let to = format!("{}/user/model/{}", other.url(), entry.sha256);
    hub.fault("PUT /objects/", Fault::lead(307, &to), 1);
    let _ = run.publish(&hub_publisher(&hub, WRITE_TOKEN, &[]), &checkpoint);
    assert_eq!(other.requests().len(), 1, "{:?}", other.requests());
    assert_eq!(other.requests_with_credentials(), Vec::<String>::new());
    assert_eq!(messages(&repo, "main").len(), 1);
}
