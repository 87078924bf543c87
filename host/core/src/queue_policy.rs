use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

/// What waits for a checkpoint sink that is slower than the checkpoints come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueuePolicy {
    /// Every checkpoint, in order.
    #[default]
    All,
    /// The newest alone: those before it that wait are dropped, each with an event. The one that is
    /// being sent is not interrupted.
    Latest,
}

impl QueuePolicy {
    /// `all` or `latest`.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Latest => "latest",
        }
    }
}

impl FromStr for QueuePolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::All, Self::Latest]
            .into_iter()
            .find(|policy| policy.name() == text)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Config,
                    format!("queue of a plugin cannot be {text:?}"),
                )
                .hint("use all (every checkpoint) or latest (the newest of those that wait)")
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_by_its_name_and_nothing_else() {
        for policy in [QueuePolicy::All, QueuePolicy::Latest] {
            assert_eq!(policy.name().parse::<QueuePolicy>().expect("known"), policy);
        }
        assert!("newest".parse::<QueuePolicy>().is_err());
        assert!("".parse::<QueuePolicy>().is_err());
    }
}
