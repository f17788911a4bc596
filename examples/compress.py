"""Compress a fine-tuned classifier and keep it only when it is good enough: python compress.py MODEL DATA OUT."""

import sys

import lissom


def main(model: str, data: str, out: str) -> int:
    """Exit code 5 when less than 98 % of the quality is kept."""
    plan = lissom.plan(model, "demo", data=data)
    for step in plan.steps:
        print(f"{step.name}: {step.after.parameters:,} parameters, {step.speed}")
    result = lissom.compress(model, "demo", data=data, keep=0.98)
    for verdict in result.verdicts:
        print(verdict.text)
    if not result.met:
        return 5
    result.save(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
