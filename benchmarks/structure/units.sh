#!/usr/bin/env bash
# Heads and neurons removed from an encoder under a budget of operations: 30 % without training as published (fast-ptp)
# and with whole columns fitted, 50 % without training and healed (half-flops); then all of them beside the original in
# ONNX Runtime:
#   benchmarks/structure/units.sh MODEL DATA WORK rows.jsonl
# MODEL: a fine-tuned classifier. DATA: its data, with train, validation and test. What is finished in WORK is not made
# again. SPLITS="validation test" are measured one after the other; THREADS: of the engine.
set -euo pipefail
model=$1 data=$2 work=$3 rows=$4
mkdir -p "$work"
work=$(realpath "$work")
made=()

compress() { # NAME RECIPE
  made+=("$1-onnx")
  [ -e "$work/$1" ] || lissom compress "$model" --recipe "$2" --data "$data" --out "$work/$1" \
    ${THREADS:+--threads "$THREADS"}
  [ -e "$work/$1-onnx" ] || lissom export "$work/$1" --to onnx --out "$work/$1-onnx"
}

columns() { # NAME SHARE
  printf 'lissom: 1\nname: %s\nsteps:\n  - prune_units: {flops: %s}\n' "$1" "$2" >"$work/$1.yaml"
  compress "$1" "$work/$1.yaml"
}

compress fast-ptp fast-ptp
columns columns-70 0.7
columns columns-50 0.5
compress half-flops half-flops
[ -e "$work/original" ] || lissom export "$model" --to onnx --out "$work/original"

rows=$(realpath -m "$rows") data=$(realpath "$data")
cd "$work"
for split in ${SPLITS:-test}; do
  lissom measure original "${made[@]}" --vs original --data "$data" --split "$split" --out "$rows" \
    ${THREADS:+--threads "$THREADS"}
done
