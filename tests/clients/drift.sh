#!/bin/sh
# Plays all scenarios of the tests against another version of one CLI, and prints what differs.
# tests/clients/drift.sh RUNTIME VERSION [PACKAGE]; the exit code is 1 where something does.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
if [ $# -lt 2 ]; then
    echo "usage: $0 RUNTIME VERSION [PACKAGE]" >&2
    exit 64
fi
runtime=$1
version=$2
source=$root/src/adapter/runtime/$runtime.rs
if ! [ -f "$source" ]; then
    echo "\`$runtime\` is not a runtime; see src/adapter/runtime" >&2
    exit 64
fi
package=${3:-$(sed -n 's/^    package: "\(.*\)",$/\1/p' "$source")}
place=$root/target/drift/$runtime-$version
if ! [ -f "$place/.installed" ]; then
    mkdir -p "$place"
    echo '{"private":true}' > "$place/package.json"
    npm install --prefix "$place" --no-save --no-audit --no-fund --loglevel=error "$package@$version"
    touch "$place/.installed"
fi
[ -n "${OUTRIGGER:-}" ] || (cd "$root" && cargo build --locked)
cd "$here"
CLIS=$place/node_modules/.bin RUNTIMES=$runtime exec sh run.sh --plain drift.mjs "$runtime" "$version"
