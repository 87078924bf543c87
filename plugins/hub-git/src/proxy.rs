//! Selects the proxy of a request, by the same rules as curl and git.

use std::net::IpAddr;

use crate::{Error, Result};

/// The proxies in the configuration or the environment.
#[derive(Clone, Default)]
pub(crate) struct Proxies {
    /// The proxy for all URLs. If it is set, the environment's proxies are not used. An empty text means no
    /// proxy.
    fixed: Option<String>,
    http: Option<String>,
    https: Option<String>,
    all: Option<String>,
    /// The value of `no_proxy`: hosts that are reached directly.
    direct: String,
}

impl Proxies {
    /// Reads the environment's proxies. If `fixed` is set, it overrides them. `env` returns a variable's
    /// value.
    pub(crate) fn find(fixed: Option<String>, env: &dyn Fn(&str) -> Option<String>) -> Self {
        let either = |lower: &str, upper: &str| env(lower).or_else(|| env(upper));
        Self {
            fixed,
            // CGI programs receive a client's `Proxy:` header as HTTP_PROXY, so curl ignores that
            // variable.
            http: env("http_proxy"),
            https: either("https_proxy", "HTTPS_PROXY"),
            all: either("all_proxy", "ALL_PROXY"),
            direct: either("no_proxy", "NO_PROXY").unwrap_or_default(),
        }
    }

    /// Returns the proxy for an HTTP or HTTPS URL, as configured; it may contain a password.
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

/// Parses a proxy's URL.
///
/// # Errors
/// Returns an error if the text is not a proxy's URL. The error does not repeat the text, which may contain a
/// password.
pub(crate) fn parsed(text: &str) -> Result<ureq::Proxy> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "socks" => "socks4".to_owned(),
        other => other.to_owned(),
    };
    let rest = rest.split('/').next().unwrap_or(rest);
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    // curl's default ports.
    let port = match (without_port(host).len() == host.len(), &*scheme) {
        (false, _) => "",
        (true, "https") => ":443",
        (true, _) => ":1080",
    };
    ureq::Proxy::new(&format!("{scheme}://{rest}{port}")).map_err(|_| {
        let words = "invalid proxy URL: write http://HOST:PORT, https://HOST:PORT, \
                     socks5h://HOST:PORT or socks5://HOST:PORT";
        Error::Permanent(words.to_owned())
    })
}

/// Returns `host` for `host:port`, and `[::1]` for `[::1]:80`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => {
            // An IPv6 address without brackets has no port.
            if name.contains(':') && !name.ends_with(']') {
                host
            } else {
                name
            }
        }
        _ => host,
    }
}

/// Whether `NO_PROXY` matches a host: by its name, a parent domain, its address, or a network in CIDR
/// notation. `*` alone matches every host. Entries are separated by commas or spaces.
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

/// Whether an entry is the address, or a network that contains it.
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
    // `bits == 0` is checked first, because an IPv6 prefix of length 0 would cause a shift by 128 bits, which
    // overflows.
    bits <= length && (bits == 0 || (a ^ b) >> (length - bits) == 0)
}

impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The fields are not shown, because a proxy's URL may contain a password.
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
            "an empty variable disables the proxy"
        );
        assert_eq!(proxies(&[]).of("https://x.org/r"), None);
        let fixed = Proxies {
            fixed: Some("f".to_owned()),
            ..all
        };
        assert_eq!(fixed.of("http://x.org/r"), Some("f"));
    }

    #[test]
    fn no_proxy_matches_names_addresses_and_networks() {
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
    fn a_proxy_url_is_parsed_like_in_curl() {
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
