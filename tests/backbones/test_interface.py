"""The timm interface of every registered backbone.

A new model is tested because it is registered: its shapes on the meta device, where size costs little. Values are
checked on the nano networks, which share their code with the larger ones, and on those with a part of their own.
"""

from __future__ import annotations

import pickle
from copy import deepcopy
from functools import cache

import pytest
import timm
import torch
from timm.models import FeatureInfo, group_parameters, model_entrypoint
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

import metamixer as mm
from metamixer.backbones.base import DistilledHead
from metamixer.mixers import FFNifiedAttention, SoftmaxAttention
from metamixer.networks import NETWORKS

NAMES = [name for name in timm.list_models() if model_entrypoint(name).__module__.startswith("metamixer.")]
NANOS = [name for name in NAMES if name.endswith("_nano")]
SPECIAL = ["casvit_xs"]  # two classifiers
SIZES = [(64, 64), (65, 97), (33, 33), (31, 96), (32, 7), (200, 48), (1, 1)]


@cache
def _on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name).eval()


def on_meta(name: str, **kwargs) -> nn.Module:
    """A network without memory behind its weights, in evaluation mode."""
    if not kwargs:
        return deepcopy(_on_meta(name))
    with torch.device("meta"):
        return timm.create_model(name, **kwargs).eval()


@cache
def _made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    # Statistics of pictures, as after training: with those of a fresh network hardly a signal reaches the classifier.
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(pictures(64, 64, batch=16))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def made(name: str) -> nn.Module:
    """A copy of a small network with seven classes in evaluation mode."""
    return deepcopy(_made(name))


