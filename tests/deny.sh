#!/usr/bin/env bash
# Holds the dependencies to deny.toml, by cargo-deny, where it is installed. The advisories are compared where
# their database can be fetched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v cargo-deny >/dev/null; then
	echo 'SKIPPED: the dependencies were not checked, since cargo-deny is not installed: cargo install --locked cargo-deny'
	exit
fi
cargo deny --locked check licenses bans sources
if cargo deny --locked fetch db 2>/dev/null; then
	cargo deny --locked check advisories
else
	echo 'SKIPPED: the database of advisories cannot be fetched'
fi
