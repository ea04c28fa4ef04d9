#!/usr/bin/env bash
# Everything a release must pass: the tests, the slow tests, the published figures, the oldest MindSpore, the main job.
# The oldest MindSpore needs Python 3.10 or 3.11 (PYTHON=...). Run it as root, with `ip` and `mount`: tests of network
# namespaces and full disks, skipped elsewhere for want of rights, fail here when they cannot run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CROSSVIT_RELEASE=1
./scripts/test.sh
./scripts/test.sh -m slow
.venv-test/bin/python scripts/verify_claims.py
./scripts/test.sh --mindspore 2.7.0
./scripts/quickstart.sh
