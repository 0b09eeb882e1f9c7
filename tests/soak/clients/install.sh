#!/bin/sh
# Installs every client, in exactly pinned versions, into the folder that the first argument names.
# What is there already in the wanted versions stays as it is.
set -eu
[ $# -eq 1 ] || { echo "usage: install.sh FOLDER" >&2; exit 64; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
into=$(cd "$1" && pwd)

# A folder is up to date when it holds a copy of the list that it was installed from.
installed() { cmp -s "$here/$1" "$into/$2/installed-from"; }

# The one Python that every client accepts and that all pinned packages have builds for.
python=
for candidate in python3.12 $(ls -d "$(pyenv root 2>/dev/null)"/versions/3.12.*/bin/python3 2>/dev/null | sort -rV) python3; do
    if "$candidate" -c 'import sys; sys.exit(not sys.version_info[:2] == (3, 12))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || { echo "CANNOT RUN: the Python clients need Python 3.12" >&2; exit 1; }

for list in "$here"/requirements/*.txt; do
    name=$(basename "$list" .txt)
    installed "requirements/$name.txt" "$name" && continue
    rm -rf "${into:?}/$name"
    "$python" -m venv "$into/$name"
    # Each list is complete, so nothing has to be resolved, and no range that a package states
    # for what it depends on can bring in anything else.
    "$into/$name/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: -r "$list"
    cp "$list" "$into/$name/installed-from"
done

if ! installed package.json javascript; then
    rm -rf "$into/javascript"
    mkdir -p "$into/javascript"
    cp "$here/package.json" "$into/javascript/"
    (
        cd "$into/javascript"
        npm install --ignore-scripts --no-audit --no-fund --no-package-lock --loglevel=error
        # These two put their binary, which came with the packages, in its place.
        npm rebuild --loglevel=error @anthropic-ai/claude-code opencode-ai
    )
    cp "$here/package.json" "$into/javascript/installed-from"
fi
echo "the clients are installed"
