#!/usr/bin/env bash
# Half of a decoder's weights set to zero without training, by every method, measured side by side:
#   benchmarks/structure/zeros.sh MODEL DATA WORK rows.jsonl
# MODEL: a causal language model. DATA: a folder with validation.jsonl, to calibrate on, and test_raw.jsonl, whose
# perplexity is measured. What is finished in WORK is not made again. NAMES="wanda sparsegpt-2:4" makes only these. Those
# that calibrate see SAMPLES (128) blocks of 512 tokens. ARTICLES=4 measures on the first four articles alone.
set -euo pipefail
export MALLOC_MMAP_THRESHOLD_=1000000 # glibc keeps no holes of large tensors: a third less memory at the peak
model=$1 data=$2 work=$3 rows=$4
mkdir -p "$work/calibration"
cp "$data/validation.jsonl" "$work/calibration/train.jsonl"
# what each command measures by itself
echo '{"text": "A short text, because perplexity comes from the other one."}' >"$work/calibration/validation.jsonl"

made=()
for name in ${NAMES:-magnitude wanda ria sparsegpt magnitude-2:4 wanda-2:4 sparsegpt-2:4}; do
  made+=("$name")
  [ -e "$work/$name" ] && continue
  options="samples: ${SAMPLES:-128}"
  case $name in *-2:4) options+=', pattern: "2:4"' ;; esac
  case $name in
    sparsegpt*) step="sparsegpt: {$options}" ;;
    *) step="prune_weights: {by: ${name%-2:4}, $options}" ;;
  esac
  printf 'lissom: 1\nname: %s\nsteps:\n  - %s\n' "${name/:/of}" "$step" >"$work/$name.yaml"
  lissom compress "$model" --recipe "$work/$name.yaml" --data "$work/calibration" --max-length 512 \
    --out "$work/$name" ${THREADS:+--threads "$THREADS"}
done
[ -n "${ONLY_MAKE:-}" ] && exit 0

ln -sfn "$(realpath "$model")" "$work/original"
rows=$(realpath -m "$rows") test=$(realpath -m "$work/test.jsonl")
head -n "${ARTICLES:-1000}" "$data/test_raw.jsonl" >"$test"
cd "$work"
lissom measure "${made[@]}" --vs original --data "$test" --out "$rows" --metrics perplexity,size_mb,parameters,sparsity
