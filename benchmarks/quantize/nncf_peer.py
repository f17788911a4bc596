"""What NNCF makes of a graph of OpenVINO, at its settings for transformers: graph.xml, texts.npz, out.xml."""

import sys
from collections import defaultdict

import nncf
import numpy as np
import openvino

graph, texts, out = sys.argv[1:]
model = openvino.Core().read_model(graph)
held, rows = np.load(texts), defaultdict(dict)
for key in held.files:
    row, _, name = key.partition("/")
    rows[row][name] = held[key]
made = nncf.quantize(
    model,
    nncf.Dataset(list(rows.values())),
    model_type=nncf.ModelType.TRANSFORMER,
    preset=nncf.QuantizationPreset.MIXED,
    subset_size=len(rows),
)
openvino.save_model(made, out, compress_to_fp16=False)
