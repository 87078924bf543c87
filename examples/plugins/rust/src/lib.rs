//! The smallest useful plugin: a metric.
