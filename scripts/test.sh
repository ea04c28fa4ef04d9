#!/usr/bin/env bash
# Sets everything up and runs lint, format, types and tests.
#   ./scripts/test.sh                       the pinned environment, all but the slow tests
#   ./scripts/test.sh --mindspore 2.7.0     the same tests on another MindSpore, in an environment of its own
#   ./scripts/test.sh -m slow               anything else goes to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

folder=.venv-test requirements=requirements-dev.txt
if [ "${1:-}" = --mindspore ]; then
  version=${2:?--mindspore needs a version, such as 2.7.0}
  shift 2
  folder=.venv-mindspore-$version
  mkdir -p "$folder"
  requirements=$folder.txt
  sed "s/^mindspore==.*/mindspore==$version/; /^-r /d" requirements.txt requirements-dev.txt > "$requirements"
fi
make_environment "$folder" "$requirements"
export PATH="$PWD/$folder/bin:$PATH"

echo "== lint and format"
ruff check .
ruff format --check .
echo "== types"
pyright
echo "== tests with MindSpore $(python -c 'from importlib.metadata import version; print(version("mindspore"))')"
# Two at a time, a file each: compiling graphs, most of the work, uses one core.
OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile "$@"
