#!/usr/bin/env bash
# Tests that the real git-lfs can clone what hub-git pushed. Uses the system's git-lfs, or else installs it
# from Debian's archive into .peers/git-lfs, without root. If both fail, prints that the test was skipped and
# exits with 0.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly store=$PWD/.peers/git-lfs

provision() { # prints the program's path
	command -v git-lfs && return
	local program=$store/usr/bin/git-lfs
	if [ ! -x "$program" ]; then
		command -v apt-get dpkg >/dev/null || return
		rm -rf "$store"
		mkdir -p "$store/archive"
		(cd "$store/archive" && apt-get download --quiet git-lfs) >&2 || return
		dpkg -x "$store"/archive/git-lfs_*.deb "$store" || return
	fi
	printf '%s\n' "$program"
}

if ! program=$(provision); then
	echo 'SKIPPED: git-lfs is not installed, and apt-get cannot download it: install it to run this test'
	exit
fi
"$program" version
GIT_LFS=$program cargo test --release --locked -p hub-git --features peers --test it -- peers::
