import pytest
import torch

from unveil.data.normalization import normalize


@pytest.mark.parametrize(
    ("which", "mean", "std"),
    [
        ("clip", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_equals_torchvision(which: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    from torchvision.transforms.functional import convert_image_dtype
    from torchvision.transforms.functional import normalize as reference

    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    result = normalize(images, which)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, reference(convert_image_dtype(images), mean, std), atol=2e-6, rtol=0)


def test_can_be_used_in_training_after_inference_mode() -> None:
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    with torch.inference_mode():
        normalize(images, "clip")
    weight = torch.ones(1, requires_grad=True)
    (normalize(images, "clip") * weight).sum().backward()
    assert weight.grad is not None


def test_unknown_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(Exception, match=r"clip.*imagenet"):
        normalize(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "inception")
