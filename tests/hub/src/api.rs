use std::fs;
use std::io;

use serde_json::{Value, json};

use crate::http::{Request, Response};
use crate::{READ_TOKEN, Shared, WRITE_TOKEN, repository};

/// Marker file of a private repository.
pub(crate) const PRIVATE: &str = "test-hub-private";

/// Answers `POST /api/repos/create`, the only supported call of the Hub's API. The owner of the read token
/// and of the write token is `user`.
pub(crate) fn answer(shared: &Shared, request: &mut Request) -> io::Result<Response> {
    let says = |status, words: &str| Ok(Response::json(status, &json!({"error": words})));
    if (request.method.as_str(), request.path.as_str()) != ("POST", "/api/repos/create") {
        return says(404, "Sorry, we can't find the page you are looking for.");
    }
    let token = request
        .header("authorization")
        .and_then(|header| header.strip_prefix("Bearer "))
        .map(str::to_owned);
    let body: Value = serde_json::from_slice(&request.body()?)?;
    let text = |name: &str| body[name].as_str().unwrap_or_default();
    match token.as_deref() {
        Some(WRITE_TOKEN) if text("organization") == "user" => {}
        Some(WRITE_TOKEN | READ_TOKEN) => {
            return says(
                403,
                "You don't have the rights to create a model under this namespace",
            );
        }
        _ => return says(401, "Invalid credentials in Authorization header"),
    }
    let name = format!("{}/{}", text("organization"), text("name"));
    let repo = shared.repo(&name);
    if text("type") != "model" || text("name").is_empty() {
        return says(400, "name and type are required");
    }
    if repo.is_dir() {
        return says(409, "You already created this model repo");
    }
    repository::make(&repo, &[(".gitattributes", ATTRIBUTES)]);
    if body["private"] == true {
        fs::write(repo.join(PRIVATE), "")?;
    }
    Ok(Response::json(
        200,
        &json!({"url": format!("{}/{name}", shared.url)}),
    ))
}

/// A short version of the `.gitattributes` of a new model on the Hub.
const ATTRIBUTES: &str = "*.bin filter=lfs diff=lfs merge=lfs -text\n";
