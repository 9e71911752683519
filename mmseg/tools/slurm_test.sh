#!/usr/bin/env bash
# Evaluate under Slurm: [GPUS=8] slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of test.py].
here=$(dirname "${BASH_SOURCE[0]}")
SLURM_NAME=$0 exec bash "$here/../../tools/slurm.sh" "$here/test.py" "$@"
