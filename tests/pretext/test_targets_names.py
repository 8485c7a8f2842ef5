"""Teachers' names, and a hub that does not answer."""

import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest
import torch

from unveil.config import (
    ClipTarget,
    EmaTarget,
    EmbeddedTarget,
    HogTarget,
    PixelTarget,
    TimmTarget,
    UnveilError,
)
from unveil.config.teacher import parse_teacher
from unveil.pretext.targets import hub
from unveil.pretext.targets.build import build_target


def test_names(tmp_path: Path) -> None:
    assert parse_teacher("embedded") == EmbeddedTarget()
    assert parse_teacher("pixels") == PixelTarget()
    assert parse_teacher("hog") == HogTarget()
    assert parse_teacher("ema") == EmaTarget()
    assert parse_teacher("clip") == ClipTarget(name="ViT-L-14/openai")
    assert parse_teacher("ViT-B-16/laion2b-s34b-b88k") == ClipTarget(name="ViT-B-16/laion2b-s34b-b88k")
    assert parse_teacher("vit_base_patch14_dinov2.lvd142m") == TimmTarget(name="vit_base_patch14_dinov2.lvd142m")
    clip = "vit_large_patch14_clip_quickgelu_224.openai"
    assert parse_teacher(clip) == ClipTarget(name=clip)
    file = tmp_path / "weights.pt"
    file.write_bytes(b"")
    assert parse_teacher(str(file)) == ClipTarget(name=str(file))
    assert parse_teacher(f"ViT-B-32/{file}") == ClipTarget(name=f"ViT-B-32/{file}")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("embeded", "embedded"),
        ("ViT-L-14/openia", "ViT-L-14/openai"),
        ("ViT-L14/openai", "ViT-L-14/openai"),
        ("dinov2", "vit_base_patch14_dinov2"),
        ("vit_base_patch16_dinov2", "vit_base_patch14_dinov2"),
        ("vit_base_patch14_dinov2.lvd142", "vit_base_patch14_dinov2.lvd142m"),
        ("./missing.pt", "not a file"),
        ("/nowhere/clip.safetensors", "not a file"),
    ],
)
def test_unknown_names_say_what_is_near(text: str, hint: str) -> None:
    with pytest.raises(UnveilError, match=hint):
        parse_teacher(text)


def test_usual_names_import_nothing_heavy() -> None:
    code = (
        "import sys; from unveil.config.teacher import parse_teacher; "
        "[parse_teacher(n) for n in ('embedded', 'pixels', 'hog', 'ema', 'clip')]; "
        "assert not {'torch', 'timm', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("target", [ClipTarget(), TimmTarget(name="vit_tiny_patch16_224.augreg_in21k")])
def test_hub_not_reachable(monkeypatch: pytest.MonkeyPatch, target: ClipTarget | TimmTarget) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no such host")

    monkeypatch.setattr(hub.urllib.request, "urlopen", refuse)
    with pytest.raises(UnveilError, match=r"cannot be reached \(no such host\).*local file.*--teacher embedded"):
        build_target(target, grid=(14, 14), patch_size=16)


@pytest.mark.usefixtures("empty_cache")
def test_hub_offline_by_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnveilError, match=r"HF_HUB_OFFLINE is set.*--teacher embedded"):
        build_target(ClipTarget(), grid=(16, 16), patch_size=14)


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("kind", ["LocalEntryNotFoundError", "RepositoryNotFoundError", "GatedRepoError", "OSError"])
def test_hub_refuses(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    import huggingface_hub

    monkeypatch.setattr(hub, "require_reachable", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: raise_like_the_hub(kind))
    with pytest.raises(UnveilError, match=r"ViT-L-14/openai .*could not be downloaded: nothing.*--teacher embedded"):
        build_target(ClipTarget(), grid=(16, 16), patch_size=14)


def raise_like_the_hub(kind: str) -> None:
    """One of the hub client's own exceptions, made without the answer of a server that it wants."""
    from huggingface_hub import errors

    base = OSError if kind == "OSError" else getattr(errors, kind)
    raise type(kind, (base,), {"__init__": lambda self: Exception.__init__(self, "nothing here")})()


@pytest.mark.usefixtures("empty_cache")
def test_takes_the_first_file_that_the_hub_has(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(repository: str, file: str) -> str:
        if file == "first":
            raise_like_the_hub("RemoteEntryNotFoundError")
        return f"{repository}:{file}"

    monkeypatch.setattr(hub, "require_reachable", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub.fetch("t", "r", ("first", "second")) == Path("r:second")
    with pytest.raises(UnveilError, match="holds none of first"):
        hub.fetch("t", "r", ("first",))


def test_a_cached_file_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: f"{repository}/{file}")
    monkeypatch.setattr(hub, "require_reachable", lambda *_: pytest.fail("asked the network"))
    assert hub.fetch("t", "r", ("file",)) == Path("r/file")


def test_a_weights_file_runs_no_code(tmp_path: Path) -> None:
    """A pickle that would call something is refused."""

    class Call:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return print, ("called",)

    torch.save({"weight": Call()}, tmp_path / "evil.pt")
    with pytest.raises(UnveilError, match="would run code"):
        build_target(ClipTarget(name=str(tmp_path / "evil.pt")), grid=(4, 4), patch_size=7)
