#!/usr/bin/env bash
# Drops a fifth of the layers of a decoder, by block influence (the recipe shortgpt) and, to compare, the last ones and
# others at equal distances, lets what is left go on with a text through plain transformers, and measures side by side:
#   benchmarks/structure/depth.sh MODEL DATA WORK rows.jsonl
# MODEL: a causal language model. DATA: a folder with validation.jsonl, to calibrate on, and test_raw.jsonl, whose
# perplexity is measured. What is finished in WORK is not made again. ARTICLES=10 measures on the first ten alone.
set -euo pipefail
model=$1 data=$2 work=$3 rows=$4
mkdir -p "$work/calibration"
cp "$data/validation.jsonl" "$work/calibration/train.jsonl"
# what each command measures by itself
echo '{"text": "A short text, because perplexity comes from the other one."}' >"$work/calibration/validation.jsonl"

for by in last every-other; do
  printf 'lissom: 1\nname: %s\nsteps:\n  - keep_layers: {keep: 0.8, by: %s}\n' $by $by >"$work/depth-$by.yaml"
done
made=(shortgpt depth-last depth-every-other)
for name in "${made[@]}"; do
  recipe=$work/$name.yaml
  [ -e "$recipe" ] || recipe=$name
  [ -e "$work/$name" ] || lissom compress "$model" --recipe "$recipe" --data "$work/calibration" --max-length 512 \
    --out "$work/$name" ${THREADS:+--threads "$THREADS"}
done

ln -sfn "$(realpath "$model")" "$work/original"
rows=$(realpath -m "$rows") test=$(realpath -m "$work/test.jsonl")
head -n "${ARTICLES:-1000}" "$data/test_raw.jsonl" >"$test"
cd "$work"
python - <<'PYTHON'
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("shortgpt"), AutoTokenizer.from_pretrained("shortgpt")
prompt = tokenizer("The capital of France is", return_tensors="pt")
print(model.config.num_hidden_layers, "layers:", tokenizer.decode(model.generate(**prompt, max_new_tokens=12)[0]))
PYTHON
lissom measure "${made[@]}" --vs original --data "$test" --out "$rows" --metrics perplexity,size_mb,parameters
