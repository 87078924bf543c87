//! Which proxy a request takes, as curl decides it, and so git.

use std::net::IpAddr;

use crate::{Error, Result};

/// The proxies that the configuration or the environment name.
#[derive(Clone, Default)]
pub(crate) struct Proxies {
    /// For all URLs, before the environment; empty for none.
    fixed: Option<String>,
    http: Option<String>,
    https: Option<String>,
    all: Option<String>,
    /// The hosts that are reached directly.
    direct: String,
}

impl Proxies {
    /// Those of the environment, unless one is named. `env` looks a variable up.
    pub(crate) fn find(fixed: Option<String>, env: &dyn Fn(&str) -> Option<String>) -> Self {
        let either = |lower: &str, upper: &str| env(lower).or_else(|| env(upper));
        Self {
            fixed,
            // A web server's CGI programs find a client's `Proxy:` header in HTTP_PROXY, so curl does
            // not look there.
            http: env("http_proxy"),
            https: either("https_proxy", "HTTPS_PROXY"),
            all: either("all_proxy", "ALL_PROXY"),
            direct: either("no_proxy", "NO_PROXY").unwrap_or_default(),
        }
    }

    /// The proxy for a URL over HTTP, if it takes one: as it was written, which may hold a password.
    pub(crate) fn of(&self, url: &str) -> Option<&str> {
        let (scheme, rest) = url.split_once("://")?;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        let host = authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host);
        if is_direct(&self.direct, without_port(host)) {
            return None;
        }
        let by_scheme = match scheme {
            "https" => &self.https,
            _ => &self.http,
        };
        let named = self
            .fixed
            .as_ref()
            .or(by_scheme.as_ref())
            .or(self.all.as_ref());
        named.map(String::as_str).filter(|proxy| !proxy.is_empty())
    }
}

/// A proxy as it is connected to.
///
/// # Errors
/// The text is not a proxy's URL. It is not repeated: it may hold a password.
pub(crate) fn parsed(text: &str) -> Result<ureq::Proxy> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "socks" => "socks4".to_owned(),
        other => other.to_owned(),
    };
    let rest = rest.split('/').next().unwrap_or(rest);
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    // Ports that are not written are curl's.
    let port = match (without_port(host).len() == host.len(), &*scheme) {
        (false, _) => "",
        (true, "https") => ":443",
        (true, _) => ":1080",
    };
    ureq::Proxy::new(&format!("{scheme}://{rest}{port}")).map_err(|_| {
        let words = "the URL of the proxy is not valid: write http://HOST:PORT, https://HOST:PORT, \
                     socks5h://HOST:PORT or socks5://HOST:PORT";
        Error::Permanent(words.to_owned())
    })
}

/// `host` of `host:port`, and `[::1]` of `[::1]:80`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => {
            // An address of IP version 6 without brackets has no port.
            if name.contains(':') && !name.ends_with(']') {
                host
            } else {
                name
            }
        }
        _ => host,
    }
}

/// Whether `NO_PROXY` names a host: by its name or a domain that it lies in, by its address, or by a
/// network in CIDR notation. `*` alone is every host. Commas and blanks divide the list.
fn is_direct(list: &str, host: &str) -> bool {
    if list.trim() == "*" {
        return true;
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let address: Option<IpAddr> = bare.parse().ok();
    let name = bare.trim_end_matches('.').to_ascii_lowercase();
    let mut entries = list
        .split([',', ' ', '\t'])
        .filter(|entry| !entry.is_empty());
    entries.any(|entry| match address {
        Some(address) => holds(entry, address),
        None => {
            let entry = entry.trim_start_matches("*.").trim_matches('.');
            let domain = entry.to_ascii_lowercase();
            !domain.is_empty()
                && name
                    .strip_suffix(&domain)
                    .is_some_and(|before| before.is_empty() || before.ends_with('.'))
        }
    })
}

/// Whether an entry is the address, or a network that holds it.
fn holds(entry: &str, address: IpAddr) -> bool {
    let (network, bits) = match entry.split_once('/') {
        Some((network, bits)) => (network, Some(bits)),
        None => (entry, None),
    };
    let network = network.trim_start_matches('[').trim_end_matches(']');
    let Ok(network) = network.parse::<IpAddr>() else {
        return false;
    };
    let (a, b, length) = match (network, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(u32::from(a)), u128::from(u32::from(b)), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a), u128::from(b), 128),
        _ => return false,
    };
    let Ok(bits) = bits.map_or(Ok(length), str::parse::<u32>) else {
        return false;
    };
    // No bit at all would be a shift by the whole width.
    bits <= length && (bits == 0 || (a ^ b) >> (length - bits) == 0)
}

impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A proxy's URL may hold a password.
        f.write_str("Proxies")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(set: &[(&str, &str)]) -> Proxies {
        Proxies::find(None, &|name| {
            let (_, value) = set.iter().find(|(key, _)| *key == name)?;
            Some((*value).to_owned())
        })
    }

    #[test]
    fn each_scheme_has_its_variable() {
        let all = proxies(&[
            ("http_proxy", "h"),
            ("HTTP_PROXY", "wrong"),
            ("HTTPS_PROXY", "s"),
            ("ALL_PROXY", "a"),
        ]);
        assert_eq!(all.of("http://x.org/r"), Some("h"));
        assert_eq!(all.of("https://x.org/r"), Some("s"));
        let upper = proxies(&[("HTTP_PROXY", "wrong"), ("ALL_PROXY", "a")]);
        assert_eq!(upper.of("http://x.org/r"), Some("a"));
        assert_eq!(upper.of("https://x.org/r"), Some("a"));
        let lower_first = proxies(&[("https_proxy", "l"), ("HTTPS_PROXY", "u")]);
        assert_eq!(lower_first.of("https://x.org/r"), Some("l"));
        let off = proxies(&[
            ("https_proxy", ""),
            ("HTTPS_PROXY", "u"),
            ("all_proxy", "a"),
        ]);
        assert_eq!(
            off.of("https://x.org/r"),
            None,
            "an empty one switches it off"
        );
        assert_eq!(proxies(&[]).of("https://x.org/r"), None);
        let fixed = Proxies {
            fixed: Some("f".to_owned()),
            ..all
        };
        assert_eq!(fixed.of("http://x.org/r"), Some("f"));
    }

    #[test]
    fn hosts_that_are_reached_directly() {
        for (list, host, direct) in [
            ("*", "x.org", true),
            ("example.org", "example.org", true),
            ("example.org", "git.example.org", true),
            (".example.org", "git.example.org", true),
            (".example.org", "example.org", true),
            ("*.example.org", "git.example.org", true),
            ("example.org", "notexample.org", false),
            ("a.org, b.org  c.org", "c.org", true),
            ("a.org,b.org", "B.ORG.", true),
            ("", "x.org", false),
            (",", "x.org", false),
            ("a*.org", "ab.org", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("192.168.4.0/22", "192.168.7.9", true),
            ("192.168.4.0/22", "192.168.8.9", false),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("10.0.0.0/33", "10.0.0.0", false),
            ("::1", "[::1]", true),
            ("[::1]", "[::1]", true),
            ("fd00::/8", "[fd12::1]", true),
            ("fd00::/8", "10.0.0.1", false),
            ("0.0.1", "127.0.0.1", false),
        ] {
            assert_eq!(is_direct(list, host), direct, "{list:?} {host}");
        }
        let all = proxies(&[("all_proxy", "p"), ("NO_PROXY", "localhost,::1")]);
        assert_eq!(all.of("http://localhost:8080/r"), None);
        assert_eq!(all.of("https://ann@localhost/r"), None);
        assert_eq!(all.of("http://[::1]:80/r"), None);
        assert_eq!(all.of("http://[::2]:80/r"), Some("p"));
    }

    #[test]
    fn a_proxy_is_read_as_curl_reads_it() {
        for (text, expected) in [
            ("proxy", "http://proxy:1080"),
            ("http://proxy:3128/", "http://proxy:3128"),
            ("HTTP://ann:a%40b@proxy", "http://ann:a%40b@proxy:1080"),
            ("https://proxy", "https://proxy:443"),
            ("socks5h://[::1]:9", "socks5h://[::1]:9"),
            ("socks5://[::1]", "socks5://[::1]:1080"),
            ("socks://proxy", "socks4://proxy:1080"),
        ] {
            let expected = ureq::Proxy::new(expected).expect("a proxy");
            assert_eq!(parsed(text).expect(text), expected, "{text}");
        }
        let error = parsed("ftp://ann:hunter2@proxy").expect_err("refused");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
