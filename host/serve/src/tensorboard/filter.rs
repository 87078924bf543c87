use std::collections::HashSet;

use host_core::Result;
use host_proto::tensorboard::data as proto;
use tonic::Status;

/// The runs and tags that a request selects.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    /// In both fields, `None` matches everything; an empty set matches nothing.
    runs: Option<HashSet<String>>,
    tags: Option<HashSet<String>>,
}

impl Filter {
    pub(crate) fn new(filter: Option<proto::RunTagFilter>) -> Self {
        let filter = filter.unwrap_or_default();
        Self {
            runs: filter.runs.map(|runs| runs.names.into_iter().collect()),
            tags: filter.tags.map(|tags| tags.names.into_iter().collect()),
        }
    }

    pub(crate) fn all() -> Self {
        Self::new(None)
    }

    pub(crate) fn has_run(&self, name: &str) -> bool {
        self.runs.as_ref().is_none_or(|runs| runs.contains(name))
    }

    pub(crate) fn has_tag(&self, name: &str) -> bool {
        self.tags.as_ref().is_none_or(|tags| tags.contains(name))
    }
}

/// Returns the TensorBoard plugin that a request names.
///
/// # Errors
/// Returns an error if the name is missing.
pub(crate) fn of_plugin(filter: Option<proto::PluginFilter>) -> Result<String, Status> {
    filter
        .map(|filter| filter.plugin_name)
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Status::invalid_argument("the plugin's name is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_filter_matches_everything_and_an_empty_one_nothing() {
        let all = Filter::all();
        assert!(all.has_run("a") && all.has_tag("b"));
        let none = Filter::new(Some(proto::RunTagFilter {
            runs: Some(proto::RunFilter::default()),
            tags: None,
        }));
        assert!(!none.has_run("a") && none.has_tag("b"));
        let names = vec!["a".to_owned()];
        let some = Filter::new(Some(proto::RunTagFilter {
            runs: None,
            tags: Some(proto::TagFilter { names }),
        }));
        assert!(some.has_run("b") && some.has_tag("a") && !some.has_tag("b"));
    }
}
