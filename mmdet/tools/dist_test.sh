#!/usr/bin/env bash
# Evaluate in several processes: dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of test.py].
here=$(dirname "${BASH_SOURCE[0]}")
DIST_NAME=$0 exec bash "$here/../../tools/dist.sh" "$here/test.py" 2 "$@"
