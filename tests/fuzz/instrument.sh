#!/usr/bin/env bash
# Cargo's RUSTC_WORKSPACE_WRAPPER for `make fuzz`: counts which edges of this project's own code run, and
# traces what it compares. The dependencies stay as they are, so that none is built again. These are LLVM's
# own options, which stable rustc passes on; the fuzzer's library has the functions they call.
set -euo pipefail
case " $* " in
*' --crate-name build_script_build '* | *' --crate-type proc-macro '* | *' -vV '*) exec "$@" ;;
esac
args=()
while [ $# -gt 0 ]; do
	# A plugin's library has one name in every build, and no place for the fuzzer's functions.
	if [ "$1 ${2:-}" = '--crate-type cdylib' ]; then shift 2; else
		args+=("$1")
		shift
	fi
done
exec "${args[@]}" \
	-Cpasses=sancov-module \
	-Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares
