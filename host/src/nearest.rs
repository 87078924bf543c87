//! What somebody may have meant.

/// The word most like `word`, if one is like it at all.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_understood_and_nonsense_is_not() {
        let known = [
            "learning_rate",
            "seed",
            "train_batch_size",
            "valid_batch_size",
        ];
        assert_eq!(nearest("batch_size_train", known), None);
        assert_eq!(nearest("learnin_rate", known), Some("learning_rate"));
        assert_eq!(nearest("train_batchsize", known), Some("train_batch_size"));
        assert_eq!(nearest("xyz", known), None);
    }
}
