#!/usr/bin/env bash
# Everything that needs one GPU, in parts: benchmarks/gpu.sh PART OUT
#   tests     the kernels and attention routes against float64, on this GPU, with nothing beside
#             them: some need 42 GiB. Those of tests/timeseries need transformers
#   kernels   all kernels beside importable peers: time, floor, memory, errors, figures. Begins
#             nothing after DEADLINE seconds (540); run again with the same OUT it goes on from there
#   conv, recurrences, prefix, extra, by_kernel   one part of these
#   speed     tokens a second of HyenaDNA by length, single sequences and batches of 262,144 tokens,
#             with the kernels and on the reference ops
#   longest   longest context that trains one step
#   varlen    padded, sorted and packed encoders beside Longformer; needs transformers
#   context   bits per base by context length; needs chr20.npz (benchmarks/genomics/context_length.py)
# Needs the packages that `core` and `genomics.models` import, pytest and hypothesis. PYTHON and
# CHROMOSOME name another interpreter and another path of chr20.npz.
set -euo pipefail
cd "$(dirname "$0")/.."
parts="tests, kernels, conv, recurrences, prefix, extra, by_kernel, speed, longest, varlen or context"
part=${1:?$parts} out=${2:?a folder for results}
python=${PYTHON:-python3}
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$out"
case $part in
  tests)
    # a process a file: a kernel that faults takes every later test of its process along
    failed=0
    for file in tests/*/*/test_*_gpu.py; do
      "$python" -m pytest -m gpu -p no:benchmark -q "$file" \
        --junitxml "$out/$(basename "$file" .py).xml" || failed=1
    done
    exit $failed
    ;;
  kernels)
    "$python" benchmarks/kernels/all.py --out "$out" --resume --deadline "${DEADLINE:-540}"
    ;;
  conv | recurrences | prefix | extra | by_kernel)
    "$python" benchmarks/kernels/all.py --only "$part" --out "$out" --resume \
      --deadline "${DEADLINE:-540}"
    ;;
  speed)
    "$python" benchmarks/genomics/throughput.py --tokens 262144 --out "$out/throughput.json"
    ;;
  longest)
    "$python" benchmarks/genomics/longest_context.py --out "$out/longest_context.json"
    ;;
  varlen)
    "$python" benchmarks/kernels/varlen.py --out "$out/varlen.json"
    ;;
  context)
    chromosome=${CHROMOSOME:-chr20.npz}
    "$python" benchmarks/genomics/context_length.py train "$chromosome" --seconds 150 --out "$out"
    ;;
  *)
    echo "error: no part $part; give $parts" >&2
    exit 2
    ;;
esac
