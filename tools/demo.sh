#!/usr/bin/env bash
# The whole line on the bundled model: quantize it, serve the result, make one tool call, compare
# it with its parent. Usage: demo.sh path/to/nibble
set -euo pipefail
nibble=$1
root=$(cd "$(dirname "$0")/.." && pwd)
model=$root/models/nibble-demo-14m
work=$root/build/demo
quantized=$work/nibble-demo-14m-w4a16
mkdir -p "$work"
rm -rf "$quantized" "$work/serve.log"

echo "== 1. quantize $(basename "$model") to 4 bits"
"$nibble" quantize "$model" "$quantized" --recipe "$root/recipes/w4a16-rtn.yaml"

echo
echo "== 2. serve it"
"$nibble" serve "$quantized" --served-model-name nibble-demo --port 0 2>"$work/serve.log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT
url=
for _ in $(seq 300); do
  url=$(sed -n 's/.*listening url=\([^ ]*\).*/\1/p' "$work/serve.log" | head -n 1)
  [ -n "$url" ] && break
  if ! kill -0 "$server" 2>/dev/null; then
    cat "$work/serve.log" >&2
    exit 1
  fi
  sleep 0.1
done
if [ -z "$url" ]; then
  echo "demo: the server did not come up within 30 s; see $work/serve.log" >&2
  exit 1
fi
echo "$url"

echo
echo "== 3. one tool-calling request"
reply=$(curl --silent --show-error --fail-with-body "$url/v1/chat/completions" \
  -H 'Content-Type: application/json' --data @"$root/tools/demo_request.json")
call=$(printf '%s' "$reply" | grep -o '"function":{"name":.*}}\]' | sed 's/}}\]$/}/; s/^"function"://')
if [ -z "$call" ]; then
  echo "demo: no tool call in the answer: $reply" >&2
  exit 1
fi
echo "tool call: $call"

echo
echo "== 4. what 4 bits cost"
"$nibble" fidelity "$model" "$quantized" --num-samples 16 \
  --prompts "$root/models/calibration/hermes-style.json"

echo
echo "To serve it for keeps:"
echo "  ${nibble#"$root"/} serve ${quantized#"$root"/} --port 8000"
