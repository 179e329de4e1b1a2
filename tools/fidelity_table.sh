#!/usr/bin/env bash
# The tables of docs/fidelity.md: every recipe on the bundled model, judged on held-out conversations.
#   tools/fidelity_table.sh build/release/nibble > docs/fidelity-table.md      (about half an hour)
# A checkpoint of another tool can be added as LABEL=DIR behind the binary.
set -euo pipefail
cd "$(dirname "$0")/.."
nibble=${1:?usage: tools/fidelity_table.sh NIBBLE [LABEL=DIR...]}
shift
model=models/nibble-demo-14m
prompts=models/calibration/hermes-style.json
samples=${SAMPLES:-64}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

row() { # label, checkpoint
  local judged size
  judged=$("$nibble" fidelity "$model" "$2" --num-samples 64 --prompts "$prompts" --json)
  size=$(cat "$2"/*.safetensors | wc -c)
  field() { sed -E "s/.*\"$1\":([0-9.e+-]+).*/\1/" <<<"$judged"; }
  printf '| %s | %.1f | %.5f | %.4f | %.2f %% |\n' "$1" "$(bc -l <<<"$size / 1048576")" \
    "$(field mean_kl)" "$(field p99_kl)" "$(bc -l <<<"100 * $(field top1_agreement)")"
}
ours() { # label, recipe, further flags
  local label=$1 recipe=$2
  shift 2
  rm -rf "$work/out"
  "$nibble" quantize "$model" "$work/out" --recipe "recipes/$recipe.yaml" --calibration "$prompts" \
    --num-calibration-samples "$samples" "$@" >/dev/null 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
  row "$label" "$work/out"
}
head='| variant | MiB | mean KL (nats) | p99 KL | same best token |\n| --- | --- | --- | --- | --- |\n'

printf "$head"
ours '(a) round to nearest, min-max' w4a16-rtn
ours '(b) round to nearest, mse' w4a16-rtn-mse
ours 'AWQ mse, `--mode reference`' w4a16-awq --mode reference
for other in "$@"; do row "${other%%=*}" "${other#*=}"; done
ours '(c) AWQ min-max' w4a16-awq-minmax
ours '(d) AWQ mse' w4a16-awq
ours 'AWQ + GPTQ, `--mode reference`' w4a16-awq-gptq --mode reference
ours '(e) AWQ + GPTQ + refinement' w4a16-awq-gptq
printf '\nLinear attention too (its two gate projections stay in floating point):\n\n'
printf "$head"
ours 'linear attention in BF16 = (e)' w4a16-awq-gptq
ours 'linear attention in 8 bits' w4a16-awq-gptq-linear8
ours 'linear attention in 4 bits' w4a16-awq-gptq-linear4
