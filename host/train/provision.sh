#!/usr/bin/env bash
# Brings libtorch 2.13 to .libtorch/site-packages, where .cargo/config.toml expects it.
#
# In this order: the folder LIBTORCH names; a python3 that has torch 2.13; a fresh install by pip.
# What is already there is kept: a second run only looks.
set -euo pipefail

readonly version=2.13.0
readonly need_gb=10 # 4.7 GB installed, as much again while pip unpacks it
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly root store=$root/.libtorch
readonly site=$store/site-packages

fail() { # fail WHAT HINT
	printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
	exit 1
}

# The version of the libtorch in folder $1, or nothing. A wheel has version.py, a zip build-version.
version_of() {
	if [ -f "$1/version.py" ]; then
		sed -n "s/^__version__ = '\([0-9.]*\).*/\1/p" "$1/version.py"
	elif [ -f "$1/build-version" ]; then
		sed 's/+.*//' "$1/build-version"
	fi
}

usable() { [ -e "$1/lib/libtorch_cpu.so" ] && [ "$(version_of "$1")" = "$version" ]; }

# A wheel's libtorch finds CUDA in its sibling `nvidia` by $ORIGIN, which does not see through a
# link: so the whole site-packages is linked, and `torch` alone only where it stands by itself.
link() {
	rm -rf "$site"
	mkdir -p "$store"
	if [ "$(basename "$1")" = torch ]; then
		ln -s "$(dirname "$1")" "$site"
	else
		mkdir -p "$site"
		ln -s "$1" "$site/torch"
	fi
	printf 'libtorch %s: using %s\n' "$version" "$1"
}

pip_for() { # makes `$1 -m pip` work, or fails
	"$1" -m pip --version >/dev/null 2>&1 && return
	printf 'this python3 has no pip: installing it\n'
	"$1" -m ensurepip --user >/dev/null 2>&1 || "$1" -m ensurepip >/dev/null 2>&1 || true
	"$1" -m pip --version >/dev/null 2>&1 && return
	if command -v apt-get >/dev/null; then
		local as=()
		[ "$(id -u)" = 0 ] || as=(sudo -n)
		"${as[@]}" apt-get update -qq >/dev/null 2>&1 || true
		"${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-pip >/dev/null 2>&1 || true
		"$1" -m pip --version >/dev/null 2>&1 && return
	fi
	fail "python3 has no pip, and it could not be installed" \
		"install pip with your package manager (Debian: apt-get install python3-pip), or set LIBTORCH to a libtorch $version"
}

if [ -n "${LIBTORCH:-}" ] && [ "$(readlink -f "$LIBTORCH")" != "$(readlink -f "$site/torch" 2>/dev/null || true)" ]; then
	usable "$LIBTORCH" || fail "LIBTORCH holds no libtorch $version (found: $(version_of "$LIBTORCH" || true)): $LIBTORCH" \
		"point LIBTORCH at a libtorch $version, or unset it to have one installed"
	link "$(readlink -f "$LIBTORCH")"
	exit
fi
if usable "$site/torch"; then
	exit
fi
if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
	fail "this project is built for Linux x86-64 only, not $(uname -s) $(uname -m)" \
		"set LIBTORCH to a libtorch $version for your platform to try anyway"
fi
python=$(command -v python3) || fail "python3 is missing: libtorch comes as a Python package" \
	"install python3, or set LIBTORCH to a libtorch $version"

found=$("$python" -c 'import importlib.util as u; s = u.find_spec("torch"); print(s.submodule_search_locations[0] if s else "")' 2>/dev/null || true)
if [ -n "$found" ] && usable "$found"; then
	link "$(readlink -f "$found")"
	exit
fi

mkdir -p "$store"
free_gb=$(df -Pk "$store" | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free_gb" -ge "$need_gb" ] || fail "libtorch needs $need_gb GB of disk to install, $free_gb GB are free: $store" \
	"free some space, or set LIBTORCH to a libtorch $version elsewhere"
pip_for "$python"
partial=$store/partial
rm -rf "$partial"
mkdir -p "$partial/tmp"
printf 'libtorch %s: installing (about 2.5 GB to fetch, 4.7 GB on disk)\n' "$version"
TMPDIR=$partial/tmp "$python" -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --root-user-action=ignore \
	--target "$partial/site-packages" "torch==$version" ||
	fail "pip could not install torch $version (its own words are above)" \
		"look at the network and at the disk, and run this again; or set LIBTORCH to a libtorch $version"
rm -rf "$site"
mv "$partial/site-packages" "$site" # one rename: what is there is whole
rm -rf "$partial"
usable "$site/torch" || fail "the installed torch is not a libtorch $version: $site" "remove $store and run this again"
