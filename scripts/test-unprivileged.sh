#!/usr/bin/env bash
# Runs the mounted tests as a user without privileges. Root only: see scripts/unprivileged.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 0755 "$work"

# The test binary and the program, where that user can read them.
cargo test --no-run --test it --message-format=json 2>/dev/null |
    python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable"): print(message["target"]["name"], message["executable"])' >"$work/built"
for name in it dsfs; do
    cp "$(sed -n "s/^$name //p" "$work/built")" "$work/$name"
done

DSFS_TEST_PROGRAM="$work/dsfs" scripts/unprivileged.sh "$work/it" semantics:: tools:: upgrade:: --test-threads=2
