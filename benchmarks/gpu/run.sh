#!/usr/bin/env bash
# Measure on a CUDA machine that is at hand for minutes: stage by stage, each within its time, each with its own JSON.
#
#   bash benchmarks/gpu/run.sh [STAGE ...] [--rehearse] [--fresh]
#
# STAGE: correctness kernels models train detect real; all of them by default, in this order. And tensorrt, if it is asked
# for: it builds an engine of DaViT_tiny by trtexec, which must be on the PATH, and times it.
# --rehearse   the same code on the CPU, in Triton's interpreter, with tiny sizes; its numbers mean nothing
# --fresh      measure again what an earlier run of the same code on the same card has measured
#
# Results: $OUT, or benchmarks/results/gpu where that is unset. Those of earlier calls on the same machine, and of that
# folder, are copied to $OUT first. Environment: PYTHON (python3), GPU_DATA (an image folder for the stage real;
# .gpu_data), and DAVIT_COMMIT where the copy has no .git. Wheels in .whl are installed first.
# The status is 1 if a stage failed or a cell of one was wrong; the stages after it ran all the same.
set -u
cd "$(dirname "$0")/../.."

# Seconds of each stage: two calls of at most six minutes are "correctness kernels models" and "train detect real".
# What the others of a call leave of theirs is given to models, and to real.
declare -A LIMIT=([correctness]=85 [kernels]=75 [models]=150 [train]=120 [detect]=80 [real]=130 [tensorrt]=300)
stages=() flags=() rehearse=
for word in "$@"; do
  case $word in
    --rehearse) rehearse=1; flags+=("$word") ;;
    --fresh) flags+=("$word") ;;
    -h|--help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) [ -n "${LIMIT[$word]:-}" ] || { echo "no stage $word: choose from correctness kernels models train detect real tensorrt" >&2; exit 2; }
       stages+=("$word") ;;
  esac
done
[ ${#stages[@]} -gt 0 ] || stages=(correctness kernels models train detect real)

PYTHON=${PYTHON:-python3}
OUT=${OUT:-$PWD/benchmarks/results/gpu}
scratch=${TMPDIR:-/tmp}/davit-gpu-$UID
mkdir -p "$OUT" "$scratch/results"
export OUT PYTHONUNBUFFERED=1 PYTHONPATH="$PWD:$scratch/site${PYTHONPATH:+:$PYTHONPATH}"
# One cache for all stages and processes: what one has compiled, the others load.
export TORCHINDUCTOR_CACHE_DIR=$scratch/inductor TRITON_CACHE_DIR=$scratch/triton
export TORCHINDUCTOR_FX_GRAPH_CACHE=1 TORCHINDUCTOR_AUTOGRAD_CACHE=1
# Many processes prepare at the same time: a few threads for each, as many as a machine of 16 cores has room for.
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
export TORCHINDUCTOR_COMPILE_THREADS=${TORCHINDUCTOR_COMPILE_THREADS:-4}
if [ -n "$rehearse" ]; then
  export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
else
  for kept in "$scratch"/results/*.json benchmarks/results/gpu/*.json; do
    [ ! -f "$kept" ] || [ -e "$OUT/${kept##*/}" ] || cp "$kept" "$OUT"
  done
fi
if [ -z "$rehearse" ] && ls .whl/*.whl >/dev/null 2>&1 && [ ! -d "$scratch/site" ]; then
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$scratch/site" .whl/*.whl \
    || for wheel in .whl/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$scratch/site"; done  # without pip
fi

status=0 spare=0
for stage in "${stages[@]}"; do
  limit=${LIMIT[$stage]} began=$SECONDS
  case $stage in models|real) limit=$((limit + spare)) ;; esac
  [ -z "$rehearse" ] || limit=300  # a rehearsal checks that cells work, on a machine of any speed
  # Whole models in the interpreter would take minutes; the other stages rehearse with the functions of the CPU.
  case ${rehearse:+$stage} in correctness|kernels) export TRITON_INTERPRET=1 ;; *) unset TRITON_INTERPRET ;; esac
  echo "== $stage, at most $limit s; $(date +%T)"
  if [ "$stage" = tensorrt ]; then
    engine=$scratch/tiny.engine
    { "$PYTHON" -c 'import sys, torch, davit; noted = {"model": "DaViT_tiny", "img_size": 224}
torch.save({"state_dict": davit.create_model("DaViT_tiny").state_dict(), "args": noted}, sys.argv[1])' "$scratch/tiny.pth" \
      && timeout -k 5 "$limit" "$PYTHON" -m davit.export "$scratch/tiny.pth" "$engine" --fp16 --overwrite \
      && trtexec --loadEngine="$engine" --shapes=images:1x3x224x224 \
      && trtexec --loadEngine="$engine" --shapes=images:32x3x224x224; } 2>&1 | tee "$OUT/tensorrt.txt"
    [ "${PIPESTATUS[0]}" -eq 0 ] || status=1
    continue
  fi
  # The stage ends by itself some seconds earlier; the time-out is for one that hangs. Then its JSON has what was measured.
  until=$(($(date +%s) + limit - 7))  # not seconds from now: imports take some, on a machine that has just started
  timeout -k 5 "$limit" "$PYTHON" benchmarks/gpu/stages.py "$stage" --until "$until" "${flags[@]}" || {
    code=$?
    status=1
    [ $code -ne 124 ] && [ $code -ne 137 ] || echo "$stage: stopped after $limit s"
  }
  [ $((SECONDS - began)) -ge "$limit" ] || spare=$((spare + limit - (SECONDS - began)))
  [ -n "$rehearse" ] || cp "$OUT"/*.json "$scratch/results" 2>/dev/null
done
"$PYTHON" benchmarks/gpu/tables.py "$OUT" || status=1
exit $status
