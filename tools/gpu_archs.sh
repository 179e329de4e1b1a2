#!/usr/bin/env bash
# Prints the GPU architectures of the cards in this machine as NIBBLE_CUDA_ARCHS takes them ("75;90a"),
# nothing without a card.
set -u
nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
  sed -nE 's/^ *([0-9]+)\.([0-9]) *$/\1\2/p' | sed 's/^90$/90a/' | sort -u | paste -sd ';'
