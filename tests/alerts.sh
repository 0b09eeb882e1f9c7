#!/bin/sh
# Tries the alert rules with promtool. Without one on this machine, it is taken out of Debian's
# package, which would otherwise start a server.
set -eu
cd "$(dirname "$0")/.."
promtool=$(command -v promtool || true)
if [ -z "$promtool" ]; then
    tools=target/tools
    promtool=$tools/usr/bin/promtool
    if [ ! -x "$promtool" ]; then
        mkdir -p "$tools"
        if ! command -v apt-get >/dev/null 2>&1; then
            echo "CANNOT RUN: the alert rules need promtool" >&2
            exit 1
        fi
        (cd "$tools" && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } && dpkg -x prometheus_*.deb .)
    fi
fi
"$promtool" check rules config/alerts.yaml
cd config && case $promtool in /*) ;; *) promtool=../$promtool ;; esac
"$promtool" test rules alerts.test.yaml
