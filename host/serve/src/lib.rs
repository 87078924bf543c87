//! The gRPC service over a run store, and its client.
