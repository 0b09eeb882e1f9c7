#!/bin/sh
# Runs the client tests in a network namespace that has loopback only; with --plain, a script.
set -eu
cd "$(dirname "$0")"
# Not `npm ci`: npm leaves the binaries of other platforms out of the lock file and then misses them.
if ! [ node_modules/.installed -nt package.json ]; then
    npm install --no-save --no-audit --no-fund
    touch node_modules/.installed
fi
# pi needs a newer Node than some systems have.
PATH=$PWD/node_modules/node/bin:$PATH
export PATH
if unshare --net true 2>/dev/null; then
    ns="unshare --net"
elif unshare --user --map-root-user --net true 2>/dev/null; then
    ns="unshare --user --map-root-user --net"
else
    echo "CANNOT RUN: the client tests need a network namespace (root, or user namespaces): no client is started where it could reach anything" >&2
    exit 1
fi
how="--test --test-concurrency=1"
if [ "${1-}" = --plain ]; then
    shift
    how=
fi
exec $ns sh -c 'ip link set lo up && exec node "$@"' run $how "$@"
