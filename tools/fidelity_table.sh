#!/usr/bin/env bash
# Writes docs/fidelity.md to stdout: what each recipe loses on the bundled model, judged on held-out
# conversations. `make fidelity` calls it; about an hour on two cores.
#   tools/fidelity_table.sh NIBBLE [PYTHON]
# PYTHON has tools/requirements-oracles.txt installed: then llm-compressor quantizes the model from the
# same token ids, and its checkpoints are judged beside ours. SAMPLES: calibration conversations.
# WORK: a folder that keeps finished rows, so that an interrupted run goes on behind them; with
# FINISHED=1 nothing is computed and the rows that are not there are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
nibble=${1:?usage: tools/fidelity_table.sh NIBBLE [PYTHON]}
python=${2:-}
model=models/nibble-demo-14m
prompts=models/calibration/hermes-style.json
samples=${SAMPLES:-8}
tokens=512
judges=16
work=${WORK:-$(mktemp -d)}
finished=${FINISHED:-}
mkdir -p "$work"
[ -n "${WORK:-}" ] || trap 'rm -rf "$work"' EXIT

field() { sed -nE "s/.*\"$2\":([0-9.e+-]+).*/\1/p" "$1"; }
calculate() { awk "BEGIN { printf \"%.9g\", $1 }"; }
kl() { field "$work/$1.json" mean_kl; }

todo() { [ ! -s "$work/$1.json" ] && [ -z "$finished" ]; }

# row NAME LABEL CHECKPOINT: judges it and prints a line of the table.
row() {
  if todo "$1"; then
    "$nibble" fidelity "$model" "$3" --num-samples $judges --max-seq-length $tokens --prompts "$prompts" --json >"$work/judged"
    sed "s/}\$/,\"bytes\":$(cat "$3"/*.safetensors | wc -c)}/" "$work/judged" >"$work/$1.json"
  fi
  local json=$work/$1.json
  [ -s "$json" ] || return 0
  printf '| %s | %.1f | %.5f | %.4f | %.2f %% |\n' "$2" "$(calculate "$(field "$json" bytes) / 1048576")" \
    "$(field "$json" mean_kl)" "$(field "$json" p99_kl)" \
    "$(calculate "100 * $(field "$json" top1_agreement)")"
}
# quantize SOURCE RECIPE FLAGS...: into $work/out.
quantize() {
  rm -rf "$work/out" "$work/out.calibration"
  "$nibble" quantize "$1" "$work/out" --recipe "recipes/$2.yaml" --calibration "$prompts" \
    --num-calibration-samples "$samples" --max-seq-length $tokens "${@:3}" >/dev/null 2>"$work/log" ||
    { cat "$work/log" >&2; exit 1; }
}
# ours NAME LABEL RECIPE FLAGS...
ours() {
  ! todo "$1" || quantize "$model" "$3" "${@:4}"
  row "$1" "$2" "$work/out"
}
# theirs NAME LABEL RECIPE DTYPE: llm-compressor, from the ids that $work/out was calibrated with.
theirs() {
  if todo "$1"; then
    rm -rf "$work/theirs"
    "$python" tools/make_awq_goldens.py "$model" "recipes/$3.yaml" --calibration "$prompts" \
      --num-samples "$samples" --max-seq-length $tokens --dtype "$4" --save "$work/theirs" \
      >"$work/theirs.log" 2>&1 || { cat "$work/theirs.log" >&2; exit 1; }
    tail -n 1 "$work/theirs.log" >"$work/theirs.ids"
  fi
  row "$1" "$2" "$work/theirs"
}
# The same weights with every value in float32.
in_float32() {
  [ -d "$work/float32" ] || [ -n "$finished" ] || "$python" - "$model" "$work/float32" <<'PY'
import shutil, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
source, target = map(Path, sys.argv[1:])
target.mkdir()
for path in source.iterdir():
    if path.suffix == ".safetensors":
        save_file({k: v.to(torch.float32) for k, v in load_file(path).items()}, target / path.name,
                  metadata={"format": "pt"})
    else:
        shutil.copy(path, target / path.name)
PY
}
header() {
  printf '\n| variant | MiB | mean KL (nats) | p99 KL | same best token |\n| --- | --- | --- | --- | --- |\n'
}
# below A B: by how many per cent A's mean KL is below B's, in words.
below() {
  [ -s "$work/$1.json" ] && [ -s "$work/$2.json" ] || { printf 'not compared with'; return; }
  calculate "100 * (1 - $(kl "$1") / $(kl "$2"))" |
    awk '{ printf $1 < 0 ? "%.1f %% above" : "%.1f %% below", $1 < 0 ? -$1 : $1 }'
}

