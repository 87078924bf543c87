#!/usr/bin/env bash
# Installs the packages for comparisons into .peers/site-packages: TensorBoard, transformers, and the trackers
# to which the clients in examples/clients write. transformers uses the torch that host/train/provision.sh
# installs. Does nothing if the packages are already installed.
set -euo pipefail

readonly readers='transformers==5.23.0 numpy==2.4.6 psutil==7.2.2 tensorboard==2.21.0 pandas==3.1.1 pyarrow==26.0.1 selenium==4.51.0'
# The small distribution of MLflow, with the packages for its database store. The full distribution requires
# older versions of pandas and pyarrow, and also scikit-learn and matplotlib. All packages are resolved
# together, so that they agree on a version of protobuf.
readonly trackers='grpcio==1.85.3 grpcio-tools==1.85.1 grpcio-reflection==1.85.1 mlflow-skinny==3.17.2 sqlalchemy==2.1.9 alembic==1.20.1 wandb==0.31.0 trackio==0.43.0 prometheus-client==0.26.0'
readonly wanted="$readers $trackers"
# If pip installed the dependencies of these packages, it would install another torch. It therefore installs only the
# packages themselves. Their dependencies are already installed.
readonly alone='accelerate==1.15.0'
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly root store=$root/.peers

fail() { # fail WHAT HINT
	printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
	exit 1
}

[ "$(cat "$store/wanted" 2>/dev/null || true)" = "$wanted $alone" ] && exit
"$root/host/train/provision.sh" --python
[ -e "$root/.libtorch/site-packages/torch/__init__.py" ] ||
	fail "the peers need torch as a Python package, but this libtorch is not one: $root/.libtorch/site-packages/torch" \
		"unset LIBTORCH, remove $root/.libtorch and run this again; or skip the comparisons: make test-peers PEERS=skip"
rm -rf "$store"
mkdir -p "$store"
printf 'peers: installing %s %s\n' "$wanted" "$alone"
install() {
	python3 -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --root-user-action=ignore \
		--target "$store/site-packages" "$@"
}
# shellcheck disable=SC2086 # lists of words
install $wanted && install --no-deps $alone ||
	fail "pip could not install the peers (see its messages above)" \
		"check the network; or skip the comparisons: make test-peers PEERS=skip"
printf '%s' "$wanted $alone" >"$store/wanted"
