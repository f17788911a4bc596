"""Where a row was measured: facts that decide speed, from a fixed list. No host, user or path names."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from lissom import __version__

INSTRUCTIONS = {  # name that people know -> flags of /proc/cpuinfo, any of which means it is there
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "BF16": ("avx512_bf16", "bf16"),
    "AMX": ("amx_tile",),
    "NEON": ("asimd",),
    "DOTPROD": ("asimddp",),
    "I8MM": ("i8mm",),
}
PACKAGES = ("numpy", "onnxruntime", "openvino", "tokenizers", "torch", "transformers")


def machine() -> dict[str, Any]:
    """CPU model, cores this process may use, instruction sets, memory (GB, 1e9 bytes), system."""
    import psutil

    cpu = _cpuinfo()
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": [name for name, any_of in INSTRUCTIONS.items() if flags.intersection(any_of)],
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """lissom, Python and the installed packages that decide numbers."""
    found = {"lissom": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    lines = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
