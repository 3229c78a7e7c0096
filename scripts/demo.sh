#!/usr/bin/env bash
# From a fresh clone to sample datasets in a directory: installs what is missing, builds, mounts.
# Running it again only mounts again; what was committed or staged in the demo stays.
#
#   scripts/demo.sh [MOUNTPOINT]          default: ~/dsfs-demo
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'demo: %s\n' "$*"; }
fail() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

missing=()
command -v fusermount3 >/dev/null || missing+=(fuse3)
command -v cc >/dev/null || missing+=(build-essential)
if [ "${#missing[@]}" -gt 0 ]; then
    command -v apt-get >/dev/null || fail "please install: ${missing[*]}"
    say "installing ${missing[*]}"
    as_root apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q "${missing[@]}"
fi
command -v cargo >/dev/null || fail "Rust is missing: https://rustup.rs has the one command that installs it"
[ -e /dev/fuse ] || as_root modprobe fuse || fail "/dev/fuse is missing; in a container: --device /dev/fuse --cap-add SYS_ADMIN"

say "building dsfs (some minutes the first time)"
cargo build --release --locked

# The program comes from where cargo puts it, whatever the settings.
program="${CARGO_TARGET_DIR:-target}/release/dsfs"
say "the program is $program"
exec "$program" demo "$@"
