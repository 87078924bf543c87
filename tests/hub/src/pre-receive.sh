#!/bin/sh
# Checks a push in the same way as the Hub. Refuses a push with a large plain blob. Also refuses a push with an LFS
# pointer whose object was not uploaded. Each line of stdin has the form: OLD NEW REF.
set -eu
zero=0000000000000000000000000000000000000000
largest=10485760
objects="$(git rev-parse --absolute-git-dir)/lfs/objects"
while read -r _ new ref; do
    [ "$new" = "$zero" ] && continue
    git rev-list --objects "$new" --not --all |
        git cat-file --batch-check='%(objecttype) %(objectname) %(objectsize) %(rest)' |
        while read -r type oid size path; do
            [ "$type" = blob ] || continue
            if [ "$size" -gt "$largest" ]; then
                echo "Your push was rejected because it contains files larger than 10 MiB." >&2
                echo "Offending file: $path (ref: $ref)" >&2
                exit 1
            fi
            [ "$size" -lt 300 ] || continue
            pointer=$(git cat-file blob "$oid" | tr -d '\000')
            case $pointer in
            "version https://git-lfs.github.com/spec/v1"*) ;;
            *) continue ;;
            esac
            sha=$(printf '%s\n' "$pointer" | sed -n 's/^oid sha256://p')
            first=$(printf %.2s "$sha")
            second=$(printf %.4s "$sha" | tail -c 2)
            if [ ! -f "$objects/$first/$second/$sha" ]; then
                echo "Your push was rejected because an LFS pointer pointed to a file that does not exist." >&2
                echo "Offending file: $path (oid: $sha)" >&2
                exit 1
            fi
        done
done
