#!/usr/bin/env bash
# Brings what our results are compared with to .peers/site-packages: transformers over the torch
# that host/train/provision.sh brought. A second run only looks.
set -euo pipefail

readonly wanted='transformers==5.23.0 numpy==2.4.6'
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly root store=$root/.peers

fail() { # fail WHAT HINT
	printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
	exit 1
}

[ "$(cat "$store/wanted" 2>/dev/null || true)" = "$wanted" ] && exit
"$root/host/train/provision.sh"
[ -e "$root/.libtorch/site-packages/torch/__init__.py" ] ||
	fail "the peers need torch as a Python package, and this libtorch is none: $root/.libtorch/site-packages/torch" \
		"unset LIBTORCH, remove $root/.libtorch and run this again; or leave the comparisons out: make test-peers PEERS=skip"
rm -rf "$store"
mkdir -p "$store"
printf 'peers: installing %s\n' "$wanted"
# shellcheck disable=SC2086 # a list of words
python3 -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --root-user-action=ignore \
	--target "$store/site-packages" $wanted ||
	fail "pip could not install the peers (its own words are above)" \
		"look at the network; or leave the comparisons out: make test-peers PEERS=skip"
printf '%s' "$wanted" >"$store/wanted"
