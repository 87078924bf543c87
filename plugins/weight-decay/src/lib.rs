//! Parameter groups with and without weight decay, by name.
