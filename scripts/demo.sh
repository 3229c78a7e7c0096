#!/usr/bin/env bash
# From a clone to a mount: installs what is missing, builds dsfs, and mounts two sample datasets.
# Needs no server and no account. Works twice in a row, and keeps what you did in between.
#
#   scripts/demo.sh [MOUNTPOINT]      ~/datasets if none is given
set -euo pipefail
cd "$(dirname "$0")/.."
mountpoint="${1:-$HOME/datasets}"

say() { printf '== %s\n' "$*"; }
need() { printf 'demo: %s\n' "$*" >&2; exit 1; }

missing=()
command -v fusermount3 >/dev/null || missing+=(fuse3)
command -v cc >/dev/null || missing+=(gcc libc6-dev)
if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    sudo=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || need "${missing[*]} is missing; as root: apt-get install ${missing[*]}"
        sudo=(sudo)
    fi
    "${sudo[@]}" apt-get update -q
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q "${missing[@]}"
fi
command -v cargo >/dev/null || need "Rust is missing: install it from https://rustup.rs, then run this again"
[ -e /dev/fuse ] || need "/dev/fuse is missing: in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"

say "building dsfs (the first time takes some minutes)"
cargo build --release --quiet
dsfs="$PWD/target/release/dsfs"

say "mounting the sample datasets at $mountpoint"
"$dsfs" demo "$mountpoint"
say "dsfs is $dsfs; to have it in your PATH: cargo install --path ."
