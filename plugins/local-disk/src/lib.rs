//! Keeps complete checkpoints in a folder.