upstream=(--mode reference --norm-roundtrip upstream)
without_all=observer-search,error-propagation,dead-channels,norm-loss,gated-norm,shortlist,refinement
# only PART: the flags of the reference with one part of best added.
only() {
  local part
  for part in ${without_all//,/ }; do [ "$part" = "$1" ] || printf -- '--without %s ' "$part"; done
}

cat <<TEXT
# What quantization loses

Written by \`make fidelity\` (\`tools/fidelity_table.sh\`) on $(date -u +%F), nibble $("$nibble" --version | grep -oE '[0-9]+\.[0-9]+[^ ]*' | head -n 1), $(grep -m 1 'model name' /proc/cpuinfo | sed 's/.*: //');
do not edit. The model is \`$model\`; calibration: the first $samples conversations of
\`$prompts\`, at most $tokens tokens each, one by one without padding. KL is KL(BF16 || quantized) per
position over $judges conversations that calibration did not see (\`nibble fidelity\`).${finished:+
This page was written before all rows were computed; what is not there has not been measured.}

## Recipes of one format and size

4-bit integers, groups of 128, asymmetric; linear attention, head and embedding in BF16. "Reference"
is \`--mode reference --norm-roundtrip upstream\`, llm-compressor's algorithm; "best" is the default.
TEXT
header
ours rtn '(a) round to nearest, min-max' w4a16-rtn
ours rtn-mse '(b) round to nearest, mse' w4a16-rtn-mse
ours awq-minmax '(c) AWQ min-max, reference' w4a16-awq-minmax "${upstream[@]}"
ours awq-mse '(d) AWQ mse, reference' w4a16-awq "${upstream[@]}"
if [ -n "$python" ]; then
  [ ! -f "$work/out/quantization_report.json" ] ||
    sed -nE 's/.*"calibration_sha256": "([0-9a-f]+)".*/\1/p' "$work/out/quantization_report.json" \
      >"$work/ours.ids"
  theirs llmc-mse 'llm-compressor, AWQ mse' w4a16-awq bfloat16
  [ -n "$finished" ] || cmp -s "$work/ours.ids" "$work/theirs.ids" ||
    { echo "fidelity_table: llm-compressor was not calibrated with our token ids" >&2; exit 1; }
fi
ours awq-gptq-reference 'AWQ + GPTQ, reference' w4a16-awq-gptq "${upstream[@]}"
ours awq-best 'AWQ mse, best' w4a16-awq
ours best '(e) AWQ + GPTQ + refinement, best' w4a16-awq-gptq
echo
echo "(e) is $(below best awq-mse) (d), and $(below best awq-best) AWQ alone in best mode."
if [ -n "$python" ]; then
  cat <<TEXT
(d) is $(below awq-mse llmc-mse) llm-compressor $("$python" -c 'import llmcompressor; print(llmcompressor.__version__)' 2>/dev/null | tail -n 1) calibrated with the same token ids.

Where the reference is worse than rounding to nearest: channels of this model that are always zero get
the scale 1e-4, the normalisation then moves all other scales by orders of magnitude, and the norm gains
that result cannot be told apart in BF16 ([reference/quantization.md](reference/quantization.md)). The
same in float32, norms and scales included, where nothing is lost that way:
TEXT
  header
  in_float32
  ! todo awq-f32 || quantize "$work/float32" w4a16-awq "${upstream[@]}"
  row awq-f32 '(d) AWQ mse, reference, float32' "$work/out"
  theirs llmc-f32 'llm-compressor, AWQ mse, float32' w4a16-awq float32
  ! todo best-f32 || quantize "$work/float32" w4a16-awq-gptq
  row best-f32 '(e) AWQ + GPTQ + refinement, best, float32' "$work/out"
  echo
  echo "(d) is $(below awq-f32 llmc-f32) llm-compressor, (e) $(below best-f32 awq-f32) (d)."
else
  printf '\nllm-compressor was not installed: no rows of its own.\n'
fi
cat <<'TEXT'

## What each improvement buys

One part of best mode at a time, added to the reference's AWQ:
TEXT
header
ours awq-mse '(d) AWQ mse, reference' w4a16-awq "${upstream[@]}"
# shellcheck disable=SC2046  # the words are flags
ours only-dead-channels 'with dead channels spared' w4a16-awq $(only dead-channels)
# shellcheck disable=SC2046
ours only-norm-loss "with the norm's rounding in the loss" w4a16-awq $(only norm-loss)
# shellcheck disable=SC2046
ours only-observer-search "with the recipe's observer in the search" w4a16-awq $(only observer-search)
# shellcheck disable=SC2046
ours only-error-propagation 'with the error propagated' w4a16-awq $(only error-propagation)
ours awq-best 'all of them: AWQ mse, best' w4a16-awq
printf '\nOne part at a time, taken away from (e):\n'
header
ours best '(e) AWQ + GPTQ + refinement, best' w4a16-awq-gptq
for part in refinement observer-search error-propagation dead-channels norm-loss; do
  ours "no-$part" "without $part" w4a16-awq-gptq --without $part
done
ours gptq 'without AWQ' w4a16-gptq
ours awq-best 'without GPTQ and refinement' w4a16-awq
spread() {
  local name
  for name in "$@"; do [ ! -s "$work/$name.json" ] || { kl "$name"; echo; }; done | sort -g |
    awk 'NF { if (!low) low = $1; high = $1 } END { printf "%.5f to %.5f", low, high }'
}
cat <<TEXT

Behind GPTQ the parts can hardly be told apart: the rows with it have a mean KL of
$(spread best no-refinement no-observer-search no-error-propagation no-dead-channels no-norm-loss gptq). What AWQ's search leaves, GPTQ's compensation evens out on this model;
without GPTQ, sparing dead channels or counting the norm's rounding is what matters (the table above).
TEXT
cat <<'TEXT'

`shortlist` only saves time. Two more differences are not in the table because they change nothing here:
samples run one by one, so there is no padding to count, and `--seed` alone decides which samples
`--shuffle` picks.

## Linear attention, size against loss

Its two gate projections, which are tiny, stay in BF16; everything else as (e).
TEXT
header
ours best 'linear attention in BF16 = (e)' w4a16-awq-gptq
ours linear8 'linear attention in 8 bits' w4a16-awq-gptq-linear8
ours linear4 'linear attention in 4 bits' w4a16-awq-gptq-linear4
ours linear4-no-gated-norm 'in 4 bits, without gated-norm' w4a16-awq-gptq-linear4 --without gated-norm
