#!/bin/sh
# Creates .venv with uv and installs the project and its development tools into it. Safe to run twice and at the same time:
# a lock serialises, and nothing is done when pyproject.toml and constraints.txt have not changed since the last install.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

say() { printf '%s\n' "$*" >&2; }

find_uv() {
  if command -v uv >/dev/null 2>&1; then command -v uv; return 0; fi
  if [ -x .cache/uv/bin/uv ]; then echo .cache/uv/bin/uv; return 0; fi
  return 1
}

install_uv() {
  mkdir -p .cache
  if "$PYTHON" -m pip --version >/dev/null 2>&1; then
    say "uv is not installed: fetching it into .cache/uv"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target .cache/uv uv && return 0
  fi
  if "$PYTHON" -c 'import ensurepip' >/dev/null 2>&1; then
    say "uv is not installed: fetching it into .cache/uv"
    "$PYTHON" -m venv .cache/uv && .cache/uv/bin/pip install --quiet --disable-pip-version-check uv && return 0
  fi
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    say "neither uv, pip nor venv is there: installing Debian's python3-venv"
    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends python3-venv >/dev/null
    "$PYTHON" -m venv .cache/uv && .cache/uv/bin/pip install --quiet --disable-pip-version-check uv && return 0
  fi
  say "error: uv is not installed, and neither pip nor venv is there to fetch it."
  say "       Install one of them (for example: apt-get install python3-venv) and run this again."
  exit 1
}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  say "error: $("$PYTHON" --version 2>&1) is too old: Python 3.11 or newer is needed (set PYTHON=/path/to/python3.11)."
  exit 1
}

mkdir -p .cache
exec 9>.cache/install.lock
command -v flock >/dev/null 2>&1 && flock 9

want=$(cat pyproject.toml constraints.txt | cksum)
if [ -f .venv/.installed ] && [ "$(cat .venv/.installed)" = "$want" ]; then exit 0; fi

UV=$(find_uv) || { install_uv; UV=$(find_uv); }
say "installing into .venv (first time: under a minute on a warm cache, a few minutes on a slow network)"
[ -x .venv/bin/python ] || "$UV" venv --quiet --python "$PYTHON" .venv
"$UV" pip install --quiet --python .venv/bin/python --constraint constraints.txt --editable . --group dev
printf '%s\n' "$want" >.venv/.installed
