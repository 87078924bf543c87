use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::remote::{Kind, Remote};
use crate::{Config, Error, Result};

/// A secret. It is passed to git processes that need it, in their environment. The built-in client sends it
/// in the headers of requests to the token's server. It is not passed to anything else.
#[derive(Clone)]
pub(crate) struct Token {
    secret: String,
    /// The value of an `Authorization` header.
    basic: String,
}

/// The text that replaces a secret.
const HIDDEN: &str = "***";

impl Token {
    /// Finds the token for a remote. Returns `None` if the remote needs no token or none is set. `env`
    /// returns the value of an environment variable.
    ///
    /// # Errors
    /// Returns an error if the configured environment variable is not set.
    pub(crate) fn find(
        config: &Config,
        remote: &Remote,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>> {
        let set = |name: &str| env(name).and_then(|secret| filled(&secret));
        let secret = match (&config.token_env, remote.kind()) {
            (_, Kind::Ssh | Kind::Local) => return Ok(None),
            (None, Kind::Http) => return Ok(None),
            (Some(name), Kind::Http) => env(name),
            (Some(name), Kind::Hub) => set(name).or_else(|| hub_token_file(env)),
            // The Hub's own tools try these sources in the same order. The second variable is the older one.
            (None, Kind::Hub) => set("HF_TOKEN")
                .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
                .or_else(|| hub_token_file(env)),
        };
        match secret.and_then(|secret| filled(&secret)) {
            Some(secret) => Self::new(remote.user(), secret).map(Some),
            // Public repositories can be read without a token.
            None if config.token_env.is_none() => Ok(None),
            None => Err(Self::missing(config, remote)),
        }
    }

    /// Reads the token of a separate LFS server from an environment variable.
    ///
    /// # Errors
    /// Returns an error if the environment variable is not set.
    pub(crate) fn named(name: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        match env(name).and_then(|secret| filled(&secret)) {
            Some(secret) => Self::new("user", secret),
            None => Err(Error::Permanent(format!(
                "no token for the LFS server: set {name}"
            ))),
        }
    }

    /// Returns the error for a remote that requires a token.
    pub(crate) fn missing(config: &Config, remote: &Remote) -> Error {
        let name = config.token_env.as_deref().unwrap_or("HF_TOKEN");
        Error::Permanent(format!(
            "no token for {}: set {name} to a token with write access",
            remote.url()
        ))
    }

    fn new(user: &str, secret: String) -> Result<Self> {
        if !secret.chars().all(|c| c.is_ascii_graphic()) {
            let words = "the token contains invalid characters: check the variable's value";
            return Err(Error::Permanent(words.to_owned()));
        }
        let basic = format!(
            "Basic {}",
            BASE64_STANDARD.encode(format!("{user}:{secret}"))
        );
        Ok(Self { secret, basic })
    }

    /// Returns the value of an `Authorization` header for git and LFS servers.
    pub(crate) fn authorization(&self) -> &str {
        &self.basic
    }

    /// Returns the value of an `Authorization` header for the Hub's API.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.secret)
    }

    /// Removes the token from a text, whether plain, in base64 or percent-encoded.
    pub(crate) fn scrub(&self, text: &str) -> String {
        let encoded = self.basic.trim_start_matches("Basic ");
        text.replace(&self.secret, HIDDEN)
            .replace(encoded, HIDDEN)
            .replace(&BASE64_STANDARD.encode(&self.secret), HIDDEN)
            .replace(&percent_encoded(&self.secret), HIDDEN)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// Trims a secret. Returns `None` if nothing is left.
fn filled(secret: &str) -> Option<String> {
    let secret = secret.trim();
    (!secret.is_empty()).then(|| secret.to_owned())
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded += &format!("%{byte:02X}"),
        }
    }
    encoded
}

