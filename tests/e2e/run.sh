#!/usr/bin/env bash
# Runs a test of this folder in the clients' virtual environment. Usage: run.sh VENV SCRIPT [ARGUMENT...]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$("$here/../../tools/e2e_venv.sh" "$1")
script=$2
shift 2
exec "$python" "$here/$script" "$@"
