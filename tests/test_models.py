"""Behaviour of ``tlhelpers.models``: backbones, freezing, and what moved."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from tlhelpers import models


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