def pictures(*size: int, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def halved(side: int, reduction: int) -> int:
    """Side of a map after stride-2 convolutions that pad: each rounds up."""
    return -(-side // reduction)


def test_every_family_has_its_networks():
    expected = {
        "affnet": ["affnet", "affnet_et", "affnet_nano", "affnet_t"],
        "casvit": ["casvit_m", "casvit_nano", "casvit_s", "casvit_t", "casvit_xs"],
        "dsm": ["dsm_b", "dsm_nano", "dsm_s", "dsm_t"],
        "ffnet": ["ffnet_1", "ffnet_2", "ffnet_3", "ffnet_4", "ffnet_nano"],
        "metaformer": ["metaformer_nano", "metaformer_s", "metaformer_t"],
    }
    for family, names in expected.items():
        assert set(names) <= {name for name in NAMES if name.startswith(family)}
    assert [name for name in mm.list_models() if name not in NETWORKS] == NAMES


@pytest.mark.parametrize("name", NANOS)
def test_nanos_are_small(name):
    assert sum(p.numel() for p in on_meta(name).parameters()) <= 1_200_000


# --- shapes: every network, on the meta device ---


@pytest.mark.parametrize("name", NAMES)
def test_features_have_the_channels_and_strides_that_the_network_says(name):
    model, (height, width) = on_meta(name, num_classes=7), (65, 97)
    features, maps = model.forward_intermediates(torch.empty(2, 3, height, width, device="meta"))
    assert [info["reduction"] for info in model.feature_info][-4:] == [4, 8, 16, 32]
    sides = [(halved(height, info["reduction"]), halved(width, info["reduction"])) for info in model.feature_info]
    assert [(m.shape[1], m.shape[2:]) for m in maps] == [
        (info["num_chs"], side) for info, side in zip(model.feature_info, sides, strict=True)
    ]
    assert features.shape == (2, model.num_features, *sides[-1])
    assert model.forward_head(features).shape == (2, 7)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize("in_chans", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_number_of_input_channels(name, in_chans):
    model = on_meta(name, in_chans=in_chans)
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == in_chans
    assert model.stem(torch.empty(1, in_chans, 64, 64, device="meta")).shape[0] == 1


@pytest.mark.parametrize("name", NAMES)
def test_classifier_can_be_replaced(name):
    model = on_meta(name)
    width = model.num_features
    features = torch.empty(1, width, 2, 2, device="meta")

    def widths() -> set[int]:
        classifiers = model.get_classifier()
        classifiers = classifiers if isinstance(classifiers, tuple) else (classifiers,)
        return {c.in_features for c in classifiers if isinstance(c, nn.Linear)}

    def logits() -> torch.Size:
        return model.forward_head(features).shape

    with torch.device("meta"):
        assert widths() == {width}
        model.reset_classifier(9)
        assert (model.num_classes, logits()) == (9, (1, 9))
        model.reset_classifier(5, "max")
        assert (logits(), widths()) == ((1, 5), {width})
        model.reset_classifier(5, "catavgmax")
        assert (logits(), widths()) == ((1, 5), {2 * width})
        model.reset_classifier(6)  # the pooling stays
        assert (logits(), widths()) == ((1, 6), {2 * width})
        model.reset_classifier(4, "avg")
        assert (logits(), widths()) == ((1, 4), {width})
        model.reset_classifier(0)
        assert (model.num_classes, logits(), widths()) == (0, (1, width), set())
        model.reset_classifier(0, "")
        assert logits() == (1, width, 2, 2)
        model.reset_classifier(3, "avg")
        assert (logits(), widths()) == ((1, 3), {width})


@pytest.mark.parametrize("name", NAMES)
def test_layer_groups_run_from_input_to_output(name):
    model = on_meta(name)
    for coarse in (True, False):
        groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert set(groups) == {n for n, _ in model.named_parameters()}

        def range_of(prefix: str, groups=groups) -> list[int]:
            found = [group for n, group in groups.items() if n.startswith(prefix)]
            return [min(found), max(found)] if found else []

        stages = [range_of(f"stages.{i}.") for i in range(len(model.stages))]
        order = [*range_of("stem"), *(i for stage in stages for i in stage), *range_of("final"), *range_of("head")]
        assert order == sorted(order)
        assert len({tuple(stage) for stage in stages}) == len(stages)  # every stage has groups of its own
    assert max(groups.values()) + 1 > len(model.stages) + 2  # fine groups go down to the blocks


@pytest.mark.parametrize("name", NAMES)
def test_optimiser_groups(name):
    model = on_meta(name)
    names = {n for n, _ in model.named_parameters()}
    assert model.no_weight_decay() <= names
    shapes = dict(model.named_parameters())
    assert not any(n.endswith(("conv.weight", "fc.weight")) for n in model.no_weight_decay())
    groups = param_groups_layer_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.7)
    assert sum(len(group["params"]) for group in groups) == len(names)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    first = scales[id(shapes[model.pretrained_cfg["first_conv"] + ".weight"])]
    assert first == min(scales.values()) < scales[id(shapes["head.fc.weight"])] == 1
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    decaying = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for n, p in shapes.items():
        assert (id(p) in decaying) == (p.ndim > 1 and n not in model.no_weight_decay()), n


@pytest.mark.parametrize("name", NAMES)
def test_configuration_names_its_sources(name):
    cfg = on_meta(name).pretrained_cfg
    assert cfg["architecture"] == name
    assert cfg["license"] in ("apache-2.0", "mit")
    assert cfg["paper_ids"].startswith("arXiv:")
    assert cfg["paper_name"]
    assert cfg["origin_url"].startswith("https://")


@pytest.mark.parametrize("name", NAMES)
def test_regularisation_reaches_the_modules(name):
    model = on_meta(name, drop_rate=0.3, drop_path_rate=0.2)
    assert model.head.drop.p == 0.3
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.2)
    assert not any(type(m).__name__ == "DropPath" for m in on_meta(name).modules())


# --- values: the nano networks and what is special ---


@pytest.mark.parametrize("name", NANOS)
@torch.inference_mode()
def test_any_size(name):
    model = made(name)
    for height, width in SIZES:
        features, maps = model.forward_intermediates(pictures(height, width, batch=1))
        reductions = [info["reduction"] for info in model.feature_info]
        assert [m.shape[2:] for m in maps] == [(halved(height, r), halved(width, r)) for r in reductions]
        logits = model.forward_head(features)
        assert logits.shape == (1, 7)
        assert logits.isfinite().all()


@pytest.mark.parametrize("out_indices", [(1, 3), (2,), (-1,), (0, -2)])
@pytest.mark.parametrize("name", NANOS)
def test_out_indices_choose_maps(name, out_indices):
    infos = on_meta(name).feature_info
    model = timm.create_model(name, features_only=True, out_indices=out_indices).eval()
    wanted = [infos[i] for i in out_indices]
    assert model.feature_info.channels() == [info["num_chs"] for info in wanted]
    assert model.feature_info.reduction() == [info["reduction"] for info in wanted]
    maps = model(pictures(64, 64))
    assert [m.shape[1:] for m in maps] == [(i["num_chs"], 64 // i["reduction"], 64 // i["reduction"]) for i in wanted]
    assert len(model.model.stages) == 1 + max(i % len(infos) for i in out_indices)  # the rest is gone


@pytest.mark.parametrize("name", [*NANOS, *SPECIAL])
def test_poolings_at_creation(name):
    x = pictures(64, 64)
    for pool, multiple in [("max", 1), ("avgmax", 1), ("catavgmax", 2)]:
        model = timm.create_model(name, num_classes=7, global_pool=pool).eval()
        features = model.forward_features(x)
        assert model.forward_head(features).shape == (2, 7)
        assert model.forward_head(features, pre_logits=True).shape == (2, multiple * model.num_features)
    bare = timm.create_model(name, num_classes=0, global_pool="").eval()
    assert bare(x).shape == (2, bare.num_features, 2, 2)


@pytest.mark.parametrize("size", [(64, 64), (65, 97)])
@pytest.mark.parametrize("name", [*NANOS, *SPECIAL])
@torch.inference_mode()
def test_the_parts_make_the_whole(name, size):
    model, x = made(name), pictures(*size)
    logits = model(x)
    assert logits.isfinite().all()
    assert torch.equal(model.forward_head(model.forward_features(x)), logits)
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert len(maps) == len(model.feature_info)
    # A picture's logits are its own (matrix products of another size may round differently).
    torch.testing.assert_close(model(x[:1]), logits[:1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits[0], logits[1], atol=1e-4)


@pytest.mark.parametrize("name", [*NANOS, *SPECIAL])
@torch.inference_mode()
def test_features_only_gives_the_intermediates(name):
    model, x = made(name), pictures(64, 64)
    maps = model.forward_intermediates(x, intermediates_only=True)
    features = timm.create_model(name, features_only=True).eval()
    missing, _ = features.model.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    for a, b in zip(features(x), maps, strict=True):
        assert torch.equal(a, b)
    last_two = model.forward_intermediates(x, indices=2, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(last_two, maps[-2:], strict=True))
    early = model.forward_intermediates(x, indices=[0, 1], stop_early=True, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(early, maps[:2], strict=True))


@torch.inference_mode()
def test_norm_of_the_last_map():
    for name in NANOS:
        model, x = made(name), pictures(64, 64)
        plain = model.forward_intermediates(x, intermediates_only=True)
        final, normed = model.forward_intermediates(x, norm=True)
        assert all(torch.equal(a, b) for a, b in zip(plain[:-1], normed[:-1], strict=True))
        keeps_channels = model.num_features == model.feature_info[-1]["num_chs"]
        assert torch.equal(normed[-1], final if keeps_channels else plain[-1])
        assert normed[-1].shape[1] == model.feature_info[-1]["num_chs"]


@pytest.mark.parametrize("name", NANOS)
@torch.inference_mode()
def test_stopping_early_ends_with_the_last_map_asked_for(name):
    model, x = made(name), pictures(64, 64)
    everything, maps = model.forward_intermediates(x)
    for indices in ([1], [0, 2], [-1], 2, None):
        early, taken = model.forward_intermediates(x, indices=indices, stop_early=True)
        wanted = [maps[i] for i in indices] if isinstance(indices, list) else maps[-(indices or len(maps)) :]
        assert all(torch.equal(a, b) for a, b in zip(taken, wanted, strict=True))
        assert torch.equal(early, everything if indices in ([-1], 2, None) else taken[-1])


@pytest.mark.parametrize("indices", [[4], [-5], 0, 5, -1, []])
def test_stages_that_are_not_there_are_an_error(indices):
    with pytest.raises(ValueError, match="there are 4 stages, of which"):
        made("casvit_nano").forward_intermediates(pictures(32, 32), indices=indices)


@pytest.mark.parametrize("name", [*NANOS, *SPECIAL])
def test_a_batch_of_none(name):
    for mode in (False, True):
        model = made(name).train(mode)
        logits = model(pictures(64, 64, batch=0))
        assert logits.shape == (0, 7)
        logits.sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())
        assert all(b.isfinite().all() for b in model.buffers())


@pytest.mark.parametrize("name", NANOS)
def test_one_small_picture_in_training_is_refused_in_words(name):
    model = made(name).train()
    with pytest.raises(mm.MetamixerError, match="one picture of 32 × 20 pixels leaves one value per channel"):
        model(pictures(32, 20, batch=1))
    with pytest.raises(mm.MetamixerError, match="take two pictures or more, larger ones"):
        model.forward_intermediates(pictures(32, 32, batch=1))
    assert model(pictures(33, 32, batch=1)).shape == model(pictures(32, 32, batch=2)[:2])[:1].shape
    for module in model.modules():  # norms that learn nothing more
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert model(pictures(32, 32, batch=1)).shape == (1, 7)


@pytest.mark.parametrize("name", NANOS)
def test_a_network_says_what_it_was_made_of(name):
    model = mm.create_model(name, num_classes=3, drop_rate=0.1)
    assert model.arguments == {"num_classes": 3, "drop_rate": 0.1}
    assert timm.create_model(name, pretrained_cfg_overlay={"crop_pct": 0.5}, cache_dir="nowhere").arguments == {}
    model.reset_classifier(5, "max")
    twin = timm.create_model(name, **deepcopy(model).arguments)
    assert twin.arguments == {"num_classes": 5, "global_pool": "max", "drop_rate": 0.1}
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(pictures(64, 64)), model.eval()(pictures(64, 64)))


def test_maps_are_nchw_only():
    with pytest.raises(ValueError, match="maps are NCHW, not 'NLC'"):
        made("casvit_nano").forward_intermediates(pictures(32, 32), output_fmt="NLC")


@pytest.mark.parametrize("name", NANOS)
@torch.inference_mode()
def test_pruning_keeps_what_was_asked_for(name):
    model, x = made(name), pictures(64, 64)
    wanted = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    before = sum(p.numel() for p in model.parameters())
    take = model.prune_intermediate_layers([0, 1])
    assert take == [0, 1]
    assert sum(p.numel() for p in model.parameters()) < before / 2
    got = model.forward_intermediates(x, indices=take, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    # The rest is a network that ends early, and takes a classifier of its own.
    assert torch.equal(model(x), got[-1])
    assert model.num_features == got[-1].shape[1]
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3)


@pytest.mark.parametrize("name", NANOS)
@torch.inference_mode()
def test_pruning_the_end_of_the_network_is_optional(name):
    model, x = made(name), pictures(64, 64)
    logits, features, last = model(x), model.forward_features(x), model.forward_intermediates(x)[1][-1]
    model.prune_intermediate_layers(1, prune_norm=False, prune_head=False)
    assert torch.equal(model(x), logits)
    model.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
    assert torch.equal(model(x), features)
    model.prune_intermediate_layers(1, prune_norm=True)
    assert torch.equal(model(x), last)


@pytest.mark.parametrize("name", [*NANOS, *SPECIAL])
def test_checkpointing_gives_the_same_gradients(name):
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = made(name).train()
        model.set_grad_checkpointing(checkpointing)
        assert all(stage.grad_checkpointing is checkpointing for stage in model.stages)
        # Sums of large batch statistics: one small picture size keeps every norm well conditioned.
        model(pictures(64, 64, batch=4)).square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters()}

    plain, saving = gradients(False), gradients(True)
    assert all(g is not None for g in plain.values())
    for n, gradient in plain.items():
        torch.testing.assert_close(saving[n], gradient, rtol=1e-4, atol=1e-6 + 1e-4 * float(gradient.abs().max()))


def test_checkpointing_recomputes_the_blocks():
    model = made("casvit_nano").train()
    runs = []
    model.stages[2].blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    for checkpointing in (False, True):
        runs.clear()
        model.set_grad_checkpointing(checkpointing)
        model(pictures(32, 32)).sum().backward()
        assert len(runs) == 1 + checkpointing


def test_dropout_and_stochastic_depth_act_in_training_only():
    for name in NANOS:
        model = timm.create_model(name, num_classes=7, drop_rate=0.5, drop_path_rate=0.5)
        x = pictures(32, 32)
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))


