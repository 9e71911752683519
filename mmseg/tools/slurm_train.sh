#!/usr/bin/env bash
# Train under Slurm: [GPUS=8] slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py].
here=$(dirname "${BASH_SOURCE[0]}")
[ $# -lt 4 ] || set -- "$1" "$2" "$3" --work-dir "${@:4}"
SLURM_NAME=$0 exec bash "$here/../../tools/slurm.sh" "$here/train.py" "$@"
