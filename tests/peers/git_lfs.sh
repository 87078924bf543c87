#!/usr/bin/env bash
# Lets the real git-lfs clone what hub-git pushed. It comes from the system, else from Debian's archive
# into .peers/git-lfs, without root. Where neither has it, this says so and ends well.
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
	echo 'SKIPPED: no git-lfs here, and none to be had by apt-get: install it to have what was pushed cloned by it'
	exit
fi
"$program" version
GIT_LFS=$program cargo test --release --locked -p hub-git --features peers --test it -- peers::
