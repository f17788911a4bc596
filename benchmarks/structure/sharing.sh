#!/usr/bin/env bash
# A classifier whose layers use two sets of weights (the recipe shared-two), healed on texts of its task, beside the
# model that it was:
#   benchmarks/structure/sharing.sh MODEL DATA WORK rows.jsonl
# MODEL: a fine-tuned classifier. DATA: its data, with train, validation and test. What is finished in WORK is not made
# again. SPLITS="validation test" are measured one after the other; LENGTH (64) is the most tokens of a text. RECIPES
# names others, such as albert or cycle-sharing.
set -euo pipefail
model=$1 data=$2 work=$3 rows=$4
mkdir -p "$work"
read -ra recipes <<<"${RECIPES:-shared-two}"

for recipe in "${recipes[@]}"; do
  [ -e "$work/$recipe" ] || lissom compress "$model" --recipe "$recipe" --data "$data" --max-length "${LENGTH:-64}" \
    --out "$work/$recipe" ${THREADS:+--threads "$THREADS"}
done

ln -sfn "$(realpath "$model")" "$work/teacher"
rows=$(realpath -m "$rows") data=$(realpath "$data")
cd "$work"
for split in ${SPLITS:-validation test}; do
  lissom measure teacher "${recipes[@]}" --vs teacher --data "$data" --split "$split" --max-length "${LENGTH:-64}" \
    --out "$rows" --metrics accuracy,keep,label_loyalty,size_mb,parameters,flops
done
