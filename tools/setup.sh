#!/usr/bin/env bash
# Installs what is missing through apt, on Debian 12 or Ubuntu 24.04. Usage: setup.sh build|test
# Quick and silent when everything is there.
set -euo pipefail

level=${1:-build}
packages=(g++ cmake ninja-build ccache mold pkg-config make curl
  libfmt-dev libspdlog-dev nlohmann-json3-dev libyaml-cpp-dev libre2-dev
  libpcre2-dev libutf8proc-dev libhwy-dev libssl-dev)
if [ "$level" = test ]; then
  packages+=(libgtest-dev libgmock-dev librapidcheck-dev libbenchmark-dev libvalijson-dev clang
    python3 python3-venv openssl chromium chromium-driver)
fi

installed() { dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null | grep -q '^installed$'; }

missing=()
for package in "${packages[@]}"; do
  installed "$package" || missing+=("$package")
done
# Boost 1.81 or newer: Debian 12 names it by version, Ubuntu 24.04 has 1.83 as the default.
if ! installed libboost1.81-dev && ! installed libboost1.83-dev; then
  missing+=(libboost)
fi
# clang's fuzzer runtime follows clang's version.
if [ "$level" = test ] && ! compgen -G '/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a' >/dev/null; then
  missing+=(libclang-rt)
fi
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "setup: missing ${missing[*]}; run as root, or install sudo" >&2
    exit 2
  fi
  as_root=(sudo)
fi
if ! command -v apt-get >/dev/null; then
  echo "setup: missing ${missing[*]}; no apt-get here, install them by hand" >&2
  exit 2
fi
echo "setup: installing ${missing[*]}" >&2
"${as_root[@]}" apt-get update -qq || { echo "setup: apt-get update failed; is the network there?" >&2; exit 2; }

resolved=()
for package in "${missing[@]}"; do
  case $package in
    libboost)
      if apt-cache show libboost1.81-dev >/dev/null 2>&1; then resolved+=(libboost1.81-dev)
      else resolved+=(libboost1.83-dev); fi ;;
    libclang-rt)
      resolved+=("$(apt-cache depends clang | sed -n 's/.*Depends: clang-\([0-9]*\)$/libclang-rt-\1-dev/p' | head -n 1)") ;;
    *) resolved+=("$package") ;;
  esac
done
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${resolved[@]}" >/dev/null ||
  { echo "setup: apt-get install ${resolved[*]} failed" >&2; exit 2; }
