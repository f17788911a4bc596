#!/usr/bin/env bash
# Weight-only rounding of a decoder to 4 and 3 bits in groups of 64, by every method, measured side by side:
#   benchmarks/quantize/decoder.sh MODEL DATA WORK rows.jsonl
# MODEL: a causal language model. DATA: a folder with validation.jsonl, to calibrate on, and test_raw.jsonl, whose
# perplexity is measured. What is finished in WORK is not made again. METHODS="rtn gptq" makes only these. Those that
# calibrate see SAMPLES (32) blocks of 512 tokens. ARTICLES=4 measures on the first four articles alone.
set -euo pipefail
export MALLOC_MMAP_THRESHOLD_=1000000 # glibc keeps no holes of large tensors: a third less memory at the peak
model=$1 data=$2 work=$3 rows=$4
mkdir -p "$work/calibration"
cp "$data/validation.jsonl" "$work/calibration/train.jsonl"
# what each command measures by itself
echo '{"text": "A short text, because perplexity comes from the other one."}' >"$work/calibration/validation.jsonl"

made=()
for bits in 4 3; do
  for method in ${METHODS:-rtn hqq awq gptq}; do
    name=$method-$bits
    made+=("$name")
    case $method in
      rtn | hqq) more= ;;
      *) more=", samples: ${SAMPLES:-32}" ;;
    esac
    printf 'lissom: 1\nname: %s\nsteps:\n  - %s: {bits: %s, group: 64%s}\n' "$name" "$method" "$bits" "$more" \
      >"$work/$name.yaml"
    [ -e "$work/$name" ] || lissom compress "$model" --recipe "$work/$name.yaml" --data "$work/calibration" \
      --max-length 512 --out "$work/$name" ${THREADS:+--threads "$THREADS"}
  done
done
[ -n "${ONLY_MAKE:-}" ] && exit 0

ln -sfn "$(realpath "$model")" "$work/original"
rows=$(realpath -m "$rows") test=$(realpath -m "$work/test.jsonl")
head -n "${ARTICLES:-1000}" "$data/test_raw.jsonl" >"$test"
cd "$work"
lissom measure "${made[@]}" --vs original --data "$test" --out "$rows" --metrics perplexity,size_mb,parameters
