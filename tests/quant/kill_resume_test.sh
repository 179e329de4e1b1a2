#!/usr/bin/env bash
# `kill -9` at random moments of `nibble quantize`, then the same command again: the output has the
# bytes of a run that nobody stopped, and its folder does not exist before it is complete. A run that
# is interrupted says how to go on.
#   kill_resume_test.sh NIBBLE [NUM_KILLS [SEED]]     a failure prints the seed that repeats its delays
set -uo pipefail
nibble=${1:?usage: kill_resume_test.sh NIBBLE [NUM_KILLS [SEED]]}
num_kills=${2:-5}
seed=${3:-${NIBBLE_TEST_SEED:-1}}
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
run=
cleanup() {
  [ -n "$run" ] && kill -9 "$run" 2>/dev/null
  rm -rf "$work"
}
trap cleanup EXIT
fail() {
  echo "kill_resume: $* (seed $seed, kill $killed of $num_kills)" >&2
  sed 's/^/  nibble: /' "$work/log" >&2
  exit 1
}
# Every path of the journal, at little cost: two scales tried, a few modules rounded by GPTQ.
cat >"$work/recipe.yaml" <<'YAML'
default_stage:
  default_modifiers:
    AWQModifier: {n_grid: 2}
    GPTQModifier:
      ignore: ['re:.*lm_head']
      config_groups:
        group_0:
          targets: ['re:.*self_attn.[kv]_proj$', 're:.*linear_attn.in_proj_z$',
                    're:.*layers.[048].mlp.gate_proj$']
          weights: {num_bits: 4, type: int, symmetric: false, group_size: 128, strategy: group,
                    observer: memoryless_minmax}
YAML
quantize() { # OUT, further flags; replaces the shell, so that a kill reaches nibble itself
  exec "$nibble" quantize "$root/models/nibble-demo-14m" "$@" --recipe "$work/recipe.yaml" \
    --calibration "$root/models/calibration/hermes-style.json" --num-calibration-samples 1 \
    --max-seq-length 48 >"$work/log" 2>&1
}
same() { # every file of both folders, names and bytes
  diff -r "$work/expected" "$1" >"$work/diff" 2>&1 || { cat "$work/diff" >&2; return 1; }
}

killed=0
begin=$(date +%s%N)
(quantize "$work/expected") || fail "the uninterrupted run failed"
whole_ms=$((($(date +%s%N) - begin) / 1000000))

RANDOM=$seed
during_run=0
while [ "$killed" -lt "$num_kills" ]; do
  # Delays are drawn from the length of a whole run; a resumed run is shorter, so some find it finished.
  delay_ms=$((RANDOM * whole_ms / 32768))
  quantize "$work/out" &
  run=$!
  sleep "$(printf '%d.%03d' $((delay_ms / 1000)) $((delay_ms % 1000)))"
  if kill -9 "$run" 2>/dev/null; then stopped=1; else stopped=0; fi
  wait "$run" 2>/dev/null
  status=$?
  run=
  killed=$((killed + 1))
  if [ -e "$work/out" ]; then # under its final name: then it must be whole, killed or not
    same "$work/out" || fail "the output is visible and differs after $delay_ms ms"
    rm -rf "$work/out" "$work/out.partial" "$work/out.calibration"
  elif [ "$stopped" = 0 ] || [ "$status" != 137 ]; then
    fail "a run after $((delay_ms)) ms ended with status $status and no output"
  else
    during_run=$((during_run + 1))
  fi
done
quantize "$work/out" &
run=$!
until grep -q "^layer 2/" "$work/log"; do kill -0 "$run" 2>/dev/null || break; sleep 0.01; done
kill -TERM "$run" 2>/dev/null
wait "$run"
status=$?
run=
[ "$status" = 5 ] || fail "an interrupted run ended with status $status, not 5"
grep -q "interrupted; the same command goes on" "$work/log" ||
  fail "an interrupted run does not say how to go on"
(quantize "$work/out" --resume) || fail "the last run failed"
same "$work/out" || fail "the resumed output differs"
[ "$during_run" -gt 0 ] || fail "no kill hit a run under way: nothing was tested"
echo "kill_resume: $during_run of $killed kills hit a run under way ($whole_ms ms whole); same bytes"
