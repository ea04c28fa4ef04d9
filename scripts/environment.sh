#!/usr/bin/env bash
# Sourced by the other scripts: finds a Python, makes an environment of its own and installs the pinned packages.
# PYTHON=/path/to/python chooses the interpreter; it must be 3.10, 3.11 or 3.12.

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.10 python3 python}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: Python 3.10, 3.11 or 3.12 is needed${PYTHON:+, and PYTHON=$PYTHON is none of them}; set PYTHON=/path/to/python" >&2
  return 2
}

# make_environment FOLDER REQUIREMENTS: an environment with exactly these packages; done once, again when they change.
make_environment() {
  local folder=$1 requirements=$2 python stamp
  stamp=$(cat "$requirements" requirements.txt | cksum)
  if [ "$(cat "$folder/.installed" 2>/dev/null)" = "$stamp" ]; then
    echo "environment $folder is up to date"
    return
  fi
  python=$(find_python) || return
  echo "making the environment $folder with $("$python" --version) and $requirements (a few minutes) ..."
  "$python" -m venv --clear "$folder"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
  echo "$stamp" > "$folder/.installed"
}
