use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::remote::{Kind, Remote};
use crate::{Config, Error, Result};

/// A secret, and the variable it came from. It goes into the environment of the one git process that
/// needs it and into the headers of our own requests to the remote, and nowhere else.
#[derive(Clone)]
pub(crate) struct Token {
    secret: String,
    /// The value of an `Authorization` header.
    basic: String,
}

/// What stands in the place of a secret.
const HIDDEN: &str = "***";

impl Token {
    /// The token for a remote, or `None` if it needs or has none. `env` looks a variable up.
    ///
    /// # Errors
    /// The variable that the configuration names is not set.
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
            // In the order of the Hub's own tools; the second is the older name.
            (None, Kind::Hub) => set("HF_TOKEN")
                .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
                .or_else(|| hub_token_file(env)),
        };
        match secret.and_then(|secret| filled(&secret)) {
            Some(secret) => Self::new(remote.user(), secret).map(Some),
            // Everybody may read what is public.
            None if config.token_env.is_none() => Ok(None),
            None => Err(Self::missing(config, remote)),
        }
    }

    /// The token of a variable for a server of LFS objects that is not the remote's own.
    ///
    /// # Errors
    /// The variable is not set.
    pub(crate) fn named(name: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        match env(name).and_then(|secret| filled(&secret)) {
            Some(secret) => Self::new("user", secret),
            None => Err(Error::Permanent(format!(
                "no token for the LFS server: set {name}"
            ))),
        }
    }

    /// The error of a remote that takes nothing without a token.
    pub(crate) fn missing(config: &Config, remote: &Remote) -> Error {
        let name = config.token_env.as_deref().unwrap_or("HF_TOKEN");
        Error::Permanent(format!(
            "no token for {}: set {name} to one that may write",
            remote.url()
        ))
    }

    fn new(user: &str, secret: String) -> Result<Self> {
        if !secret.chars().all(|c| c.is_ascii_graphic()) {
            let words = "the token holds characters that no token has: check the variable's value";
            return Err(Error::Permanent(words.to_owned()));
        }
        let basic = format!(
            "Basic {}",
            BASE64_STANDARD.encode(format!("{user}:{secret}"))
        );
        Ok(Self { secret, basic })
    }

    /// The value of an `Authorization` header.
    pub(crate) fn authorization(&self) -> &str {
        &self.basic
    }

    /// The same for the Hub's own API.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.secret)
    }

    /// The text without the token, whether plain, in base64 or as it would stand in a URL.
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

/// A secret without blanks around it, if anything is left.
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

/// The token that the Hub's own tools keep after a login.
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
    fn the_hubs_token_goes_to_the_hub_alone() {
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
    fn a_token_that_is_named_and_missing_is_said_at_once() {
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
    fn a_text_is_scrubbed_of_every_form() {
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
