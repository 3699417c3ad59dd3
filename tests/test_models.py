"""Behaviour of ``tlhelpers.models``: backbones, freezing, and what moved."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from tlhelpers import audit, features, models, probe, runtime
from tlhelpers.splits import Dataset


def images(n: int = 2, size: int = 64) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("resnet18", 512),
        ("mobilenet_v2", 1280),
        ("squeezenet1_1", 512),
        ("densenet121", 1024),
        ("efficientnet_b0", 1280),
        ("shufflenet_v2_x0_5", 1024),
        ("alexnet", 4096),
    ],
)
def test_features_are_what_the_head_sees(name: str, dim: int) -> None:
    backbone = models.backbone(name, weights=None)
    features = backbone.network(images())
    assert features.shape == (2, dim) == (2, backbone.dim)
    logits = backbone.classifier(images())
    head = backbone.classifier
    last = [part for part in head.modules() if isinstance(part, nn.Linear)]
    if last:  # SqueezeNet's head is a convolution
        torch.testing.assert_close(last[-1](features), logits)


def test_vision_transformer_gives_its_class_token() -> None:
    backbone = models.backbone("vit_b_32", weights=None)
    assert backbone.network(images(1, 224)).shape == (1, 768)
    assert backbone.stages[0] == "encoder.layers.encoder_layer_0"
    assert backbone.at(backbone.stages[0])(images(1, 224)).shape == (1, 768)


def test_a_grid_keeps_where_in_the_image_a_stage_saw_something() -> None:
    backbone = models.backbone("resnet18", weights=None)
    x = images()
    whole, fields = backbone.at("layer3")(x), backbone.at("layer3/2x2")(x)
    assert fields.shape == (2, 4 * 256)
    torch.testing.assert_close(fields.view(2, 256, 4).mean(2), whole)
    torch.testing.assert_close(backbone.at("layer3/1x1")(x), whole)
    left = x.clone()
    left[..., x.shape[-1] // 2 :] = 0
    gap = (backbone.at("layer1/1x8")(left) - backbone.at("layer1/1x8")(x)).view(2, 64, 8)
    assert gap[..., 0].abs().max() < 1e-5 < gap[..., -1].abs().max()
    with pytest.raises(ValueError, match="no stage 'layer9'"):
        backbone.at("layer9/2x2")
    tokens = models.backbone("vit_b_32", weights=None)
    with pytest.raises(ValueError, match="grid of 2x2 needs a stage with an image plane"):
        tokens.at(f"{tokens.stages[0]}/2x2")(images(1, 224))


def test_stages_are_averaged_over_the_image_plane() -> None:
    backbone = models.backbone("resnet18", weights=None)
    assert backbone.stages == ("layer1", "layer2", "layer3", "layer4")
    assert backbone.at("layer2")(images()).shape == (2, 128)
    torch.testing.assert_close(backbone.at("layer4")(images()), backbone.network(images()))
    assert backbone.at("logits")(images()).shape == (2, 1000)
    with pytest.raises(ValueError, match="has no stage 'layer9'"):
        backbone.at("layer9")


def test_random_weights_follow_the_seed_and_leave_the_global_state() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = models.backbone("squeezenet1_1", weights=None, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert first.fingerprint == models.backbone("squeezenet1_1", weights=None, seed=1).fingerprint
    assert first.fingerprint != models.backbone("squeezenet1_1", weights=None, seed=2).fingerprint


def test_preprocessing_is_torchvisions_own_within_one_grey_level() -> None:
    preset = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    ours = models.Preprocess.from_torchvision(preset)
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 300, 400), (3, 224, 224), (3, 50, 31)):
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        torch.testing.assert_close(ours(image), preset(image), atol=1.01 / 255 / 0.224, rtol=0)
    image = torch.randint(0, 256, (3, 256, 256), dtype=torch.uint8, generator=generator)
    torch.testing.assert_close(ours(image), preset(image))  # nothing to resize: equal


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_imagenet_weights_come_through_torchvisions_download(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = torchvision.models.get_model(name, weights=None)
    torch.save(made.state_dict(), tmp_path / "made.pth")
    asked = []

    def fake_download(url: str, destination: str, *_: object, **__: object) -> None:
        asked.append(url)
        shutil.copy(tmp_path / "made.pth", destination)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fake_download)
    backbone = models.backbone(name)
    enum = torchvision.models.get_model_weights(name)
    assert asked == [enum.IMAGENET1K_V1.url], "version 1 by name, since DEFAULT changes"
    assert backbone.weights.endswith("IMAGENET1K_V1")
    assert backbone.preprocess.resize == 256
    made.eval()
    torch.testing.assert_close(backbone.classifier(images()), made(images()))
    assert models.backbone(name).fingerprint == backbone.fingerprint
    assert len(asked) == 1, "the second time it comes from the cache"


def test_a_pickle_that_runs_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (marker,)

    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    torch.save({"x": Evil()}, folder / url.rsplit("/", 1)[1])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(Exception, match=r"[Ww]eights"):
        models.backbone("resnet18")
    assert not marker.exists()


def test_safetensors_weights_by_path(tmp_path: Path) -> None:
    made = torchvision.models.get_model("mobilenet_v2", weights=None).eval()
    state = {k: v for k, v in made.state_dict().items() if not k.endswith("num_batches_tracked")}
    halves = {k: v.half() if v.ndim > 1 else v for k, v in state.items()}
    save_file(halves, tmp_path / "made.safetensors")
    backbone = models.backbone("mobilenet_v2", weights=tmp_path / "made.safetensors")
    assert backbone.weights == "made.safetensors"
    assert next(backbone.network.parameters()).dtype == torch.float32
    torch.testing.assert_close(backbone.classifier(images()), made(images()), rtol=1e-2, atol=1e-2)


def test_wrong_weights_are_refused_with_a_reason(tmp_path: Path) -> None:
    other = torchvision.models.get_model("squeezenet1_1", weights=None)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors does not hold weights of mobilenet"):
        models.backbone("mobilenet_v2", weights=tmp_path / "other.safetensors")
    smaller = torchvision.models.get_model("mobilenet_v2", weights=None, num_classes=7)
    save_file(smaller.state_dict(), tmp_path / "smaller.safetensors")
    with pytest.raises(ValueError, match="it has 2 of other shape"):
        models.backbone("mobilenet_v2", weights=tmp_path / "smaller.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"not a weights file")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        models.backbone("mobilenet_v2", weights=tmp_path / "torn.safetensors")
    with pytest.raises(FileNotFoundError, match="is none of these"):
        models.backbone("mobilenet_v2", weights="absent.safetensors")
    with pytest.raises(ValueError, match="has no classifier 'resnet19'"):
        models.backbone("resnet19")


def test_real_weights_have_the_right_preprocessing(shared_data: Path) -> None:
    for name, dim in (("mobilenet_v2", 1280), ("squeezenet1_1", 512)):
        backbone = models.backbone(name, weights=shared_data / f"{name}_imagenet.safetensors")
        assert backbone.dim == dim
        assert (backbone.preprocess.resize, backbone.preprocess.crop) == (224, 224)


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 2)
    )


def train_a_little(model: nn.Module) -> None:
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1) if trainable else None
    for _ in range(3):
        loss = model(images(8, 4)).square().mean()
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_requires_grad_alone_does_not_freeze_batchnorm() -> None:
    model = torchvision.models.resnet18(weights=None).requires_grad_(False)
    before = models.snapshot(model)
    model.train()
    model(images(2, 64))
    diff = models.diff_state(before, model)
    assert (diff.count("parameter"), diff.count("buffer")) == (0, 60)
    assert str(diff) == "0 of 62 parameters and 60 of 60 buffers moved"


def test_frozen_means_frozen_and_a_new_head_still_learns() -> None:
    model = net()
    models.freeze(model)
    model[4] = nn.Linear(16, 3)
    before = models.snapshot(model)
    train_a_little(model)
    diff = models.diff_state(before, model)
    assert {move.name for move in diff.moves} == {"4.weight", "4.bias"}
    assert model[4].training, "what is attached later follows train()"
    assert not model[2].training, "dropout stays off in the frozen part"
    assert model.train()(images(4, 4)).equal(model.train()(images(4, 4)))


def test_a_frozen_child_survives_its_parents_train() -> None:
    parent = nn.Sequential(models.freeze(net()[:3]), nn.BatchNorm2d(4))
    before = models.snapshot(parent)
    parent.train()
    parent(images(8, 4))
    assert {m.name for m in models.diff_state(before, parent).moves} == {
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }


def test_unfreezing_undoes_freezing() -> None:
    model = models.unfreeze(models.freeze(net()))
    before = models.snapshot(model)
    train_a_little(model)
    assert model.training
    assert models.diff_state(before, model).count("parameter") == 6
    assert models.diff_state(before, model).count("buffer") == 3


def test_a_copy_of_a_frozen_module_is_frozen_on_its_own() -> None:
    original = models.freeze(net())
    twin = copy.deepcopy(original)
    models.unfreeze(original)
    before = models.snapshot(twin)
    train_a_little(twin)
    assert not models.diff_state(before, twin).moves


def test_diff_state_refuses_other_networks() -> None:
    with pytest.raises(ValueError, match="the same parameters, but 6 are in one only"):
        models.diff_state(net(), nn.ReLU())


# --- the small network --------------------------------------------------------------------


def glyphs(n: int = 4, side: int = 16) -> Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(0))


def test_small_resnet_has_the_parts_and_size_that_it_says() -> None:
    network = models.small_resnet(52).eval()
    assert sum(p.numel() for p in network.parameters()) == 80_484
    assert network.widths == (16, 32, 64)
    assert [name for name, _ in network.named_children()] == [
        "stem", "stage1", "stage2", "stage3", "dropout", "head",
    ]  # fmt: skip
    for side in (8, 9, 16, 33):
        assert network(glyphs(3, side)).shape == (3, 52)
    x = network.stage1(network.stem(glyphs()))
    assert x.shape == (4, 16, 16, 16)
    assert network.stage3(network.stage2(x)).shape == (4, 64, 4, 4)
    rows = network.features(glyphs())
    assert rows.shape == (4, 64)
    torch.testing.assert_close(network(glyphs()), network.head(rows))
    dropping = models.small_resnet(52, dropout=0.5).train()
    assert not torch.equal(dropping(glyphs()), dropping(glyphs()))


def test_small_resnet_keeps_channels_last_inside() -> None:
    network = models.small_resnet(10)
    inner: list[Tensor] = []
    for part in (network.stem, network.stage1, network.stage2, network.stage3):
        part.register_forward_hook(lambda _, __, out: inner.append(out))
    for images in (glyphs(), glyphs()[:, :, :, ::2], glyphs().expand(4, 1, 16, 16)):
        network(images)
    assert len(inner) == 12
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in inner)


def test_small_resnet_is_drawn_from_its_seed() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = models.small_resnet(seed=1)
    assert torch.equal(torch.rand(1), expected)
    again, other = models.small_resnet(seed=1), models.small_resnet(seed=2)
    assert models.fingerprint(first) == models.fingerprint(again) != models.fingerprint(other)
    # The body does not depend on the number of classes, nor the head on the seed's other uses.
    wide = models.small_resnet(7, seed=1)
    assert torch.equal(wide.stage3[0].conv2.weight, first.stage3[0].conv2.weight)
    # He et al.: the standard deviation is sqrt(2 / fan_out), here of 64 filters of 3 x 3.
    deviation = first.stage3[0].conv2.weight.std().item()
    assert deviation == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (torch.zeros(2, 3, 16, 16), r"float32 of shape \(2, 3, 16, 16\)"),
        (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), "uint8 of shape"),
        (torch.zeros(2, 16, 16), r"float32 of shape \(2, 16, 16\)"),
        (torch.zeros(2, 1, 4, 16), r"float32 of shape \(2, 1, 4, 16\)"),
    ],
)
def test_small_resnet_says_what_it_takes(images: Tensor, found: str) -> None:
    with pytest.raises(ValueError, match=rf"takes grey images as a float tensor .* found {found}"):
        models.small_resnet()(images)


def test_small_resnet_refuses_settings_that_make_no_network() -> None:
    for settings, sentence in (
        ({"classes": 0}, "needs 1 class or more"),
        ({"widths": (16, 32)}, "three numbers of channels"),
        ({"dropout": 1.0}, "dropout must lie in"),
    ):
        with pytest.raises(ValueError, match=sentence):
            models.small_resnet(**settings)  # type: ignore[arg-type]


def test_saved_weights_come_back(tmp_path: Path) -> None:
    network = models.small_resnet(3, widths=(8, 8, 16), seed=5)
    network.train()
    network(glyphs(16))  # running statistics that are not the default
    network.eval()
    path = models.save_small_resnet(
        network, tmp_path / "zoo" / "three.safetensors", classes=["ä", "b", "c"], recipe={"lr": 0.1}
    )
    found = models.small_resnet(weights=path).eval()
    assert found.about["classes"] == ["ä", "b", "c"]
    assert found.about["recipe"] == {"lr": 0.1}
    assert found.widths == (8, 8, 16)
    assert all(p.dtype == torch.float32 for p in found.parameters())
    torch.testing.assert_close(found(glyphs()), network(glyphs()), atol=5e-3, rtol=5e-3)
    for key, value in found.state_dict().items():
        exact = network.state_dict()[key]
        torch.testing.assert_close(value, exact.half().float() if exact.ndim > 1 else exact)
    assert path.stat().st_size < 2.5 * sum(p.numel() for p in network.parameters()) + 10_000

    fresh = models.small_resnet(5, weights=str(path), dropout=0.2, seed=1).eval()
    assert fresh.head.out_features == 5
    assert fresh.dropout.p == 0.2
    assert fresh.about["classes"] is None
    torch.testing.assert_close(fresh.features(glyphs()), found.features(glyphs()))
    other = models.small_resnet(5, weights=path, seed=2)
    assert not torch.equal(fresh.head.weight, other.head.weight)
    # As many classes as the weights have, but others: the head is fresh all the same.
    assert not torch.equal(models.small_resnet(3, weights=path).head.weight, found.head.weight)


def test_weights_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_weights_folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"The package ships: none yet"):
        models.small_resnet(weights="letters")
    for name in ("letters", "zoo/greek"):
        models.save_small_resnet(
            models.small_resnet(2), tmp_path / f"{name}.safetensors", classes="ab"
        )
    assert models.shipped_weights() == ("letters", "zoo/greek")
    assert models.small_resnet(weights="zoo/greek").about["classes"] == ["a", "b"]
    with pytest.raises(
        FileNotFoundError, match=r"no weights 'latin' .* ships: letters, zoo/greek; a path"
    ):
        models.small_resnet(weights="latin")


def test_what_is_no_weights_file_is_refused(tmp_path: Path) -> None:
    network = models.small_resnet(2)
    with pytest.raises(ValueError, match="2 outputs, but 3 class names"):
        models.save_small_resnet(network, tmp_path / "a.safetensors", classes="abc")
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        models.save_small_resnet(network, tmp_path / "a.pt", classes="ab")
    with torch.no_grad():
        network.head.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"1 entries .* NaN or infinite \(head.weight\)"):
        models.save_small_resnet(network, tmp_path / "a.safetensors", classes="ab")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="not a readable weights file"):
        models.small_resnet(weights=tmp_path / "a.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"should hold weights of the format .* found None"):
        models.small_resnet(weights=tmp_path / "a.safetensors")


# --- any classifier as a backbone ---------------------------------------------------------


def test_a_classifier_becomes_a_backbone() -> None:
    network = models.small_resnet(3).train()
    models.freeze(network.stem)
    images, labels = glyphs(40), torch.arange(40) % 3
    images[:, 0, 0, :] = labels[:, None] / 2
    split = np.repeat(["train", "validation", "test"], [20, 10, 10])
    ids = tuple(map(str, range(40)))
    data = Dataset("made", ("a", "b", "c"), images, labels, split, ids, "made")
    backbone = models.as_backbone(network, name="mine")
    assert backbone.dim == 64
    assert backbone.fingerprint == models.fingerprint(network)
    assert backbone.stages == ("stem", "stage1", "stage2", "stage3")
    assert network.training
    assert network.head.weight.requires_grad
    bank = features.extract(data, backbone, run=runtime.Run())
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(bank.features, network.features(images), atol=1e-5, rtol=1e-4)
        assert bank.name == "made/mine"
        logits = features.extract(data, backbone, at="logits", run=runtime.Run())
        torch.testing.assert_close(logits.features, network(images), atol=1e-5, rtol=1e-4)
        stage = features.extract(data, backbone, at="stage1", run=runtime.Run())
        inner = network.stage1(network.stem(images)).mean(dim=(2, 3))
        torch.testing.assert_close(stage.features, inner, atol=1e-5, rtol=1e-4)
    assert probe.fit(bank)(bank.features).shape == (40, 3)
    # Training goes on without the backbone.
    with torch.no_grad():
        network.head.weight.zero_()
        network.stem[0].weight.zero_()
    assert models.fingerprint(backbone.classifier) == backbone.fingerprint
    assert models.as_backbone(network).name == "SmallResNet"


def test_what_has_no_head_is_no_backbone() -> None:
    with pytest.raises(ValueError, match="Sequential has no linear layer that could be its head"):
        models.as_backbone(nn.Sequential(nn.Flatten(), nn.ReLU()))
    with pytest.raises(ValueError, match="its own head"):
        models.as_backbone(nn.Linear(4, 2))


# --- learning rates by depth --------------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 2)
    )


def torchvision_model(name: str) -> nn.Module:
    return torchvision.models.get_model(name, weights=None)


NETWORKS = {
    "small": (models.small_resnet, ["stem", "stage1", "stage2", "stage3", "head"]),
    "resnet18": (
        lambda: torchvision_model("resnet18"),
        ["stem", "layer1", "layer2", "layer3", "layer4", "head"],
    ),
    "mobilenet_v2": (
        lambda: torchvision_model("mobilenet_v2"),
        [*(f"features.{i}" for i in range(19)), "head"],
    ),
    "alexnet": (
        lambda: torchvision_model("alexnet"),
        [*(f"features.{i}" for i in (0, 3, 6, 8, 10)), "classifier", "head"],
    ),
    "vit_b_32": (
        lambda: torchvision_model("vit_b_32"),
        ["stem", *(f"encoder.layers.encoder_layer_{i}" for i in range(12)), "head"],
    ),
    "mlp": (mlp, ["1", "3", "head"]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_trainable_parameter_is_in_exactly_one_group(name: str) -> None:
    make, stages = NETWORKS[name]
    network = make()
    groups = models.param_groups(network, lr=0.1, head_lr=1.0, decay=0.5, weight_decay=0.01)
    grouped = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in grouped}) == len(grouped) == len(list(network.parameters()))
    names = [group["name"] for group in groups]
    assert list(dict.fromkeys(name.removesuffix(", no decay") for name in names)) == stages
    assert len(set(names)) == len(names)
    for group in groups:
        decays = not group["name"].endswith(", no decay")
        assert all((p.ndim >= 2) == decays for p in group["params"])
        assert group["weight_decay"] == (0.01 if decays else 0.0)
        depth = stages[::-1].index(group["name"].removesuffix(", no decay"))
        assert group["lr"] == pytest.approx(1.0 if depth == 0 else 0.1 * 0.5 ** (depth - 1))
    torch.optim.AdamW(groups)


def test_frozen_parameters_are_in_no_group() -> None:
    network = models.small_resnet()
    models.freeze(network.stage1)
    network.head.bias.requires_grad_(False)
    groups = models.param_groups(network, lr=0.1)
    grouped = {id(p) for group in groups for p in group["params"]}
    assert grouped == {id(p) for p in network.parameters() if p.requires_grad}
    assert [group["name"] for group in groups] == ["body", "head"]
    # A frozen stage still counts: those before it are as far from the head as they were.
    rates = {g["name"]: g["lr"] for g in models.param_groups(network, lr=0.1, decay=0.5)}
    assert rates == {"stem": 0.0125, "stage2": 0.05, "stage3": 0.1, "head": 0.1}


def test_the_head_can_be_named() -> None:
    network = torchvision_model("squeezenet1_1")
    with pytest.raises(ValueError, match="no linear layer"):
        models.param_groups(network, lr=0.1)
    groups = models.param_groups(network, lr=0.1, head_lr=1.0, head="classifier.1")
    head = next(group for group in groups if group["name"] == "head")
    assert {id(p) for p in head["params"]} == {
        id(p) for p in network.get_submodule("classifier.1").parameters()
    }
    with pytest.raises(ValueError, match=r"no module 'fc'. Name its head, one of: features, class"):
        models.param_groups(network, lr=0.1, head="fc")


def test_a_lone_linear_layer_is_a_head() -> None:
    (group,) = models.param_groups(nn.Linear(4, 2), lr=0.1, head_lr=0.5)
    assert (group["name"], group["lr"], len(group["params"])) == ("head", 0.5, 2)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lr": 0.0}, "learning rates must be above 0"),
        ({"lr": 0.1, "head_lr": -1}, "learning rates must be above 0"),
        ({"lr": 0.1, "decay": 2.6}, "decay must lie above 0 and at most at 1, found 2.6"),
        ({"lr": 0.1, "weight_decay": -1}, "weight_decay must be 0 or larger"),
    ],
)
def test_rates_that_cannot_be_meant(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        models.param_groups(models.small_resnet(), **settings)  # type: ignore[arg-type]


def test_a_network_that_is_frozen_whole_has_no_groups() -> None:
    with pytest.raises(ValueError, match="no parameter of SmallResNet is trainable"):
        models.param_groups(models.freeze(models.small_resnet()), lr=0.1)  # type: ignore[arg-type]


# --- photographs in, classes out ----------------------------------------------------------


def photographs(n: int = 2, height: int = 70, width: int = 90) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet:FutureWarning")
@pytest.mark.parametrize(
    ("name", "dim", "dropout"),
    [
        ("resnet18", 512, 0.0),
        ("mobilenet_v2", 1280, 0.2),
        ("squeezenet1_1", 512, 0.5),
        ("densenet121", 1024, 0.0),
        ("efficientnet_b0", 1280, 0.2),
        ("googlenet", 1024, 0.2),
        ("shufflenet_v2_x0_5", 1024, 0.0),
    ],
)
def test_a_photo_classifier_takes_its_head_off_and_puts_a_new_one_on(
    name: str, dim: int, dropout: float
) -> None:
    network = models.photo_classifier(name, 5, weights=None, size=64)
    assert (network.head.in_features, network.head.out_features) == (dim, 5)
    assert network.dropout.p == dropout
    assert models.head_name(network) == "head"
    body = models.backbone(name, weights=None).network
    photos = photographs()
    with torch.no_grad():
        x = network.preprocess(photos)
        assert x.shape == (2, 3, 64, 64)
        torch.testing.assert_close(network.features(photos), body(x))
        torch.testing.assert_close(network(photos), network.head(body(x)))
    network.train()(photos).sum().backward()
    assert all(p.grad is not None for p in network.parameters()), "every parameter can learn"
    # Nothing is dropped inside the body that the one dropout layer does not say.
    left = [p for p in network.body.modules() if isinstance(p, nn.Dropout) and p.p]
    assert left == []


def test_images_of_the_networks_size_are_taken_as_they_are() -> None:
    network = models.photo_classifier("resnet18", 3, weights=None, size=64)
    ready = photographs(2, 64, 64)
    by_hand = network.body(network.preprocess.normalise(ready))
    torch.testing.assert_close(network.features(ready), by_hand)
    torch.testing.assert_close(network(ready / 255), network(ready), atol=1e-5, rtol=1e-4)
    large = photographs(2, 128, 64) / 255
    assert network(large).shape == (2, 3)
    own = models.Preprocess(resize=80, crop=64, mean=(0.5,) * 3, std=(0.5,) * 3)
    other = models.photo_classifier("resnet18", 3, weights=None, preprocess=own)
    assert other.preprocess == own
    assert not torch.allclose(other(ready), network(ready))
    assert models.photo_classifier("resnet18", 3, weights=None).preprocess.crop == 224


def test_a_photo_classifier_in_the_size_of_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = torchvision.models.get_model("resnet18", weights=None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    torch.save(made.state_dict(), folder / url.rsplit("/", 1)[1])
    network = models.photo_classifier("resnet18", 120)
    assert (network.preprocess.resize, network.preprocess.crop) == (256, 224)
    assert torch.equal(network.body.conv1.weight, made.conv1.weight)
    smaller = models.photo_classifier("resnet18", 120, size=112)
    assert (smaller.preprocess.resize, smaller.preprocess.crop) == (128, 112)


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1"])
def test_a_photo_classifier_with_weights_by_path(name: str, shared_data: Path) -> None:
    path = shared_data / f"{name}_imagenet.safetensors"
    network = models.photo_classifier(name, 120, weights=path, size=64)
    backbone = models.backbone(name, weights=path)
    photos = photographs()
    with torch.no_grad():
        features = backbone.network(network.preprocess(photos))
        torch.testing.assert_close(network.features(photos), features)


def test_the_head_is_drawn_from_the_seed() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, again = (models.photo_classifier("squeezenet1_1", 3, weights=None) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    other = models.photo_classifier("squeezenet1_1", 3, weights=None, seed=1)
    assert models.fingerprint(first) == models.fingerprint(again) != models.fingerprint(other)


def test_the_stages_of_a_photo_classifier_are_torchvisions() -> None:
    for name in ("resnet18", "mobilenet_v2"):
        network = models.photo_classifier(name, 3, weights=None)
        plain = models.backbone(name, weights=None).classifier.requires_grad_(True)
        groups = models.param_groups(network, lr=0.1, head_lr=1.0, decay=0.5)
        expected = models.param_groups(plain, lr=0.1, head_lr=1.0, decay=0.5)
        assert [g["name"].removeprefix("body.") for g in groups] == [g["name"] for g in expected]
        assert [g["lr"] for g in groups] == [g["lr"] for g in expected]
        assert [len(g["params"]) for g in groups] == [len(g["params"]) for g in expected]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_a_photo_classifier_starts_from_a_probe(name: str) -> None:
    network = models.photo_classifier(name, 3, weights=None, size=32)
    photos, labels = photographs(40, 40, 40), torch.arange(40) % 3
    photos[torch.arange(40), labels] //= 2
    split = np.repeat(["train", "validation", "test"], [20, 10, 10])
    data = Dataset("made", ("a", "b", "c"), photos, labels, split, tuple(map(str, range(40))), "m")
    models.freeze(network.body)
    backbone = models.as_backbone(network)
    assert backbone.name == name
    exact = runtime.Run()  # float32
    bank = features.extract(data, backbone, run=exact)
    with torch.no_grad():
        torch.testing.assert_close(bank.features, network.features(photos), atol=1e-4, rtol=1e-3)
        logits = features.extract(data, backbone, at="logits", run=exact).features
        torch.testing.assert_close(logits, network(photos), atol=1e-4, rtol=1e-3)
        stage = features.extract(data, backbone, at=backbone.stages[0], run=exact)
        assert stage.features.isfinite().all()
    fitted = probe.fit(bank)
    with torch.no_grad():
        network.head.load_state_dict(fitted.to_linear().state_dict())
        torch.testing.assert_close(
            network(photos).softmax(1), fitted(bank.features).softmax(1), atol=1e-3, rtol=1e-2
        )
    found = audit.check(network, data=data, frozen=network.body)
    assert found.errors == (), str(found)


def test_a_photo_classifier_refuses_what_makes_no_network() -> None:
    for settings, sentence in (
        ({"classes": 0}, "needs 1 class or more, found 0"),
        ({"classes": 2, "dropout": 1.0}, "dropout must lie in"),
        ({"classes": 2, "size": 0}, "size is a number of pixels, 1 or more"),
        ({"classes": 2, "size": 64, "preprocess": models.Preprocess()}, "in the place of preproc"),
    ):
        with pytest.raises(ValueError, match=sentence):
            models.photo_classifier("squeezenet1_1", weights=None, **settings)  # type: ignore[arg-type]
    body = dataclasses.replace(models.backbone("squeezenet1_1", weights=None), preprocess=None)
    with pytest.raises(ValueError, match="squeezenet1_1 has no preprocessing"):
        models.PhotoClassifier(body, 3)