# --- two classifiers ---


def test_two_classifiers_are_averaged_and_can_be_told_apart_in_training():
    model, x = made("casvit_xs"), pictures(32, 32)
    assert isinstance(model.head, DistilledHead)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    classifier, distilled = model.get_classifier()
    torch.testing.assert_close(model(x), (classifier(pooled) + distilled(pooled)) / 2)
    model.set_distilled_training()
    assert isinstance(model(x), Tensor)  # evaluation mode: still one
    model.train()
    pair = model(x)
    assert isinstance(pair, tuple)
    assert [logits.shape for logits in pair] == [(2, 7), (2, 7)]
    model.set_distilled_training(False)
    assert isinstance(model(x), Tensor)


def test_reset_makes_both_classifiers_fresh_in_place_and_kind():
    model = made("casvit_xs").bfloat16()
    before = [c.weight.clone() for c in model.get_classifier()]
    model.reset_classifier(7, "catavgmax")
    for classifier, old in zip(model.get_classifier(), before, strict=True):
        assert classifier.in_features == 2 * old.shape[1]
        assert classifier.weight.dtype == torch.bfloat16
    assert not torch.equal(*(c.weight for c in model.get_classifier()))


def test_one_classifier_cannot_train_distilled():
    with pytest.raises(ValueError, match="one classifier; create it with distilled=True"):
        made("casvit_nano").set_distilled_training()
    assert isinstance(timm.create_model("casvit_nano", distilled=True).head, DistilledHead)
    assert not isinstance(on_meta("casvit_xs", distilled=False).head, DistilledHead)


