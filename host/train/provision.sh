#!/usr/bin/env bash
# Installs or links libtorch 2.13 in .libtorch/site-packages, where .cargo/config.toml expects it.
#
# If LIBTORCH is set, links the folder that it names. Otherwise, if python3 has torch 2.13, links that. Otherwise,
# installs libtorch with pip. The files of a new installation are checked against known hashes (libtorch/*.txt). An
# existing installation is kept.
#
# A new installation contains the libraries for training on the CPU, and CUDA's libraries if this machine has an NVIDIA
# driver. `--cuda` always includes CUDA's libraries. `--python` includes them and what `import torch` needs.
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

# Prints the version of the libtorch in folder $1, if any. A wheel has a file version.py; a zip has build-version.
version_of() {
	if [ -f "$1/version.py" ]; then
		sed -n "s/^__version__ = '\([0-9.]*\).*/\1/p" "$1/version.py"
	elif [ -f "$1/build-version" ]; then
		sed 's/+.*//' "$1/build-version"
	fi
}

usable() { [ -e "$1/lib/libtorch_cpu.so" ] && [ "$(version_of "$1")" = "$version" ]; }

# A wheel's libtorch uses $ORIGIN to find CUDA in the folder `nvidia` next to it, and $ORIGIN does not follow links. The
# wheel's whole folder site-packages is therefore linked. A libtorch folder that is not named `torch`, for example from
# a zip, is linked alone.
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

# Prints the names of the package lists that this machine needs.
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

# Installs lists of packages into a folder with pip. If python3 has no pip, downloads it temporarily.
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
				fail "python3 has no pip, and pip could not be downloaded" \
					"install pip with your package manager (Debian: apt-get install python3-pip), or set LIBTORCH to the folder of a libtorch $version"
			pip=("$python" "$store/pip.whl/pip")
		fi
	fi
	TMPDIR=$partial/tmp "${pip[@]}" install --quiet --disable-pip-version-check --no-warn-conflicts --root-user-action=ignore \
		--no-deps --require-hashes --only-binary :all: --target "$folder" "${files[@]}" ||
		fail "pip could not install libtorch $version (see its output above)" \
			"check the network and the disk space and run this again, or set LIBTORCH to the folder of a libtorch $version"
}

if [ -n "${LIBTORCH:-}" ] && [ "$(readlink -f "$LIBTORCH")" != "$(readlink -f "$site/torch" 2>/dev/null || true)" ]; then
	usable "$LIBTORCH" || fail "LIBTORCH does not contain libtorch $version (found: $(version_of "$LIBTORCH" || true)): $LIBTORCH" \
		"set LIBTORCH to the folder of a libtorch $version, or unset it to install one"
	link "$(readlink -f "$LIBTORCH")"
	exit
fi
read -r -a wanted <<<"$(lists_for "$@" | tr '\n' ' ')"
missing=()
if usable "$site/torch"; then
	# A linked libtorch is the folder of LIBTORCH or of python3: do not change it.
	[ -L "$site" ] || [ -L "$site/torch" ] && exit
	for list in "${wanted[@]}"; do has "$list" || missing+=("$list"); done
	[ ${#missing[@]} = 0 ] && exit
else
	missing=("${wanted[@]}")
fi
if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
	fail "this project supports only Linux x86-64, not $(uname -s) $(uname -m)" \
		"to try anyway, set LIBTORCH to the folder of a libtorch $version for your platform"
fi
python=$(command -v python3) || fail "python3 is missing; it is needed to install libtorch" \
	"install python3, or set LIBTORCH to the folder of a libtorch $version"

if ! usable "$site/torch"; then
	found=$("$python" -c 'import importlib.util as u; s = u.find_spec("torch"); print(s.submodule_search_locations[0] if s else "")' 2>/dev/null || true)
	if [ -n "$found" ] && usable "$found"; then
		link "$(readlink -f "$found")"
		exit
	fi
fi

mkdir -p "$store"
gigabytes=3 # the result takes 1.3 GB, and the files that pip unpacks take 1.3 GB more
case " ${missing[*]} " in *" cuda "*) gigabytes=10 ;; esac
free_gb=$(df -Pk "$store" | awk 'NR == 2 { print int($4 / 1048576) }')
[ "$free_gb" -ge "$gigabytes" ] || fail "installing libtorch needs $gigabytes GB of disk space, but only $free_gb GB are free: $store" \
	"free some space, or set LIBTORCH to the folder of an existing libtorch $version"
partial=$store/partial
rm -rf "$partial"
mkdir -p "$partial/tmp"
printf 'libtorch %s: installing for %s\n' "$version" "$(printf '%s, ' "${missing[@]}" | sed 's/, $//')"
install "$partial/site-packages" "${missing[@]}"
if usable "$site/torch"; then
	# A new and an installed package can have files in the same folder, so the two trees are merged, as hard links.
	# A new file replaces an installed one.
	mv "$partial/site-packages" "$partial/new"
	cp -al "$site" "$partial/site-packages"
	cp -alf "$partial/new/." "$partial/site-packages/"
fi
rm -rf "$site"
mv "$partial/site-packages" "$site" # one rename, so that an installation is never incomplete
rm -rf "$partial" "$store/pip.whl"
usable "$site/torch" || fail "the installation does not contain libtorch $version: $site" "remove $store and run this again"
