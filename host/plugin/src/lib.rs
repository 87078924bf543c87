//! Finds, inspects, loads and wraps plugins.
