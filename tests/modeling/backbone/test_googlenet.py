"""GoogLeNet: maps against torchvision's classifier, pixel statistics, weights, freezing."""

from __future__ import annotations

from urllib.error import URLError

import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.export import TracingAdapter
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from torch import Tensor, nn

from fsn_d2.modeling.backbone import GoogLeNetBackbone, add_backbone_config, adopt_input_statistics

ENDS = {"res2": "conv3", "res3": "inception3b", "res4": "inception4e", "res5": "inception5b"}


@pytest.fixture(scope="module")
def classifier(warm_up) -> nn.Module:
    """A classifier with the auxiliary heads and the input step of torchvision's weights file."""
    torch.manual_seed(0)
    model = torchvision.models.googlenet(
        weights=None, aux_logits=True, transform_input=True, init_weights=False
    )
    return warm_up(model)


@pytest.fixture(scope="module")
def weights_file(classifier: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "googlenet.pth"
    torch.save(classifier.state_dict(), path)
    return str(path)


def stage_outputs(classifier: nn.Module, image: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    hooks = [
        classifier.get_submodule(module).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output})
        )
        for name, module in ENDS.items()
    ]
    with torch.no_grad():
        classifier(image)
    for hook in hooks:
        hook.remove()
    return seen


def test_maps_equal_torchvisions_with_its_preset_and_its_input_step(
    classifier: nn.Module, weights_file: str
) -> None:
    """(x - 127.5) / 127.5 is what torchvision's two normalisations amount to."""
    cfg = get_cfg()
    add_backbone_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_googlenet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.GOOGLENET.PRETRAINED = weights_file
    adopt_input_statistics(cfg)
    assert cfg.INPUT.FORMAT == "RGB"
    rgb = torch.rand(2, 3, 64, 96) * 255
    mean, std = (
        torch.tensor(value).view(3, 1, 1) for value in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )
    preset = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.transforms()
    as_torchvision = torchvision.transforms.functional.normalize(rgb / 255, preset.mean, preset.std)

    with torch.no_grad():
        maps = build_backbone(cfg).eval()((rgb - mean) / std)

    expected = stage_outputs(classifier, as_torchvision)
    assert list(maps) == list(ENDS)
    for key, tensor in maps.items():
        assert tensor.std() > 0.1  # the units are alive, so the comparison means something
        torch.testing.assert_close(tensor, expected[key], rtol=1e-3, atol=1e-3)


def test_maps_and_pyramid_have_the_stated_shapes() -> None:
    cfg = get_cfg()
    add_backbone_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_googlenet_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = list(ENDS)
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    backbone = build_backbone(cfg).eval()
    with torch.no_grad():
        maps = backbone.bottom_up(torch.zeros(1, 3, 64, 96))
        pyramid = backbone(torch.zeros(1, 3, 64, 96))
    assert {key: tuple(tensor.shape[1:]) for key, tensor in maps.items()} == {
        "res2": (192, 16, 24),
        "res3": (480, 8, 12),
        "res4": (832, 4, 6),
        "res5": (1024, 2, 3),
    }
    assert {k: (s.channels, s.stride) for k, s in backbone.bottom_up.output_shape().items()} == {
        "res2": (192, 4),
        "res3": (480, 8),
        "res4": (832, 16),
        "res5": (1024, 32),
    }
    assert [tuple(tensor.shape[1:]) for tensor in pyramid.values()] == [
        (16, 16, 24),
        (16, 8, 12),
        (16, 4, 6),
        (16, 2, 3),
        (16, 1, 2),
    ]


def test_frozen_normalisation_equals_evaluation_and_stays(weights_file: str) -> None:
    frozen = GoogLeNetBackbone(pretrained=weights_file).train()
    plain = GoogLeNetBackbone(pretrained=weights_file, norm="BN").eval()
    assert sum(isinstance(m, FrozenBatchNorm2d) for m in frozen.modules()) == 57
    before = {key: value.clone() for key, value in frozen.named_buffers()}
    image = torch.rand(1, 3, 64, 96)
    maps = frozen(image)
    maps["res5"].sum().backward()
    with torch.no_grad():
        expected = plain(image)
    for key, tensor in maps.items():
        assert tensor.std() > 0.1
        torch.testing.assert_close(tensor, expected[key], rtol=1e-3, atol=1e-3)
    for key, value in frozen.named_buffers():
        assert torch.equal(value, before[key]), key
    assert not any(".bn." in key for key, _ in frozen.named_parameters())


@pytest.mark.parametrize(
    ("freeze_at", "frozen"),
    [(0, set()), (1, {"conv1"}), (2, {"conv1", "conv2", "conv3"})],
)
def test_freeze_at_holds_the_first_stages(freeze_at: int, frozen: set[str]) -> None:
    extractor = GoogLeNetBackbone(norm="BN", freeze_at=freeze_at).extractor
    fixed = {key.split(".")[0] for key, p in extractor.named_parameters() if not p.requires_grad}
    learnt = {key.split(".")[0] for key, p in extractor.named_parameters() if p.requires_grad}
    assert fixed == frozen
    assert not fixed & learnt
    frozen_norms = {
        key.split(".")[0]
        for key, m in extractor.named_modules()
        if isinstance(m, FrozenBatchNorm2d)
    }
    assert frozen_norms == frozen


def test_weights_that_do_not_fit_are_refused(classifier: nn.Module, tmp_path) -> None:
    state = dict(classifier.state_dict())
    state["conv1.conv.weight"] = torch.zeros(64, 1, 7, 7)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"conv1\.conv\.weight: \(64, 1, 7, 7\), expected \(64, 3"):
        GoogLeNetBackbone(pretrained=str(tmp_path / "weights.pth"))


def test_a_failed_download_says_which_file_and_where_to_put_it(monkeypatch, tmp_path) -> None:
    def offline(*args: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(FileNotFoundError, match=r"googlenet-.*\.pth.*MODEL\.GOOGLENET\.PRETRAINED"):
        GoogLeNetBackbone(pretrained="torchvision")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_traced_backbone_takes_images_of_other_sizes(weights_file: str) -> None:
    backbone = GoogLeNetBackbone(pretrained=weights_file).eval()
    adapter = TracingAdapter(backbone, torch.rand(2, 3, 64, 96))
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    other = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        torch.testing.assert_close(adapter.outputs_schema(traced(other)), backbone(other))


def test_stages_that_nobody_reads_are_held_fixed() -> None:
    cfg = get_cfg()  # whose RPN and heads read res4
    add_backbone_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_googlenet_backbone", 0
    backbone = build_backbone(cfg)
    found = {key for key, p in backbone.named_parameters() if not p.requires_grad}
    assert found == {key for key, _ in backbone.named_parameters() if "inception5" in key}
    assert found
