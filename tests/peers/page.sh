#!/usr/bin/env bash
# Tests TensorBoard's page in Chromium. Uses the system's Chromium and driver, or else installs them with
# apt-get, which requires root. If neither is possible, prints that the test was skipped and exits with 0.
# Usage: page.sh HOST FOLDER
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

present() { command -v chromium >/dev/null && command -v chromedriver >/dev/null; }

provision() {
	present && return
	command -v apt-get >/dev/null || return
	local root=()
	[ "$(id -u)" = 0 ] || root=(sudo -n)
	local install=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet
		--no-install-recommends chromium chromium-driver)
	echo 'peers: installing chromium and its driver with apt-get'
	"${install[@]}" >/dev/null || { "${root[@]}" apt-get update --quiet && "${install[@]}"; } >/dev/null || return
	present
}

if ! provision; then
	echo 'SKIPPED: Chromium is not installed, and apt-get cannot install it without a password:'
	echo 'install chromium and chromium-driver to test the page of TensorBoard'
	exit
fi
python3 tests/peers/page.py "$1" "$2" "$(command -v chromium)" "$(command -v chromedriver)"
