//! Pushes checkpoints to a git remote such as the Hugging Face Hub.
