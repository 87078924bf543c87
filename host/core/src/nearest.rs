/// Returns the known name that is closest to a mistyped name, or `None` if no known name is close. A name is
/// close if it differs by at most one typo per three characters. One typo is always allowed.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = name.chars().count();
    let slips = (length / 3).max(1);
    known
        .into_iter()
        .map(|near| (strsim::damerau_levenshtein(name, near), near))
        .min_by_key(|&(distance, _)| distance)
        .filter(|&(distance, _)| distance <= slips && distance < length)
        .map(|(_, near)| near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_are_matched_and_nonsense_is_not() {
        let known = ["learning_rate", "seed", "train_batch_size", "dir"];
        for (name, meant) in [
            ("learnin_rate", Some("learning_rate")),
            ("train_batchsize", Some("train_batch_size")),
            ("dri", Some("dir")),
            ("sede", Some("seed")),
            ("batch_size_train", None),
            ("xyz", None),
            ("d", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known), meant, "{name:?}");
        }
        assert_eq!(nearest("seed", []), None);
    }
}
