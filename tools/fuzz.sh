#!/usr/bin/env bash
# Runs fuzz targets two at a time, each from its corpus. Usage: fuzz.sh BINARY_DIR SECONDS [TARGET...]
set -euo pipefail
directory=$1
seconds=$2
shift 2
root=$(cd "$(dirname "$0")/.." && pwd)
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  for binary in "$directory"/*_fuzz; do targets+=("$(basename "$binary" _fuzz)"); done
fi

run_one() {
  local name=$1 work
  work=$(mktemp -d)
  mkdir "$work/corpus"
  if "$directory/${name}_fuzz" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
      -artifact_prefix="$work/" "$work/corpus" "$root/fuzz/corpus/$name" >"$work/log" 2>&1; then
    echo "fuzz $name: $(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$work/log") runs, no finding"
    rm -rf "$work"
  else
    tail -n 40 "$work/log"
    echo "fuzz $name: finding in $work"
    return 1
  fi
}

failed=0
while [ ${#targets[@]} -gt 0 ]; do
  pids=()
  for name in "${targets[@]:0:2}"; do run_one "$name" & pids+=($!); done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  targets=("${targets[@]:2}")
done
exit $failed
