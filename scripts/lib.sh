# Functions that the scripts share: to be sourced by bash, not run.
#
#   ensure_setup [--tests]  installs what is missing (scripts/setup); quick when nothing is
#   run_as_user CMD…      runs a command as the ordinary user, in the checkout with its virtual environment on PATH
#   run_pytest ARG…       runs pytest so, on all CPUs, a file on one worker; byte code goes to the user's cache
#
# Started as root, the ordinary user is `airferry` (or $AIRFERRY_USER) and the checkout a copy in its home, as the clone
# may be where that user cannot read. Started by anybody else, it is that user and the clone itself.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
if [ "$(id -u)" -eq 0 ]; then
  ordinary_user=${AIRFERRY_USER:-airferry}
else
  ordinary_user=$(id -un)
fi

say() { printf '%s\n' "$*" >&2; }

fail() {
  say "error: $*"
  exit 4
}

home_of() { getent passwd "$1" | cut -d: -f6; }

# Where the commands run.
checkout() {
  if [ "$(id -u)" -eq 0 ]; then
    printf '%s/checkout\n' "$(home_of "$ordinary_user")"
  else
    printf '%s\n' "$repository"
  fi
}

runtime_folder() {
  local user_id folder
  user_id=$(id -u "$ordinary_user")
  for folder in "${XDG_RUNTIME_DIR:-}" "/run/user/$user_id" "/tmp/airferry-runtime-$user_id"; do
    if [ -n "$folder" ] && [ -d "$folder" ] && [ "$(stat -c %u "$folder")" = "$user_id" ]; then
      printf '%s\n' "$folder"
      return
    fi
  done
  folder=/tmp/airferry-runtime-$user_id
  mkdir -m 700 "$folder"
  printf '%s\n' "$folder"
}

ensure_setup() { SETUP_IS_A_PART=yes "$repository/scripts/setup" "$@"; }

run_as_user() {
  local folder path runtime
  folder=$(checkout)
  path=$folder/.venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
  runtime=$(runtime_folder)
  if [ "$(id -u)" -ne 0 ]; then
    (cd "$folder" && exec env PATH="$folder/.venv/bin:$PATH:/usr/sbin:/sbin" XDG_RUNTIME_DIR="$runtime" "$@")
    return
  fi
  # The host's PIP_*, SSL_* and proxy variables stay; what names root's own folders goes.
  (cd "$folder" && exec env -u TMPDIR -u PIP_CACHE_DIR -u XDG_CACHE_HOME -u XDG_CONFIG_HOME -u XDG_DATA_HOME \
    -u DBUS_SESSION_BUS_ADDRESS -u VIRTUAL_ENV -u MAIL \
    HOME="$(home_of "$ordinary_user")" USER="$ordinary_user" LOGNAME="$ordinary_user" SHELL=/bin/bash \
    XDG_RUNTIME_DIR="$runtime" PATH="$path" \
    runuser -u "$ordinary_user" -- "$@")
}

run_pytest() {
  local cache
  cache=$(home_of "$ordinary_user")/.cache
  remove_storage_of_dead_runs
  # Fixtures of a module are made once, as a file's tests stay together; in order, so that the long ones begin first.
  run_as_user env PYTHONPYCACHEPREFIX="$cache/airferry-byte-code" \
    pytest --numprocesses auto --dist loadfile --no-loadscope-reorder "$@"
}

# What a killed run left in container storage belongs to subordinate IDs, and pytest can only rename it, to `garbage-*`.
remove_storage_of_dead_runs() {
  local folder
  for folder in "${TMPDIR:-/tmp}/pytest-of-$ordinary_user"/garbage-*; do
    if [ -d "$folder" ]; then run_as_user buildah unshare rm -rf "$folder" || true; fi
  done
}
