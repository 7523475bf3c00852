#!/bin/sh
# Prints the path of a Python 3.11 that can make virtual environments.
#
# It looks under the names python3.11, python3 and python in every folder of PATH, among
# pyenv's versions, and asks uv. Where PYTHON is set, that one is taken or refused. It
# downloads nothing. Without a Python 3.11 it says so in one line, with status 1.

set -uf

# Debian ships ensurepip, without which venv fails, in a package of its own.
check='import ensurepip, sys, venv
if sys.version_info[:2] == (3, 11): print(sys.executable)'

# Prints the path and ends the script if $1 is such a Python.
try() {
  path=$("$1" -c "$check" </dev/null 2>/dev/null) && [ -n "$path" ] || return 0
  echo "$path"
  exit 0
}

refuse() {
  echo "$1: vLLM's CPU build needs Python 3.11 with venv; get it with" \
    "\"apt install python3.11-venv\", \"uv python install 3.11\" or" \
    "\"pyenv install 3.11\", or name one: make PYTHON=/path/to/python3.11" >&2
  exit 1
}

if [ -n "${PYTHON:-}" ]; then
  try "$PYTHON"
  refuse "PYTHON=$PYTHON is no Python 3.11"
fi

for name in python3.11 python3 python; do
  IFS=:
  # Not the first of each name alone: pyenv puts one first that may only print an error.
  for folder in $PATH; do
    unset IFS
    [ ! -x "$folder/$name" ] || try "$folder/$name"
  done
done

set +f
for python in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.11*/bin/python; do
  [ ! -x "$python" ] || try "$python"
done

if command -v uv >/dev/null; then
  python=$(UV_PYTHON_DOWNLOADS=never uv python find --system 3.11 2>/dev/null) \
    && try "$python"
fi

refuse "No Python 3.11 was found"
