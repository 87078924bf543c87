//! Loss and perplexity of the evaluation set.
