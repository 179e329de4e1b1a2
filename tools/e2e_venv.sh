#!/usr/bin/env bash
# Makes the virtual environment of tests/e2e once and prints its python. Usage: e2e_venv.sh DIR
# Exit code 77 (skip) when PyPI cannot be reached.
set -euo pipefail
directory=$1
requirements=$(cd "$(dirname "$0")" && pwd)/requirements-e2e.txt
stamp=$directory/$(sha256sum "$requirements" | cut -c1-16).stamp
if [ ! -e "$stamp" ]; then
  rm -rf "$directory"
  python3 -m venv "$directory" >&2
  if ! "$directory/bin/pip" install --quiet --disable-pip-version-check -r "$requirements" >&2; then
    echo "SKIPPED: PyPI is not reachable, so the clients' SDKs cannot be installed" >&2
    rm -rf "$directory"
    exit 77
  fi
  touch "$stamp"
fi
echo "$directory/bin/python"