/// Reads the token file that the Hub's own tools write on login.
fn hub_token_file(env: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let beside = |variable: &str, rest: &str| Some(Path::new(&env(variable)?).join(rest));
    let path = env("HF_TOKEN_PATH")
        .map(PathBuf::from)
        .or_else(|| beside("HF_HOME", "token"))
        .or_else(|| beside("XDG_CACHE_HOME", "huggingface/token"))
        .or_else(|| beside("HOME", ".cache/huggingface/token"))?;
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(repo: &str, token_env: Option<&str>, set: &[(&str, &str)]) -> Result<Option<Token>> {
        let config = Config {
            token_env: token_env.map(str::to_owned),
            ..serde_json::from_value(serde_json::json!({"repo": repo})).expect("a configuration")
        };
        let remote = Remote::parse(repo, &|_| None)?;
        Token::find(&config, &remote, &|name| {
            let (_, value) = set.iter().find(|(key, _)| *key == name)?;
            Some((*value).to_owned())
        })
    }

    #[test]
    fn the_hubs_token_is_sent_only_to_the_hub() {
        let set = [("HF_TOKEN", "hf_secret")];
        assert!(find("ann/gpt", None, &set).expect("found").is_some());
        assert!(
            find("https://example.org/r", None, &set)
                .expect("none")
                .is_none()
        );
        assert!(
            find("/srv/r", Some("HF_TOKEN"), &set)
                .expect("none")
                .is_none()
        );
        assert!(
            find("https://example.org/r", Some("HF_TOKEN"), &set)
                .expect("asked")
                .is_some()
        );
    }

    #[test]
    fn a_configured_token_that_is_missing_is_an_error() {
        let blank = [("HF_TOKEN", " \n")];
        assert!(find("ann/gpt", None, &blank).expect("none").is_none());
        for repo in ["ann/gpt", "https://example.org/r"] {
            let error = find(repo, Some("MINE"), &blank).expect_err("refused");
            assert!(error.to_string().contains("set MINE"), "{error}");
        }
    }

    #[test]
    fn the_older_name_of_the_hubs_token_is_read_after_the_new_one() {
        let secret = |set: &[(&str, &str)]| {
            let token = find("ann/gpt", None, set).expect("found");
            token.map(|token| token.secret)
        };
        let (old, new) = (("HUGGING_FACE_HUB_TOKEN", "hf_old"), ("HF_TOKEN", "hf_new"));
        assert_eq!(secret(&[old]).as_deref(), Some("hf_old"));
        assert_eq!(secret(&[old, new]).as_deref(), Some("hf_new"));
        assert_eq!(secret(&[old, ("HF_TOKEN", " ")]).as_deref(), Some("hf_old"));
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("token"), "hf_filed").expect("a file");
        let home = ("HF_HOME", folder.path().to_str().expect("a path"));
        assert_eq!(secret(&[home, old]).as_deref(), Some("hf_old"));
        assert_eq!(
            secret(&[home, ("HUGGING_FACE_HUB_TOKEN", "")]).as_deref(),
            Some("hf_filed")
        );
    }

    #[test]
    fn the_hubs_token_file_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("token"), "hf_filed\n").expect("a file");
        let home = folder.path().to_str().expect("a path");
        let token = find("ann/gpt", None, &[("HF_HOME", home)])
            .expect("found")
            .expect("one");
        assert_eq!(token.secret, "hf_filed");
    }

    #[test]
    fn every_form_of_the_token_is_removed_from_a_text() {
        let token = Token::new("user", "hf_secret".to_owned()).expect("a token");
        let text = format!(
            "hf_secret {} {}",
            token.authorization(),
            BASE64_STANDARD.encode("hf_secret")
        );
        assert_eq!(token.scrub(&text), "*** Basic *** ***");
        assert_eq!(format!("{token:?}"), "***");
        let odd = Token::new("user", "a/b+c%".to_owned()).expect("a token");
        assert_eq!(
            odd.scrub("https://user:a%2Fb%2Bc%25@x"),
            "https://user:***@x"
        );
    }
}
