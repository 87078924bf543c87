//! The gRPC messages and services.
