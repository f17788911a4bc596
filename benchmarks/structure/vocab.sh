#!/usr/bin/env bash
# Drops the tokens that the training texts use fewer times than 1, 2 and 4, and measures on the test texts:
#   benchmarks/structure/vocab.sh MODEL DATA WORK rows.jsonl
# MODEL: a fine-tuned classifier, stored in float16. DATA: its data, with train, validation and test. What is finished in
# WORK is not made again. What is made is stored in float16 too, which rounds nothing. The last two rows are those on the
# test texts all of whose tokens `vocab-4` has: the answers must be the same. ONLY_INSIDE=1 measures these alone.
set -euo pipefail
model=$(realpath "$1") data=$(realpath "$2") work=$3 rows=$4
mkdir -p "$work/inside"
rows=$(realpath -m "$rows")
cd "$work"
made=()
for least in 1 2 4; do
  made+=("vocab-$least")
  printf 'lissom: 1\nname: vocab-%s\nsteps:\n  - prune_vocab: {at_least: %s}\n  - half: {kind: fp16}\n' \
    "$least" "$least" >"vocab-$least.yaml"
  [ -e "vocab-$least" ] || lissom compress "$model" --recipe "vocab-$least.yaml" --data "$data" --out "vocab-$least" \
    --json ${THREADS:+--threads "$THREADS"} >"vocab-$least.json"
done
ln -sfn "$model" original
metrics=accuracy,keep,label_loyalty,probability_loyalty,size_mb,parameters
[ -n "${ONLY_INSIDE:-}" ] || lissom measure "${made[@]}" --vs original --data "$data" --out "$rows" --metrics $metrics
python - "$data" <<'PYTHON'
import json, pathlib, sys
from lissom.data import load_data
from lissom.store import load_tokenizer

old, new = load_tokenizer("original"), load_tokenizer("vocab-4")
kept = new.get_vocab()
known = {number for token, number in old.get_vocab().items() if token in kept}
rows = [row for row in load_data(sys.argv[1]).split("test") if known.issuperset(old(row["text"])["input_ids"])]
pathlib.Path("inside/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
PYTHON
lissom measure vocab-4 --vs original --data inside --out "$rows" --metrics $metrics
