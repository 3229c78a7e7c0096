#!/usr/bin/env bash
# Runs every test, after installing what they need. Works twice in a row; the second time is quick.
#
#   scripts/test.sh            everything, in order of cost
#   scripts/test.sh NAME...    only the tests whose names contain NAME
#
# Needs Rust (https://rustup.rs), Debian or Ubuntu, and /dev/fuse. As root it installs packages and
# also runs the mounted tests as an unprivileged user.
set -euo pipefail
cd "$(dirname "$0")/.."
export DSFS_TEST_VENV="${DSFS_TEST_VENV:-$PWD/target/test-venv}"

step() { printf '\n== %s\n' "$*"; }

step "tools and test servers"
scripts/test-env.sh

if command -v cargo-nextest >/dev/null; then
    run=(cargo nextest run --no-fail-fast)
else
    run=(cargo test --no-fail-fast --)
fi

if [ $# -gt 0 ]; then
    exec "${run[@]}" "$@"
fi

step "format"
cargo fmt --check
step "lints"
cargo clippy --all-targets --quiet -- -D warnings
step "tests"
"${run[@]}"
step "examples in the documentation"
cargo test --doc --quiet
if [ "$(id -u)" = 0 ]; then
    step "mounted tests again, as an unprivileged user"
    scripts/test-unprivileged.sh
fi
step "all passed"
