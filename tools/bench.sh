#!/usr/bin/env bash
# Runs every benchmark of a build. Usage: bench.sh BUILD_DIR
set -euo pipefail
grep -m 1 'model name' /proc/cpuinfo | sed 's/.*: /cpu: /'
echo "commit: $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
for binary in "$1"/benchmarks/bench_*; do
  echo
  echo "== $(basename "$binary")"
  "$binary"
done
