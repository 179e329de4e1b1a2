#!/bin/sh
# Compiles every kernel for compute capability 7.0 (V100) and each newer one that we build for, and
# prints a line per file and architecture. Usage: tools/check_sm70.sh [CACHE_DIR]
#
# CUDA 13 no longer knows 7.0, so its front end makes PTX with __CUDA_ARCH__ as 7.0 has it, and the
# last assembler that knows 7.0 (ptxas 12.9, from PyPI) turns it into sm_70 machine code: it refuses
# every instruction that 7.0 lacks. To build the program itself for V100 use a CUDA 12 toolkit and
# -DNIBBLE_CUDA_ARCHS=70.
# FILES and ARCHS in the environment narrow the check.
set -u
cd "$(dirname "$0")/.." || exit 1
cache=${1:-${TMPDIR:-/tmp}/nibble-sm70}
nvcc=${NVCC:-nvcc}
command -v "$nvcc" >/dev/null || { echo "check_sm70: no nvcc found; set NVCC" >&2; exit 77; }
mkdir -p "$cache" || exit 1
if [ ! -x "$cache/venv/bin/pip" ]; then python3 -m venv "$cache/venv" || exit 1; fi
ptxas=$(find "$cache/venv" -name ptxas -path '*cuda_nvcc*' | head -1)
if [ -z "$ptxas" ]; then
  "$cache/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
    'nvidia-cuda-nvcc-cu12==12.9.*' ||
    { echo "check_sm70: PyPI cannot be reached: not checked" >&2; exit 77; }
  ptxas=$(find "$cache/venv" -name ptxas -path '*cuda_nvcc*' | head -1)
fi

flags="-std=c++17 --extended-lambda --expt-relaxed-constexpr -Isrc"
warnings="-Xcompiler=-Wall -Xcompiler=-Wextra --Werror=all-warnings"
failed=0
for file in ${FILES:-src/device/cuda/*.cu}; do
  name=$(basename "$file" .cu)
  line="$name:"
  ptx=$cache/$name.ptx
  # The host pass never runs, so replacing the macro reaches device code only.
  if "$nvcc" --ptx $flags -arch=compute_75 -Xcompiler -U__CUDA_ARCH__,-D__CUDA_ARCH__=700 \
      "$file" -o "$ptx" >"$cache/$name.log" 2>&1 &&
    sed -i -e 's/^\.version .*/.version 8.8/' -e 's/^\.target sm_75/.target sm_70/' "$ptx" &&
    "$ptxas" -arch=sm_70 -warn-spills "$ptx" -o "$cache/$name.sm_70.cubin" >>"$cache/$name.log" 2>&1
  then
    line="$line 70 ok"
  else
    line="$line 70 FAILED ($cache/$name.log)"
    failed=1
  fi
  for arch in ${ARCHS:-75 80 86 89 90 90a}; do
    if "$nvcc" $flags $warnings -gencode "arch=compute_$arch,code=sm_$arch" --cubin "$file" \
        -o "$cache/$name.sm_$arch.cubin" >"$cache/$name.$arch.log" 2>&1; then
      line="$line, $arch ok"
    else
      line="$line, $arch FAILED ($cache/$name.$arch.log)"
      failed=1
    fi
  done
  echo "$line"
done
exit $failed
