#!/usr/bin/env bash
# The tree is tidy, and tools/tidy.py finds each defect of the tree in this folder.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
python3 "$root/tools/tidy.py" "$root" || exit 1
findings=$(python3 "$root/tools/tidy.py" "$here")
if [ $? -ne 1 ]; then
  echo "tidy.py found nothing in tests/tidy"
  exit 1
fi
failed=0
for expected in \
  'src/engine/upward.h: no #pragma once' \
  'src/engine/upward.h: does not open with a comment' \
  'src/engine/upward.h: includes "server/nothing.h", which is not below src/' \
  'src/engine/upward.h: includes "text/words.h": engine may not know text' \
  'src/engine/upward.h: includes <nlohmann/json.hpp>; only base/json. may' \
  'src/engine/upward.h: no file of src/ includes it' \
  'src/base/unused.h: includes <cuda_runtime.h>; only device/cuda/ may' \
  'src/oddity/x.cc: folder oddity is unknown'; do
  if ! grep -qF "$expected" <<<"$findings"; then
    echo "tidy.py did not report: $expected"
    failed=1
  fi
done
exit $failed
