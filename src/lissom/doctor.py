"""What this machine and this installation have: read, not tried, so that looking never fails."""

from __future__ import annotations

import importlib.util
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from lissom.forms import forms, overflows
from lissom.measure.machine import machine, versions

_RAPL = Path("/sys/class/powercap")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w-]+)['"]""")
_FIRST_WORD = re.compile(r"[A-Za-z0-9._-]+")


def examine() -> dict[str, Any]:
    """Machine, free memory (GB, 1e9 bytes), what the processor does with each form (`lissom.forms`), accelerators,
    energy counters, versions, extras, problems; plain values."""
    import psutil

    place, packages = machine(), versions()
    return {
        "machine": place,
        "free_memory_gb": round(psutil.virtual_memory().available / 1e9, 1),
        "forms": forms(place["instructions"]),
        "accelerators": _accelerators(),
        "energy": _energy(),
        "versions": packages,
        "extras": _extras(),
        "problems": _problems(place, packages),
    }


def _accelerators() -> list[str]:
    """Names of the GPUs that torch and ONNX Runtime can use."""
    import torch

    found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("Apple GPU (mps)")
    return found


def _energy() -> list[str]:
    """Hardware counters that this process may read."""
    domains = [path.parent for path in sorted(_RAPL.glob("*/energy_uj")) if os.access(path, os.R_OK)]
    found = [f"RAPL {(folder / 'name').read_text().strip()}" for folder in domains if (folder / "name").is_file()]
    if importlib.util.find_spec("pynvml") is not None and Path("/dev/nvidiactl").exists():
        found.append("NVML")
    return found


def _extras() -> dict[str, str]:
    """Extra -> "installed", or what is missing and how to get it. Development tools are left out."""
    try:
        wanted = metadata.requires("lissom") or []
    except metadata.PackageNotFoundError:  # run from a source tree
        return {}
    packages: dict[str, list[str]] = {}
    for line in wanted:
        extra, name = _EXTRA.search(line), _FIRST_WORD.match(line)
        if extra and name and extra[1] != "dev":
            packages.setdefault(extra[1], []).append(name[0])
    states = {}
    for group, names in packages.items():
        missing = [one for one in names if not _installed(one)]
        how = f'{", ".join(missing)} missing; pip install "lissom[{group}]"'
        states[group] = how if missing else "installed"
    return states


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _problems(place: dict[str, Any], packages: dict[str, str]) -> list[str]:
    """What does not fit together, each with what to do."""
    found = []
    instructions = set(place["instructions"])
    if not instructions & {"VNNI", "AMX", "DOTPROD", "I8MM"}:
        found.append("This CPU has no int8 dot products: int8 saves space here and hardly any time.")
    if overflows(instructions):
        found.append("Sums of int8 products can overflow in ONNX Runtime on this CPU: compress with int8: {bits: 7}.")
    if int(packages.get("transformers", "5").split(".")[0]) < 5:
        found.append(f"transformers {packages['transformers']} is too old: pip install 'transformers>=5.20,<6'.")
    installed = {dist.metadata["Name"].lower() for dist in metadata.distributions() if dist.metadata["Name"]}
    if {"onnxruntime", "onnxruntime-gpu"} <= installed:
        found.append("onnxruntime and onnxruntime-gpu overwrite each other: uninstall both, install one.")
    if "optimum-onnx" in installed:
        found.append("optimum-onnx needs transformers below 5 and cannot stand beside lissom: uninstall it.")
    return found
