#!/usr/bin/env bash
# Runs a command as a user without privileges, with /dev/fuse of mode 0666 as distributions have it, and
# with an empty home of its own. Root only; what it changes is in a mount namespace of its own, and gone
# afterwards.
#
#   scripts/unprivileged.sh COMMAND [ARGUMENT ...]
set -euo pipefail

user=nobody
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -m 1777 "$work/tmp"
chmod 0755 "$work"
mknod -m 0666 "$work/fuse" c 10 229

unshare --mount --propagation private bash -euo pipefail -c '
    work=$1 user=$2
    shift 2
    mount --bind "$work/fuse" /dev/fuse
    export TMPDIR="$work/tmp" HOME="$work/tmp"
    exec setpriv --reuid="$user" --regid=nogroup --clear-groups "$@"
' unprivileged "$work" "$user" "$@"
