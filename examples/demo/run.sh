#!/usr/bin/env bash
# Trains a small GPT-2 on the sources of this project's dependencies, with four plugins. Checkpoints are
# delivered to a folder and, by git, to a local bare repository; a gRPC client watches.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

host=target/release/host
name=demo-$(date +%Y%m%d-%H%M%S)
run=demo/runs/$name
remote=$PWD/demo/remote.git
mkdir -p demo/watched
[ -d "$remote" ] || git init --quiet --bare "$remote"

data=()
while read -r folder; do
	data+=(--data "$folder")
done < <(cargo metadata --locked --format-version 1 | python3 examples/demo/corpus.py)

# A separate client that waits for the run's address and reads its events over gRPC.
(
	until [ -s "$run/grpc.addr" ]; do sleep 0.2; done
	exec "$host" watch "$run" --json >"demo/watched/$name.jsonl"
) 2>/dev/null &
watcher=$!
trap 'kill $watcher 2>/dev/null || true' EXIT

"$host" run examples/demo/demo.toml "${data[@]}" --runs-dir demo/runs --name "$name" \
	--plugin weight-decay --plugin perplexity \
	--plugin "local-disk:dir=$PWD/demo/kept,keep=2" --plugin "hub-git:repo=$remote"
wait $watcher || true

printf '\nread over gRPC      %s events: demo/watched/%s.jsonl\n' "$(wc -l <"demo/watched/$name.jsonl")" "$name"
printf 'read it again       %s watch demo/runs/%s\n' "$host" "$name"
printf 'pushed by git       git -C demo/remote.git log --oneline %s\n' "$name"
git -C "$remote" log --format='                    %h %s' "$name"
printf '\nthe model continues "impl":\n\n'
"$host" generate "$run" --prompt 'impl' --max-new-tokens 120 --temperature 0.7 --top-k 40 2>/dev/null
printf '\n'
printf '\nTo show all runs in TensorBoard (pip install tensorboard), run this; Ctrl-C ends it:\n\n'
printf '%s serve --runs-dir demo/runs --listen 127.0.0.1:50051 & tensorboard --grpc_data_provider=127.0.0.1:50051; kill $!\n' "$host"
