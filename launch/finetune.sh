#!/bin/bash
# Fine-tuning over the GPUs of one computer, or over PROCESSES processes without a GPU:
#   bash launch/finetune.sh launch/mine.toml data/run [PROCESSES]
# The same command continues where it ended.
set -euo pipefail
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
exec .venv/bin/torchrun --standalone --nproc-per-node "${3:-$((gpus > 0 ? gpus : 1))}" \
    --no-python .venv/bin/vla finetune "$1" --out "$2"
