#!/usr/bin/env bash
# Trains every student of the page docs/distil.md and measures them side by side:
#   benchmarks/distil/run.sh TEACHER PRETRAINED DATA WORK rows.jsonl
# TEACHER: a fine-tuned model of six layers. PRETRAINED: the encoder that it was fine-tuned from. Finished students in
# WORK are not trained again. With QUEUE=1/2 and QUEUE=2/2 in two shells, each trains half of them, then measure once.
set -euo pipefail
teacher=$1 pretrained=$2 data=$3 work=$4 rows=$5
here=$(cd "$(dirname "$0")" && pwd)
students=(
  plain ternary-bert vanilla-kd distilbert pkd tinybert tinybert-plain minilm minilmv2 bert-of-theseus metadistil
  int8-after int8-aware soft-movement combined
)
mkdir -p "$work"

train() {
  local recipe=$1
  [ -f "$here/$recipe.yaml" ] && recipe=$here/$recipe.yaml
  [ -e "$work/$1" ] || lissom compress "$teacher" --recipe "$recipe" --data "$data" --max-length 64 --out "$work/$1" \
    ${THREADS:+--threads "$THREADS"}
}

from_pretrained() { # the same three layers, never taught by the teacher
  [ -e "$work/cut" ] || lissom compress "$pretrained" --recipe "$here/cut.yaml" --out "$work/cut"
  [ -e "$work/no-teacher" ] || lissom finetune "$work/cut" --data "$data" --epochs 4 --learning-rate 1e-4 \
    --max-length 64 --out "$work/no-teacher" ${THREADS:+--threads "$THREADS"}
}

queue=${QUEUE:-1/1}
for i in "${!students[@]}"; do
  if [ $((i % ${queue#*/})) -eq $((${queue%/*} - 1)) ]; then train "${students[$i]}"; fi
done
if [ "${queue%/*}" = 1 ]; then from_pretrained; fi
[ "$queue" = 1/1 ] || exit 0

ln -sfn "$(realpath "$teacher")" "$work/teacher"
rows=$(realpath -m "$rows") data=$(realpath "$data")
cd "$work"
lissom measure no-teacher "${students[@]}" --vs teacher --data "$data" --max-length 64 --out "$rows" \
  --metrics accuracy,keep,label_loyalty,probability_loyalty,size_mb,parameters,sparsity,flops
