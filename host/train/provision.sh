#!/usr/bin/env bash
# Brings libtorch 2.13 to .libtorch/site-packages, where .cargo/config.toml expects it.
#
# In this order: the folder LIBTORCH names; a python3 that has torch 2.13; a fresh install by pip, of files
# whose hashes are known (libtorch/*.txt). What is already there is kept: a second run only looks.
#
# A fresh install has what a training on the CPU needs, and CUDA's libraries where this machine has an
# NVIDIA driver. `--cuda` asks for them all the same; `--python` also for what `import torch` needs.
set -euo pipefail

readonly version=2.13.0
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly root store=$root/.libtorch
readonly site=$store/site-packages
readonly lists=$root/host/train/libtorch

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

# The lists of packages that this machine needs.
lists_for() { # lists_for [--cuda|--python]
	echo cpu
	if [ "$*" = --python ]; then
		echo cuda python
	elif [ "$*" = --cuda ] || [ -e /proc/driver/nvidia/version ] || [ -e /dev/nvidiactl ] || [ -e /dev/dxg ]; then
		echo cuda
	fi
}

# Whether every package of a list is installed.
has() { # has LIST
	local name release
	while IFS='=' read -r name _ release; do
		[ -d "$site/${name//-/_}-${release%% *}.dist-info" ] || return
	done < <(grep '==' "$lists/$1.txt")
}

# pip installs lists of packages into a folder. A python3 that has none gets one for the moment.
pip=()
install() { # install FOLDER LIST...
	local folder=$1 list files=()
	shift
	for list in "$@"; do files+=(--requirement "$lists/$list.txt"); done
	if [ ${#pip[@]} = 0 ]; then
		if "$python" -m pip --version >/dev/null 2>&1; then
			pip=("$python" -m pip)
		else
			"$python" "$lists/fetch_pip.py" "$store/pip.whl" ||
				fail "python3 has no pip, and it could not be fetched" \
					"install pip with your package manager (Debian: apt-get install python3-pip), or set LIBTORCH to a libtorch $version"
			pip=("$python" "$store/pip.whl/pip")
		fi
	fi
	TMPDIR=$partial/tmp "${pip[@]}" install --quiet --disable-pip-version-check --no-warn-conflicts --root-user-action=ignore \
		--no-deps --require-hashes --only-binary :all: --target "$folder" "${files[@]}" ||
		fail "pip could not install libtorch $version (its own words are above)" \
			"look at the network and at the disk, and run this again; or set LIBTORCH to a libtorch $version"
}

if [ -n "${LIBTORCH:-}" ] && [ "$(readlink -f "$LIBTORCH")" != "$(readlink -f "$site/torch" 2>/dev/null || true)" ]; then
	usable "$LIBTORCH" || fail "LIBTORCH holds no libtorch $version (found: $(version_of "$LIBTORCH" || true)): $LIBTORCH" \
		"point LIBTORCH at a libtorch $version, or unset it to have one installed"
	link "$(readlink -f "$LIBTORCH")"
	exit
fi
read -r -a wanted <<<"$(lists_for "$@" | tr '\n' ' ')"
missing=()
if usable "$site/torch"; then
	# What LIBTORCH or python3 had before is its owner's.
	[ -L "$site" ] || [ -L "$site/torch" ] && exit
	for list in "${wanted[@]}"; do has "$list" || missing+=("$list"); done
	[ ${#missing[@]} = 0 ] && exit
else
	missing=("${wanted[@]}")
fi
if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
	fail "this project is built for Linux x86-64 only, not $(uname -s) $(uname -m)" \
		"set LIBTORCH to a libtorch $version for your platform to try anyway"
fi
python=$(command -v python3) || fail "python3 is missing: libtorch comes as a Python package" \
	"install python3, or set LIBTORCH to a libtorch $version"

if ! usable "$site/torch"; then
	found=$("$python" -c 'import importlib.util as u; s = u.find_spec("torch"); print(s.submodule_search_locations[0] if s else "")' 2>/dev/null || true)
	if [ -n "$found" ] && usable "$found"; then
		link "$(readlink -f "$found")"
		exit
	fi
fi

mkdir -p "$store"
gigabytes=3 # 1.3 GB installed, as much again while pip unpacks it
case " ${missing[*]} " in *" cuda "*) gigabytes=10 ;; esac
free_gb=$(df -Pk "$store" | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free_gb" -ge "$gigabytes" ] || fail "libtorch needs $gigabytes GB of disk to install, $free_gb GB are free: $store" \
	"free some space, or set LIBTORCH to a libtorch $version elsewhere"
partial=$store/partial
rm -rf "$partial"
mkdir -p "$partial/tmp"
printf 'libtorch %s: installing for %s\n' "$version" "$(printf '%s, ' "${missing[@]}" | sed 's/, $//')"
install "$partial/site-packages" "${missing[@]}"
if usable "$site/torch"; then
	# The packages share folders: what was there comes along, by links.
	cp -al "$site/." "$partial/site-packages/"
fi
rm -rf "$site"
mv "$partial/site-packages" "$site" # one rename: what is there is whole
rm -rf "$partial" "$store/pip.whl"
usable "$site/torch" || fail "the installed torch is not a libtorch $version: $site" "remove $store and run this again"
