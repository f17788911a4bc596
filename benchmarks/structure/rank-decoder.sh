#!/usr/bin/env bash
# A decoder at four fifths of the parameters of its linear maps, by each measure of what an error costs, without
# training; `inputs` is the recipe svd-llm:
#   benchmarks/structure/rank-decoder.sh MODEL DATA WORK rows.jsonl
# MODEL: a causal language model. DATA: a folder with validation.jsonl, to look at, and test_raw.jsonl, whose perplexity
# is measured. What is finished in WORK is not made again. KINDS="weights inputs" makes only these. Those that look at
# texts see SAMPLES (64) blocks of 512 tokens. RANKS="uniform energy" makes twice as many. ARTICLES=4 measures on the first
# four articles alone.
set -euo pipefail
export MALLOC_MMAP_THRESHOLD_=1000000 # glibc keeps no holes of large tensors: a third less memory at the peak
model=$1 data=$2 work=$3 rows=$4
mkdir -p "$work/calibration"
cp "$data/validation.jsonl" "$work/calibration/train.jsonl"
# what each command measures by itself
echo '{"text": "A short text, because perplexity comes from the other one."}' >"$work/calibration/validation.jsonl"

made=()
for kind in ${KINDS:-weights input-size inputs}; do
  for ranks in ${RANKS:-uniform}; do
    name=$kind-$ranks
    made+=("$name")
    printf 'lissom: 1\nname: %s\nsteps:\n  - svd: {ratio: 0.8, by: %s, ranks: %s, samples: %s}\n' \
      "$name" "$kind" "$ranks" "${SAMPLES:-64}" >"$work/$name.yaml"
    [ -e "$work/$name" ] || lissom compress "$model" --recipe "$work/$name.yaml" --data "$work/calibration" \
      --max-length 512 --out "$work/$name" ${THREADS:+--threads "$THREADS"}
  done
done
[ -n "${ONLY_MAKE:-}" ] && exit 0

ln -sfn "$(realpath "$model")" "$work/original"
rows=$(realpath -m "$rows") test=$(realpath -m "$work/test.jsonl")
head -n "${ARTICLES:-1000}" "$data/test_raw.jsonl" >"$test"
cd "$work"
lissom measure original "${made[@]}" --vs original --data "$test" --out "$rows" \
  --metrics perplexity,size_mb,parameters,flops
