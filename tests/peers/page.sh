#!/usr/bin/env bash
# Looks at TensorBoard's page in Chromium. It and its driver come from the system, else from Debian's
# archive, which takes root. Where there is neither, this says so and ends well.
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
	echo 'peers: installing chromium and its driver by apt-get'
	"${install[@]}" >/dev/null || { "${root[@]}" apt-get update --quiet && "${install[@]}"; } >/dev/null || return
	present
}

if ! provision; then
	echo 'SKIPPED: no Chromium here, and none to be had by apt-get without a password:'
	echo 'install chromium and chromium-driver to have the page of TensorBoard looked at'
	exit
fi
python3 tests/peers/page.py "$1" "$2" "$(command -v chromium)" "$(command -v chromedriver)"
