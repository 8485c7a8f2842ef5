"""`unveil plan` and `unveil bench` from the command line."""

import json
import subprocess
import sys
from pathlib import Path

from tests.flows.commands import Unveil

WITHOUT_TORCH = """
import contextlib, io, sys
from unveil.cli.main import main
for arguments in (["plan", "--help"], ["plan", "eva_giant"], ["plan", "eva_clip_giant", "--gpus", "8"]):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(arguments)
print(sorted({"torch", "numpy", "timm", "PIL"} & set(sys.modules)))
"""

PAPER = ("eva_giant", "--gpus", 128, "--gpu", "a100-40gb", "--parallel", "zero1")


def test_plan_imports_nothing_heavy() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, timeout=60, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_the_papers_run_is_compared_with_its_own_figures(unveil: Unveil, tmp_path: Path) -> None:
    shown = unveil("plan", *PAPER, "--layout", "as-published", "--json", tmp_path / "plan.json")
    assert shown.status == 0
    for line in ("1,012.2 M parameters", "CLIP ViT-L-14", "128 GPUs x 32 x 1", "16.3 days, not 14.5", ": fits"):
        assert line in shown.out
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["chosen"]["memory"]["total"] == sum(
        size for name, size in figures["chosen"]["memory"].items() if name != "total"
    )
    assert figures["network"]["parameters"] == 1_012_229_632
    # Our own layout is not the paper's, and is not compared with it.
    assert "Table 3d" not in unveil("plan", *PAPER).out


def test_plan_says_what_is_missing_or_wrong(unveil: Unveil) -> None:
    for arguments, complaint in (
        (("eva_gigant",), "perhaps you meant eva_giant"),
        (("eva_giant", "--gpu", "a100-40"), "perhaps you meant a100-40gb"),
        (("base_one_gpu", "--set", "optimization.epochs=3"), "--images N"),
        (("eva_giant", "--gpus", 3), "--global-batch-size"),
        (("eva_giant", "--mfu", 40), "at most 1"),
        (("eva_giant", "--layout", "as-published", "--parallel", "fsdp"), "ZeRO-1"),
        (("eva_giant", "--gpus", 0), "at least 1"),
    ):
        answer = unveil("plan", *arguments)
        assert answer.status == 1 and complaint in answer.complaint
    hopeless = unveil("plan", "eva_giant", "--gpu", "t4")
    assert "does not fit" in hopeless.out and "nothing fits" in hopeless.out


def test_bench_measures_both_and_writes_the_figures(unveil: Unveil, tmp_path: Path) -> None:
    settings = [f"--set={name}" for name in ("data.workers=0", "target=PixelTarget", "engine.precision=fp32")]
    file = tmp_path / "bench.json"
    shown = unveil("bench", "tiny_cpu", "--steps", 1, "--warm-up", 0, "--vs", "timm", *settings, "--json", file)
    assert shown.status == 0, shown.err
    for word in ("images/s", "MFU", "peak memory", "communication", "against timm"):
        assert word in shown.out
    assert [one["name"] for one in json.loads(file.read_text())] == ["unveil", "timm's blocks"]


def test_bench_measures_classifiers_and_refuses_the_rest(unveil: Unveil) -> None:
    settings = ("--steps", 1, "--warm-up", 0, "--set", "data.workers=0")
    assert unveil("bench", "finetune_tiny_cpu", *settings).status == 0
    assert "pre-training or classification" in unveil("bench", "clip_tiny_cpu").complaint
    assert "at least 1" in unveil("bench", "tiny_cpu", "--steps", 0).complaint
