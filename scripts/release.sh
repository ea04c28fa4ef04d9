#!/usr/bin/env bash
# Everything a release must pass: the tests, the slow tests, the logits of all models, the oldest MindSpore, the main job.
# The oldest MindSpore needs Python 3.10 or 3.11 (PYTHON=...).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

./scripts/test.sh
./scripts/test.sh -m slow
.venv-test/bin/python scripts/check_golden.py
./scripts/test.sh --mindspore 2.7.0
./scripts/quickstart.sh
