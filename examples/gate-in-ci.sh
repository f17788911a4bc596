#!/bin/sh
# A job that compresses a model and fails (exit 5) when the result is not good enough. It needs `teacher`, `data` and
# `recipe.yaml` beside it. `check` measures nothing: it can run again, elsewhere, on the folder alone.
set -eu

lissom compress teacher --recipe recipe.yaml --data data --out out --force --quiet
lissom check out --gate "keep>=0.9,label_loyalty>=0.8"
