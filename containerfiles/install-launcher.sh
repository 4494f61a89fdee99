#!/bin/sh
# Runs inside the launcher image while it is built; see Containerfile.launcher. It must work with a bare POSIX shell,
# and must leave nothing that depends on the time or on this host: no byte code, no caches, no logs.
set -eu
context=/run/airferry
export PYTHONDONTWRITEBYTECODE=1

packages() {
    missing=""
    for package in $PACKAGES; do
        dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed$' ||
            missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    if ! command -v apt-get >/dev/null; then
        echo "the launcher's base has no apt-get to install:$missing (set launcher_image.packages: [])" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update --quiet
    # shellcheck disable=SC2086
    apt-get install --quiet --yes --no-install-recommends $missing
    apt-get clean
    rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/log/alternatives.log /var/cache/ldconfig/aux-cache \
        /var/cache/debconf/*-old /var/lib/dpkg/*-old
}

environment() {
    "$PYTHON_BIN" -m venv --without-pip .venv
    if [ -s "$context/wheels/requirements.txt" ]; then
        set -- "$context"/wheels/pip-*.whl
        .venv/bin/python "$1/pip" install \
            --no-index --find-links "$context/wheels" --require-hashes --no-deps \
            --no-compile --no-cache-dir --disable-pip-version-check --no-warn-script-location \
            --root-user-action ignore --quiet \
            --requirement "$context/wheels/requirements.txt"
    fi
}

"$1"
