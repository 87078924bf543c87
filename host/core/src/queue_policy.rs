use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

/// Which checkpoints stay queued if a sink delivers them more slowly than the run writes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueuePolicy {
    /// Every checkpoint, in order.
    #[default]
    All,
    /// Only the newest checkpoint. Older checkpoints in the queue are dropped, and each drop is recorded as
    /// an event. A delivery in progress is not interrupted.
    Latest,
}

impl QueuePolicy {
    /// Returns `all` or `latest`.
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
                Error::new(ErrorKind::Config, format!("queue cannot be {text:?}")).hint(
                    "use all (every checkpoint) or latest (only the newest waiting checkpoint)",
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_name_of_a_policy_is_accepted() {
        for policy in [QueuePolicy::All, QueuePolicy::Latest] {
            assert_eq!(policy.name().parse::<QueuePolicy>().expect("known"), policy);
        }
        assert!("newest".parse::<QueuePolicy>().is_err());
        assert!("".parse::<QueuePolicy>().is_err());
    }
}
