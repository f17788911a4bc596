"""Engines that answer texts, all with the same call.

`open_runner` takes what a person has (a folder, an exported folder, a hub id, a model) and gives a `Runner`.
Importing this package loads neither torch nor onnxruntime; a runner class loads its engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissom.errors import LissomError
from lissom.runtime.batches import token_batches
from lissom.runtime.runner import Runner, Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lissom.runtime.onnx import OnnxRunner
    from lissom.runtime.openvino import OpenVinoRunner
    from lissom.runtime.torch import TorchRunner

__all__ = ["OnnxRunner", "OpenVinoRunner", "Runner", "Text", "TorchRunner", "open_runner", "token_batches"]


def __getattr__(name: str) -> Any:
    if name == "TorchRunner":
        from lissom.runtime.torch import TorchRunner

        return TorchRunner
    if name == "OnnxRunner":
        from lissom.runtime.onnx import OnnxRunner

        return OnnxRunner
    if name == "OpenVinoRunner":
        from lissom.runtime.openvino import OpenVinoRunner

        return OpenVinoRunner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def open_runner(
    subject: str | Path | PreTrainedModel,
    *,
    device: str | None = None,
    threads: int | None = None,
    max_length: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    variant: str | None = None,
) -> Runner:
    """The runner for a subject: OpenVINO for a folder with openvino/openvino_model.xml, ONNX Runtime for one with
    graphs in `onnx/`, else torch.

    subject: a folder, an exported folder, a hub id, or a transformers model (then give `tokenizer`).
    device: "cpu", "cuda" or "auto"; None means the CPU for what is loaded here, and a model object stays where it is.
    variant: which graph of an exported folder; see `OnnxRunner`.
    A folder in float16 runs in float32 on the CPU, which computes float16 two to four times slower than float32: a
    reference that is slow for such a reason would flatter what is compared with it.
    Raises LissomError LSM-214 for a variant of something that has no graphs.
    """
    if variant is None and isinstance(subject, str | Path) and (Path(subject) / "openvino/openvino_model.xml").exists():
        from lissom.runtime.openvino import OpenVinoRunner

        # "auto" may mean any device; of those this engine has one
        return OpenVinoRunner(subject, device=device or "cpu", threads=threads, max_length=max_length)
    if isinstance(subject, str | Path) and any((Path(subject) / "onnx").glob("model*.onnx")):
        from lissom.runtime.onnx import OnnxRunner

        return OnnxRunner(subject, device=device or "cpu", threads=threads, max_length=max_length, variant=variant)
    if variant is not None:
        raise LissomError(214, f'"{variant}" names a graph, and {_shown(subject)} is no folder with an onnx/ inside')
    from lissom.runtime.torch import TorchRunner

    if not isinstance(subject, str | Path):
        device = best_device() if device == "auto" else device
        return TorchRunner(subject, tokenizer, device=device, threads=threads, max_length=max_length)
    import torch

    from lissom.store import load, load_tokenizer

    device = best_device() if device == "auto" else device or "cpu"
    model = load(subject, device=device)
    if device == "cpu" and model.dtype == torch.float16:
        torch.nn.Module.to(model, torch.float32)
    folder = Path(subject) if Path(subject).is_dir() else None
    return TorchRunner(
        model,
        load_tokenizer(subject) if tokenizer is None else tokenizer,
        device=device,
        threads=threads,
        max_length=max_length,
        folder=folder,
    )


def best_device() -> str:
    """ "cuda" where torch finds one, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _shown(subject: Any) -> str:
    return str(subject) if isinstance(subject, str | Path) else type(subject).__name__
