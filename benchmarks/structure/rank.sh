#!/usr/bin/env bash
# An encoder at half of the parameters of its linear maps, by each measure of what an error costs, before any training,
# and then healed as the recipe drone has it, measured side by side:
#   benchmarks/structure/rank.sh MODEL DATA WORK rows.jsonl
# MODEL: a fine-tuned classifier. DATA: its data, with train, validation and test. What is finished in WORK is not made
# again. KINDS="inputs" and HEALED="" make only these. SPLITS="validation test" are measured one after the other.
set -euo pipefail
model=$1 data=$2 work=$3 rows=$4
mkdir -p "$work"
made=()

compress() { # NAME RECIPE
  made+=("$1")
  [ -e "$work/$1" ] || lissom compress "$model" --recipe "$2" --data "$data" --max-length "${LENGTH:-64}" \
    --out "$work/$1" ${THREADS:+--threads "$THREADS"}
}

for kind in ${KINDS-weights fisher input-size inputs}; do
  for ranks in ${RANKS-uniform energy}; do
    name=$kind-$ranks
    printf 'lissom: 1\nname: %s\nsteps:\n  - svd: {ratio: 0.5, by: %s, ranks: %s}\n' "$name" "$kind" "$ranks" \
      >"$work/$name.yaml"
    compress "$name" "$work/$name.yaml"
  done
done
for recipe in ${HEALED-drone}; do
  compress "$recipe" "$recipe"
done

ln -sfn "$(realpath "$model")" "$work/teacher"
rows=$(realpath -m "$rows") data=$(realpath "$data")
cd "$work"
for split in ${SPLITS:-validation test}; do
  lissom measure teacher "${made[@]}" --vs teacher --data "$data" --split "$split" --max-length "${LENGTH:-64}" \
    --out "$rows" --metrics accuracy,keep,label_loyalty,size_mb,parameters,flops
done
