"""What every test gets: one thread, no network, and the way to the data that may lie beside a checkout."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

torch.set_num_threads(1)  # the tiny models gain nothing from more, and the numbers repeat


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Every way out except Unix sockets fails at once, as something that no library mistakes for being offline."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a test tried to reach the network")

    def only_unix(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: socket.socket, *arguments: Any) -> Any:
            return original(self, *arguments) if self.family == socket.AF_UNIX else refuse()

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, only_unix(getattr(socket.socket, name)))
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """`shared("data/sst2")`: a path beside the checkout; the test is skipped where it is not there."""

    def path(name: str) -> Path:
        found = SHARED / name
        if not found.exists():
            pytest.skip(f"shared/{name} does not lie beside this checkout")
        return found

    return path
