#!/bin/sh
# Documentation checks: links lead somewhere, and nothing names a machine or a secret.
set -eu
cd "$(dirname "$0")/.."
bad=0
for file in README.md CHANGELOG.md docs/*.md; do
    for link in $(grep -oE '\]\([^)#]+' "$file" | sed 's/^](//' | grep -vE '^https?:'); do
        [ -e "$(dirname "$file")/$link" ] || { echo "$file: broken link: $link" >&2; bad=1; }
    done
done
# Every command that the docs name exists.
for command in $(grep -ohE '`outrigger [a-z]+' README.md docs/[a-z]*.md | awk '{print $2}' | sort -u); do
    grep -qi "^    $command(" src/cli.rs || { echo "docs name \`outrigger $command\`, which does not exist" >&2; bad=1; }
done
exit $bad
