#!/usr/bin/env bash
# Checks the dependencies against deny.toml with cargo-deny, if it is installed. Checks the advisories only if
# their database can be downloaded.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v cargo-deny >/dev/null; then
	echo 'SKIPPED: the dependencies were not checked, because cargo-deny is not installed: cargo install --locked cargo-deny'
	exit
fi
cargo deny --locked check licenses bans sources
if cargo deny --locked fetch db 2>/dev/null; then
	cargo deny --locked check advisories
else
	echo 'SKIPPED: cannot download the advisory database'
fi
