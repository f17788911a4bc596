"""Where texts may leave a model early: torch's inference mode is for answers, never for what looks at all layers."""

from __future__ import annotations

from tests.conftest import ROOT


def test_no_statistic_and_no_method_asks_in_inference_mode() -> None:
    package = ROOT / "src" / "lissom"
    files = [path for name in ("stats", "methods") for path in (package / name).rglob("*.py")]
    assert [path.name for path in files if "inference_mode" in path.read_text("utf-8")] == []
