#!/bin/sh
# Runs every fuzz target for FUZZ_SECONDS (60). cargo-fuzz is installed if it is missing; the
# stable compiler is told to take the sanitizer flags that it needs.
set -eu
cd "$(dirname "$0")/.."
command -v cargo-fuzz >/dev/null 2>&1 || cargo install cargo-fuzz --locked
for target in $(sed -n 's/^name = "\([a-z]*\)"$/\1/p' fuzz/Cargo.toml); do
    echo "== $target"
    RUSTC_BOOTSTRAP=1 cargo fuzz run "$target" -- -max_total_time="${FUZZ_SECONDS:-60}" -rss_limit_mb=512 -max_len=8192
done
