#!/usr/bin/env bash
# Brings what our results are compared with to .peers/site-packages: transformers over the torch
# that host/train/provision.sh brought, and TensorBoard. A second run only looks.
set -euo pipefail

readonly wanted='transformers==5.23.0 numpy==2.4.6 psutil==7.2.2 tensorboard==2.21.0 pandas==3.1.1 pyarrow==26.0.1 selenium==4.51.0'
# Those that would bring another torch come without what they depend on; that is here already.
readonly alone='accelerate==1.15.0'
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly root store=$root/.peers

fail() { # fail WHAT HINT
	printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
	exit 1
}

[ "$(cat "$store/wanted" 2>/dev/null || true)" = "$wanted $alone" ] && exit
"$root/host/train/provision.sh"
[ -e "$root/.libtorch/site-packages/torch/__init__.py" ] ||
	fail "the peers need torch as a Python package, and this libtorch is none: $root/.libtorch/site-packages/torch" \
		"unset LIBTORCH, remove $root/.libtorch and run this again; or leave the comparisons out: make test-peers PEERS=skip"
rm -rf "$store"
mkdir -p "$store"
printf 'peers: installing %s %s\n' "$wanted" "$alone"
install() {
	python3 -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --root-user-action=ignore \
		--target "$store/site-packages" "$@"
}
# shellcheck disable=SC2086 # lists of words
install $wanted && install --no-deps $alone ||
	fail "pip could not install the peers (its own words are above)" \
		"look at the network; or leave the comparisons out: make test-peers PEERS=skip"
printf '%s' "$wanted $alone" >"$store/wanted"
