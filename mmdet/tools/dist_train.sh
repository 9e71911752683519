#!/usr/bin/env bash
# Train in several processes: dist_train.sh CONFIG PROCESSES [arguments of train.py]; see tools/dist.sh for machines.
here=$(dirname "${BASH_SOURCE[0]}")
DIST_NAME=$0 exec bash "$here/../../tools/dist.sh" "$here/train.py" 1 "$@"
