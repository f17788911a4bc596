"""Which forms of a model a processor computes with faster, by its instructions: said beforehand, nothing is run.

A form is how numbers are stored and multiplied. What a runtime makes of it is measured by `lissom plan` and `measure`.
Sources: ONNX Runtime, "Quantize ONNX models" (AVX2 without VNNI: 7 bits); Intel oneDNN, "Nuances of int8 computations".
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lissom.methods import Method

_INT8 = ("AMX", "VNNI", "I8MM", "DOTPROD")  # fastest first
_BF16 = ("AMX", "BF16")


def overflows(instructions: Collection[str]) -> bool:
    """Whether int8 products are added in 16 bits, which two of 8 bit weights and inputs can exceed.

    instructions: as `lissom.measure.machine.INSTRUCTIONS` names them.
    """
    return bool({"AVX2", "AVX-512"} & set(instructions)) and not set(_INT8) & set(instructions)


def forms(instructions: Collection[str]) -> dict[str, str]:
    """int8, bf16 and 4-bit groups -> in words what a processor with these instructions does with them."""
    whole = next((one for one in _INT8 if one in instructions), "")
    half = next((one for one in _BF16 if one in instructions), "")
    int8 = f"products in {whole}: faster than float32" if whole else "no int8 products: saves space, hardly any time"
    if overflows(instructions):
        int8 += "; ONNX Runtime adds two products in 16 bits here, which 8 bits can exceed: write int8: {bits: 7}"
    return {
        "int8": int8,
        "bf16": f"products in {half}: faster in torch and OpenVINO" if half else "no bf16 products: saves space only",
        "4-bit groups": "multiplied in float32: fewer bytes to read, which counts for one text or token at a time in "
        "ONNX Runtime; not faster in batches, nor in torch",
    }


def warnings(steps: Collection[Method], instructions: Collection[str]) -> list[str]:
    """What is wrong with the steps of a recipe on a processor with these instructions, a sentence each."""
    if not overflows(instructions):
        return []
    return [
        "int8 with 8 bits: ONNX Runtime's sums of int8 products can overflow on this processor, and an export whose "
        "answers came out wrong is refused. Write int8: {bits: 7}."
        for step in steps
        if step.name == "int8" and getattr(step, "bits", 8) == 8
    ]
