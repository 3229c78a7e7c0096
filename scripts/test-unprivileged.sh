#!/usr/bin/env bash
# Runs the mounted tests as a user without privileges. Root only: see scripts/unprivileged.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 0755 "$work"

# The test binary, where that user can read it.
cargo test --no-run --test it --message-format=json 2>/dev/null |
    python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "it": print(message["executable"])' >"$work/path"
cp "$(cat "$work/path")" "$work/it"

scripts/unprivileged.sh "$work/it" semantics:: tools:: --test-threads=2