def test_feature_norms_stand_on_every_map():
    model = timm.create_model("casvit_nano", feature_norms=True, features_only=True).eval()
    plain = timm.create_model("casvit_nano", features_only=True).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    for i, norm in enumerate(model.model.feature_norms):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        assert norm.num_features == model.feature_info.channels()[i]
    x = pictures(64, 64)
    for norm, a, b in zip(model.model.feature_norms, model(x), plain(x), strict=True):
        torch.testing.assert_close(a, norm(b))


# --- AFFNet's output stride ---


@pytest.mark.parametrize(("output_stride", "reductions", "dilated"), [
    (32, [2, 4, 8, 16, 32], {}),
    (16, [2, 4, 8, 16, 16], {}),
    (8, [2, 4, 8, 8, 8], {"stages.4.downsample.depthwise.conv": (2, 2)}),
])  # fmt: skip
@pytest.mark.parametrize("name", ["affnet_nano", "affnet_et"])
def test_output_stride(name, output_stride, reductions, dilated):
    model = on_meta(name, output_stride=output_stride)
    assert FeatureInfo(model.feature_info, list(range(5))).reduction() == reductions
    x = torch.empty(1, 3, 64, 96, device="meta")
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [(64 // m.shape[2], 96 // m.shape[3]) for m in maps] == [(r, r) for r in reductions]
    found = {n: m.dilation for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.dilation != (1, 1)}
    assert found == dilated
    shapes, usual = ({n: p.shape for n, p in m.state_dict().items()} for m in (model, on_meta(name)))
    assert shapes == usual  # so the same weights serve


def test_other_output_strides_are_an_error():
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, not 4"):
        timm.create_model("affnet_nano", output_stride=4)


# --- any mixer in any stage ---


def test_a_hybrid_takes_its_mixers_by_stage():
    model = timm.create_model("metaformer_nano", mixer=["ffnified", "ffnified", "aff", "attention"], num_classes=7)
    kinds = [{type(block.token_mixer.mixer).__name__ for block in stage.blocks} for stage in model.stages]
    assert kinds == [{"FFNifiedAttention"}, {"FFNifiedAttention"}, {"AdaptiveFrequencyFilter"}, {"SoftmaxAttention"}]
    model(pictures(33, 47)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("mixer", mm.list_mixers())
def test_metaformer_takes_every_mixer(mixer):
    model = timm.create_model("metaformer_nano", mixer=mixer, num_classes=7)
    assert model(pictures(40, 33)).shape == (2, 7)


def test_a_mixer_may_be_a_function_of_the_channels():
    def by_size(dim: int) -> nn.Module:
        return SoftmaxAttention(dim) if dim >= 96 else FFNifiedAttention(dim, 3)

    model = timm.create_model("metaformer_nano", mixer=by_size, num_classes=7)
    assert isinstance(model.stages[0].blocks[0].token_mixer.mixer, FFNifiedAttention)
    assert isinstance(model.stages[3].blocks[0].token_mixer.mixer, SoftmaxAttention)
    mixed = timm.create_model("metaformer_nano", mixer=["pooling", by_size, "dsm", nn.Identity])
    assert [type(stage.blocks[0].token_mixer.mixer).__name__ for stage in mixed.stages] == [
        "Pooling", "FFNifiedAttention", "DynamicSpectrumMixer", "Identity"
    ]  # fmt: skip


def test_a_mixer_keeps_the_weights_that_its_constructor_draws():
    class Sharp(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(dim, dim, 1)
            nn.init.constant_(self.conv.weight, 0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    class SlotsFilled(mm.MetaMixer):
        def __init__(self, dim: int) -> None:
            super().__init__(query=Sharp(dim))

    class DrawnByTheNetwork(SlotsFilled):
        def init_weights(self) -> None:
            nn.init.constant_(self.query.conv.weight, 0.25)

    model = timm.create_model("metaformer_nano", mixer=[Sharp, SlotsFilled, DrawnByTheNetwork, "ffnified"])
    mixers = [stage.blocks[0].token_mixer.mixer for stage in model.stages]
    kept = [mixers[0].conv, mixers[1].query.conv, mixers[2].query.conv]
    assert [conv.weight.detach().mean().item() for conv in kept] == [0.5, 0.5, 0.25]
    drawn = [mixers[3].query.conv, model.stages[0].blocks[0].channel_mixer.mixer.interact, model.head.fc]
    assert all(layer.weight.detach().std().item() == pytest.approx(0.02, rel=0.1) for layer in drawn)


def test_mixer_arguments_reach_the_mixers():
    model = timm.create_model("metaformer_nano", mixer="pooling", mixer_args={"kernel_size": 7})
    assert {block.token_mixer.mixer.kernel_size for stage in model.stages for block in stage.blocks} == {7}


def test_wrong_mixers_are_errors():
    with pytest.raises(ValueError, match="3 mixers were given for 4 stages"):
        timm.create_model("metaformer_nano", mixer=["aff"] * 3)
    with pytest.raises(ValueError, match="did you mean 'pooling'"):
        timm.create_model("metaformer_nano", mixer="pool")


# --- graphs, copies, precisions ---


@pytest.mark.parametrize("name", NANOS)
def test_export_with_dynamic_batch_and_size(name):
    # torch.export takes a side of one for a constant, so the last map must be larger than a pixel.
    model = made(name)
    sides = {i: torch.export.Dim(n, min=33, max=512) for i, n in ((2, "height"), (3, "width"))}
    sides[0] = torch.export.Dim("batch", max=64)
    program = torch.export.export(model, (pictures(64, 96),), dynamic_shapes=(sides,))
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert not any(v.is_complex() for v in values if isinstance(v, Tensor))
    with torch.no_grad():
        for x in (pictures(64, 96), pictures(65, 97, batch=3), pictures(128, 40, batch=1)):
            torch.testing.assert_close(program.module()(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*NANOS, "hybrid"])
def test_compile_in_one_graph(name):
    torch.compiler.reset()
    if name == "hybrid":
        model = timm.create_model("metaformer_nano", mixer=["ffnified", "dsm", "aff", "attention"]).eval()
    else:
        model = made(name)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(pictures(64, 64)), model(pictures(64, 64)), rtol=1e-4, atol=1e-5)


def test_compile_trains():
    torch.compiler.reset()
    model = timm.create_model("metaformer_nano", depths=(1, 1), dims=(16, 32), mixer=["dsm", "aff"], num_classes=7)
    twin = deepcopy(model)
    x = pictures(32, 32, batch=4)
    torch.compile(model, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    twin(x).square().sum().backward()
    for (n, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() <= 1e-3 * q.grad.abs().max() + 1e-5, n


@pytest.mark.parametrize("name", [*NANOS, *SPECIAL])
@torch.inference_mode()
def test_copies_compute_the_same(name, tmp_path):
    model, x = made(name), pictures(33, 47)
    logits = model(x)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), logits)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    fresh = timm.create_model(name, num_classes=7).eval()
    assert not torch.equal(fresh(x), logits)
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(fresh(x), logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", NANOS)
@torch.inference_mode()
def test_other_precisions(name, dtype):
    model, x = made(name), pictures(64, 64)
    logits = model(x)
    other = model.to(dtype)(x.to(dtype))
    assert other.dtype == dtype
    # Relative to the spread of the logits: 8 bits of bf16, 11 of fp16, through some twenty layers.
    allowed = {torch.bfloat16: 0.15, torch.float16: 0.02, torch.float64: 1e-4}[dtype]
    assert (other.float() - logits).abs().max() < allowed * logits.std()


@pytest.mark.parametrize("name", NANOS)
def test_trains_under_bf16_autocast(name):
    model = made(name).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(model(pictures(64, 64, batch=4)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() and g.dtype == torch.float32 for g in gradients)


@pytest.mark.parametrize("name", NANOS)
@torch.inference_mode()
def test_channels_last_changes_nothing_but_the_layout(name):
    model, x = made(name), pictures(64, 64)
    logits = model(x)
    model = model.to(memory_format=torch.channels_last)
    other = model(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(other, logits, rtol=1e-4, atol=1e-5)
