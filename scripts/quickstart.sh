#!/usr/bin/env bash
# Sets everything up and runs the main job: train a small CrossViT on handwritten digits on the CPU, score its last
# checkpoint, show the result. Needs Python 3.10 to 3.12 and a few minutes; can be run again. Arguments go to train.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

make_environment .venv requirements.txt
export PATH="$PWD/.venv/bin:$PATH"
output=runs/quickstart-$(date +%Y%m%d-%H%M%S)

echo "training: configs/digits.yaml on the CPU, into $output"
python train.py --config configs/digits.yaml --output "$output" "$@"
echo
echo "validating the last checkpoint"
score=$(python validate.py --config configs/digits.yaml --ckpt_path "$output")
head -n -1 <<< "$score"
echo "run folder      $output"
echo "curves          $output/curves.png"
tail -n 1 <<< "$score"
