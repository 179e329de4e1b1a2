#!/usr/bin/env bash
# Runs a test program that was built with sanitizers; the first finding ends it. Arguments are passed
# on. Usage: sanitized.sh BINARY [--gtest_filter=...]
set -euo pipefail
export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1:allocator_may_return_null=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
# gcc's thread sanitizer cannot live with all that newer kernels randomize.
exec setarch --addr-no-randomize "$@" --gtest_brief=1
