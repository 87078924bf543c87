//! Parses URLs of a repository's web pages, which users copy from the browser.

/// The kind of server that hosts a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// `huggingface.co`, or the server in `HF_ENDPOINT`.
    Hub,
    /// A server where `OWNER/NAME` is a repository, and the rest of the path is a page of the repository.
    TwoParts,
    /// Any other server, such as GitLab, where groups can contain groups.
    Other,
}

/// The result of parsing a URL.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The repository's path.
    pub(crate) repo: String,
    /// The branch, tag or commit that the page shows.
    pub(crate) revision: Option<String>,
    /// True for the URL of a page. False for the URL of the repository itself.
    pub(crate) is_page: bool,
}

/// Path segments of pages that show a revision. The revision's name follows in the path.
const OF_REVISION: [&str; 8] = [
    "tree", "blob", "resolve", "raw", "commits", "commit", "edit", "blame",
];

/// Path segments of pages that do not show a revision.
const OTHERS: [&str; 15] = [
    "discussions",
    "settings",
    "community",
    "issues",
    "pulls",
    "pull",
    "pull-requests",
    "merge_requests",
    "releases",
    "tags",
    "branches",
    "actions",
    "wiki",
    "pipelines",
    "activity",
];

impl Site {
    /// Returns the site of a host that is not the Hub.
    pub(crate) fn of(host: &str) -> Self {
        match host {
            "github.com" | "bitbucket.org" | "codeberg.org" => Self::TwoParts,
            _ => Self::Other,
        }
    }
}

/// Parses the path of a URL. `path` has no slash at its beginning or end. `server` is the part of the URL
/// before `path`.
///
/// # Errors
/// Returns an error if the repository or the branch of the page is ambiguous.
pub(crate) fn read(site: Site, server: &str, path: &str) -> Result<Found, String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let whole = || Found {
        repo: path.to_owned(),
        revision: None,
        is_page: false,
    };
    let (repo, rest): (&[&str], &[&str]) = match site {
        Site::Hub => {
            let parts = match parts.as_slice() {
                ["api", "models", rest @ ..] => rest,
                ["api", rest @ ..] => rest,
                all => all,
            };
            let length = match parts.first() {
                Some(&("datasets" | "spaces")) => 3,
                _ => 2,
            };
            parts.split_at(length.min(parts.len()))
        }
        Site::TwoParts => parts.split_at(2.min(parts.len())),
        Site::Other => match parts.iter().position(|part| *part == "-") {
            Some(at) => (&parts[..at], &parts[at + 1..]),
            // No part is `-`. Either the path is only the repository's, or this is a page of a self-hosted
            // server whose paths are like those of GitHub or Gitea.
            None => match parts.get(2) {
                Some(&("tree" | "blob" | "src")) if parts.len() > 3 => parts.split_at(2),
                _ => return Ok(whole()),
            },
        },
    };
    let repo = repo.join("/");
    let page = |revision: Option<String>| Found {
        is_page: true,
        revision,
        repo: repo.clone(),
    };
    match rest {
        [] => Ok(Found {
            is_page: false,
            ..page(None)
        }),
        ["src", "branch" | "tag" | "commit", revision @ ..] | ["src", revision @ ..] => {
            revision_of(site, &format!("{server}{repo}"), revision).map(page)
        }
        [kind, revision @ ..] if OF_REVISION.contains(kind) => {
            revision_of(site, &format!("{server}{repo}"), revision).map(page)
        }
        [kind, ..] if OTHERS.contains(kind) => Ok(page(None)),
        _ => Err(format!(
            "{server}{path} is not a repository: write {server}{repo}"
        )),
    }
}

/// Returns the revision at the beginning of `parts`. A revision's name can contain slashes. The Hub's URLs
/// encode such a name as one part. On other servers, it spans several parts.
fn revision_of(site: Site, repo: &str, parts: &[&str]) -> Result<Option<String>, String> {
    match parts {
        [] => Ok(None),
        [one] => Ok(Some(decoded(one))),
        [first, ..] if site == Site::Hub || matches!(*first, "main" | "master") => {
            Ok(Some(decoded(first)))
        }
        _ => Err(format!(
            "it is not clear where the branch name in {} ends: write {repo}, and specify the branch separately",
            parts.join("/")
        )),
    }
}

/// Decodes the percent encoding in a part of a URL.
pub(crate) fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = digits
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_path_is_unchanged() {
        for (site, path) in [
            (Site::Hub, "ann/gpt"),
            (Site::Hub, "gpt2"),
            (Site::TwoParts, "ann/gpt.git"),
            (Site::Other, "a/b/c/d.git"),
            (Site::Other, "scm/tree"),
        ] {
            let found = read(site, "https://x.org/", path).expect(path);
            assert_eq!((&*found.repo, found.is_page), (path, false));
        }
    }

    #[test]
    fn percent_signs_are_decoded_once() {
        assert_eq!(decoded("refs%2Fpr%2F1"), "refs/pr/1");
        assert_eq!(decoded("100%25%"), "100%%");
        assert_eq!(decoded("%zz%2"), "%zz%2");
        assert_eq!(decoded("%ff"), "%ff");
    }
}
