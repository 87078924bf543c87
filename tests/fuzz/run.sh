#!/usr/bin/env bash
# Fuzzes the readers of untrusted input. Usage: `run.sh [SECONDS [TARGET...]]`. Each target runs for SECONDS. Starts
# from the committed corpus and keeps new inputs in target/fuzz. With KEEP=1, new inputs are added to the committed
# corpus if they reach new code. SEED is passed to libFuzzer; without it, each run uses a random seed. Stops at the
# first failing input and prints the command that repeats it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly seconds=${1:-24}
shift || true
readonly all=(answers channel checkpoint data store)
targets=("$@")
[ $# -gt 0 ] || targets=("${all[@]}")
[[ $seconds =~ ^[1-9][0-9]*$ ]] || {
	printf 'error: SECONDS is not a positive number: %s\nhint: make fuzz SECONDS_EACH=600\n' "$seconds" >&2
	exit 2
}
for target in "${targets[@]}"; do
	[[ " ${all[*]} " = *" $target "* ]] || {
		printf 'error: unknown fuzz target: %s\nhint: choose from %s\n' "$target" "${all[*]}" >&2
		exit 2
	}
done

# Train a model to get a checkpoint for the fuzzer. Each of the fuzzer's first inputs is made from one file of the
# checkpoint. The input is a byte that selects the file, followed by the file's content.
run=target/fuzz/run
rm -rf "$run" target/fuzz/tiny
mkdir -p target/fuzz/tiny
for number in 1 2 3 4 5 6 7 8; do echo "fn f$number(x: i64) -> i64 { x + $number }" >"target/fuzz/tiny/$number.rs"; done
echo '{"model_type":"gpt2","vocab_size":260,"n_positions":8,"n_embd":2,"n_layer":1,"n_head":1}' >target/fuzz/tiny/config.json
target/release/host run --data target/fuzz/tiny --model target/fuzz/tiny/config.json --vocab-size 260 \
	--seq-length 8 --train-batch-size 1 --valid-batch-size 1 --shuffle-buffer 4 --max-train-steps 2 --num-warmup-steps 1 --device cpu \
	--name run --runs-dir target/fuzz >target/fuzz/run.log 2>&1 || { cat target/fuzz/run.log; exit 1; }
number=0
mkdir -p target/fuzz/corpus/checkpoint
for name in manifest.json config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json \
	trainer/{data,optimizer,random}.safetensors trainer/state.json; do
	{ printf "\\x$(printf %02x "$number")"; cat "$run/checkpoints/step-000002/$name"; } >"target/fuzz/corpus/checkpoint/${name//\//-}"
	number=$((number + 1))
done

bins=()
for target in "${all[@]}"; do bins+=(--bin "fuzz-$target"); done
RUSTC_WORKSPACE_WRAPPER=$PWD/tests/fuzz/instrument.sh \
	cargo build --release --locked --workspace --features host-fuzz/fuzz "${bins[@]}"

# Binaries started without cargo need the path of libtorch.
torch=$(sed -n 's/^LIBTORCH = { value = "\([^"]*\)".*/\1/p' .cargo/config.toml)
export LD_LIBRARY_PATH=${LIBTORCH:-$PWD/$torch}/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} OMP_NUM_THREADS=1 RUST_BACKTRACE=0
for target in "${targets[@]}"; do
	kept=tests/fuzz/corpus/$target found=target/fuzz/corpus/$target crashes=target/fuzz/crashes/$target-
	mkdir -p "$kept" "$found" "${crashes%/*}"
	printf '== fuzz %s, %d inputs, %d s\n' "$target" "$(find "$kept" -type f | wc -l)" "$seconds"
	target/release/fuzz-"$target" "$found" "$kept" -artifact_prefix="$crashes" -max_total_time="$seconds" -seed="${SEED:-0}" \
		-max_len=8192 -timeout=60 -rss_limit_mb=2048 -malloc_limit_mb=1024 -print_final_stats=1 \
		2>target/fuzz/"$target".log || {
		tail -60 target/fuzz/"$target".log
		printf 'fuzz: %s failed; to repeat: LD_LIBRARY_PATH=%s target/release/fuzz-%s PATH (see "Test unit written to")\n' \
			"$target" "$LD_LIBRARY_PATH" "$target"
		exit 1
	}
	grep -E 'INITED|DONE|stat::(number_of_executed|peak_rss)' target/fuzz/"$target".log
	[ -z "${KEEP:-}" ] || target/release/fuzz-"$target" -set_cover_merge=1 -use_counters=0 -use_cmp=0 \
		"$kept" "$found" 2>>target/fuzz/"$target".log
done
