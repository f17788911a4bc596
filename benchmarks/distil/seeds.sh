#!/usr/bin/env bash
# With and without a teacher, from two starts, three seeds each: whether the gain is more than luck.
#   benchmarks/distil/seeds.sh TEACHER DATA WORK rows.jsonl
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$3"
ln -sfn "$(realpath "$1")" "$3/teacher"
data=$(realpath "$2") rows=$(realpath -m "$4")
cd "$3"
students=()
for recipe in plain vanilla-kd plain-every-other kd-every-other; do
  file=$here/$recipe.yaml
  [ -f "$file" ] || file=$recipe
  for seed in 0 1 2; do
    students+=("$recipe-seed-$seed")
    [ -e "$recipe-seed-$seed" ] || lissom compress teacher --recipe "$file" --data "$data" --max-length 64 \
      --seed "$seed" --threads 1 --out "$recipe-seed-$seed"
  done
done
lissom measure "${students[@]}" --vs teacher --data "$data" --max-length 64 --out "$rows" \
  --metrics accuracy,keep,label_loyalty,probability_loyalty
