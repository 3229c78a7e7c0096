#!/usr/bin/env bash
# Runs the mounted tests as a user without privileges, with /dev/fuse of mode 0666 as distributions
# have it. Root only; what it changes is in a mount namespace of its own, and gone afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."

user=nobody
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -m 1777 "$work/tmp"
chmod 0755 "$work"

# The test binary, where that user can read it.
cargo test --no-run --test it --message-format=json 2>/dev/null |
    python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "it": print(message["executable"])' >"$work/path"
cp "$(cat "$work/path")" "$work/it"
mknod -m 0666 "$work/fuse" c 10 229

unshare --mount --propagation private bash -euo pipefail -c '
    work=$1 user=$2
    mount --bind "$work/fuse" /dev/fuse
    export TMPDIR="$work/tmp" HOME="$work/tmp"
    exec setpriv --reuid="$user" --regid=nogroup --clear-groups "$work/it" semantics:: tools:: --test-threads=2
' unprivileged "$work" "$user"
