#!/usr/bin/env bash
# RUSTC_WORKSPACE_WRAPPER for `make fuzz`: instruments the crates of this workspace with edge counters and
# traced comparisons. Dependencies are not instrumented, so cargo does not rebuild them. The options at the end of this
# file also work with stable rustc, which passes them to LLVM. libFuzzer defines the functions that the instrumented
# code calls.
set -euo pipefail
case " $* " in
*' --crate-name build_script_build '* | *' --crate-type proc-macro '* | *' -vV '*) exec "$@" ;;
esac
args=()
while [ $# -gt 0 ]; do
	# Skip plugin libraries: they have the same file name in every build, and do not link libFuzzer.
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
