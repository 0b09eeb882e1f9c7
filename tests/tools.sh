#!/bin/sh
# Installs what the tests need and the machine lacks. Nothing is taken from what somebody
# installed by hand: whatever is missing is installed here, or said loudly.
set -u
missing=""
for pair in ip:iproute2 unshare:util-linux setpriv:util-linux mount:mount taskset:util-linux chromium:chromium; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing
    else
        echo "MISSING: install$missing (as root, with the system's package manager), or tests that need them will not run" >&2
    fi
fi
for tool in node npm; do
    command -v "$tool" >/dev/null 2>&1 || { echo "MISSING: $tool, which the tests with the official libraries and the real CLIs need" >&2; exit 1; }
done
