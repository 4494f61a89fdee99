#!/bin/sh
# Installs airferry out of a bundle: no network, no pip, no venv, no root. Needs a Python of the versions that the folder
# `environments` names, with its standard library (Debian: python3-minimal and libpython3-stdlib).
#
#   sh airferry-loader/install DIR        then: DIR/bin/airferry verify …
#
# Another interpreter: PYTHON=/path/to/python3 sh airferry-loader/install DIR
set -eu
# with it, `cd` goes to folders of other places, and prints them
unset CDPATH

here=$(cd -- "$(dirname -- "$0")" && pwd -P)

fail() {
  echo "install: error: $*" >&2
  exit 4
}

# a text as one word of a shell line, whatever stands in it
quoted() { printf '%s' "$1" | sed "s/'/'\\\\''/g; 1s/^/'/; \$s/\$/'/"; }

if [ $# -ne 1 ] || [ -z "$1" ]; then
  echo "usage: sh $0 DIR" >&2
  exit 2
fi
case $1 in
  /*) target=$1 ;;
  *) target=$PWD/$1 ;;
esac
case $target in
  *"
"*) fail "the folder's name has a line feed: choose another" ;;
esac

# short options alone: BusyBox knows no others
(cd "$here" && sha256sum -c SHA256SUMS >/dev/null) || fail "files of this folder are damaged; unpack it again"

# Python runs with -I throughout: the current folder may be the medium, and what lies there is not to be imported
python=
seen=
for name in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
  tag=$("$name" -I -c 'import os, sys; print("cp%d%d-%s" % (*sys.version_info[:2], os.uname()[4]))' 2>/dev/null) || continue
  # listed, not just there: the folder may have held files before the archive was unpacked over it
  if [ -n "$(sed -n "s,^[0-9a-f]*  environments/$tag\$,listed,p" "$here/SHA256SUMS")" ]; then
    python=$(command -v "$name")
    # the program that starts it is called from any folder
    case $python in /*) ;; *) python=$PWD/$python ;; esac
    break
  fi
  seen="$seen $name ($tag)"
done
[ -n "$python" ] || fail "no Python fits: found${seen:- none}, wanted one of: $(cd "$here/environments" && echo *)"

"$python" -I -c 'import asyncio, dataclasses, http.client, json, shutil, zipfile' 2>/dev/null ||
  fail "$python lacks parts of its standard library; on Debian: apt-get install libpython3-stdlib"

mkdir -p "$target/bin"
target=$(cd -- "$target" && pwd -P)
rm -rf "$target/lib.new"
mkdir "$target/lib.new"
while read -r wheel; do
  "$python" -I -m zipfile -e "$here/wheels/$wheel" "$target/lib.new"
done <"$here/environments/$tag"
rm -rf "$target/lib"
mv "$target/lib.new" "$target/lib"

# never through a link that lay there
rm -f "$target/bin/airferry.py" "$target/bin/airferry.new"
cat >"$target/bin/airferry.py" <<'SCRIPT'
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "lib"))
sys.argv[0] = "airferry"

from airferry.cli import main

main()
SCRIPT
cat >"$target/bin/airferry.new" <<SCRIPT
#!/bin/sh
exec $(quoted "$python") -I $(quoted "$target/bin/airferry.py") "\$@"
SCRIPT
chmod 755 "$target/bin/airferry.new"
mv "$target/bin/airferry.new" "$target/bin/airferry"
"$target/bin/airferry" --version
