#!/bin/sh
# Runs inside an execution image while it is built; see Containerfile.execution. It must work with a bare POSIX shell,
# and must leave nothing that depends on the time or on this host: no byte code, no caches, no logs.
set -eu
context=/run/airferry
export PYTHONDONTWRITEBYTECODE=1

if [ -s "$context/wheels/requirements.txt" ]; then
    # pip is brought along as a wheel, since a base need not have one. `--no-deps`: the list is closed already.
    set -- "$context"/wheels/pip-*.whl
    "$PYTHON_BIN" "$1/pip" install \
        --no-index --find-links "$context/wheels" --require-hashes --no-deps \
        --no-compile --no-cache-dir --disable-pip-version-check --no-warn-script-location \
        --break-system-packages --root-user-action ignore --quiet \
        --requirement "$context/wheels/requirements.txt"
fi

tab=$(printf '\t')
while IFS="$tab" read -r folder target; do
    rm -rf "$target"
    mkdir -p "$(dirname "$target")"
    cp -R -P -p "$context/overlays/$folder" "$target"
done < "$context/overlays.tsv"
