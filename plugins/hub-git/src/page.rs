//! The pages that servers show of a repository, whose addresses people paste.

/// What kind of server shows a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// `huggingface.co`, or another by `HF_ENDPOINT`.
    Hub,
    /// `OWNER/NAME` is a repository, and what follows is a page of it.
    TwoParts,
    /// Any other, such as GitLab, where a group may have groups.
    Other,
}

/// What an address names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The repository's path.
    pub(crate) repo: String,
    /// The branch, tag or commit whose page it is.
    pub(crate) revision: Option<String>,
    /// Whether it was a page, and not the repository itself.
    pub(crate) is_page: bool,
}

/// Pages that show a revision, whose name follows.
const OF_REVISION: [&str; 8] = [
    "tree", "blob", "resolve", "raw", "commits", "commit", "edit", "blame",
];

/// Pages that show something else.
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
    /// The site of a host that is not the Hub.
    pub(crate) fn of(host: &str) -> Self {
        match host {
            "github.com" | "bitbucket.org" | "codeberg.org" => Self::TwoParts,
            _ => Self::Other,
        }
    }
}

/// Reads the path of a URL, without slashes around it. `server` is what stands before it.
///
/// # Errors
/// It is a page, and which repository or which branch it shows cannot be told.
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
            // As a company's own server of one of the others shows it.
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

/// The revision that the first of the parts name. Only the Hub writes one with a slash as one part.
fn revision_of(site: Site, repo: &str, parts: &[&str]) -> Result<Option<String>, String> {
    match parts {
        [] => Ok(None),
        [one] => Ok(Some(decoded(one))),
        [first, ..] if site == Site::Hub || matches!(*first, "main" | "master") => {
            Ok(Some(decoded(first)))
        }
        _ => Err(format!(
            "{} holds the name of the branch, and its end is ambiguous: write {repo}, and the branch by itself",
            parts.join("/")
        )),
    }
}

/// A part of a URL without its `%20`.
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
    fn a_repository_is_left_as_it_is() {
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
