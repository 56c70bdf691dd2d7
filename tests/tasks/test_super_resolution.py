"""Super-resolution: what a sample, the loss, the metrics and an enlarged picture are."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn
from torch.overrides import TorchFunctionMode

import metamixer as mm
from metamixer import MetamixerError
from metamixer.data.degradation import imresize
from metamixer.data.picture_pairs import PicturePairs
from metamixer.networks import FFNetSR
from metamixer.tasks.super_resolution import (
    SuperResolution,
    enlarge,
    evaluate_folder,
    fourier_loss,
    luma,
    psnr,
    quality,
    ssim,
)

SHARED = Path(__file__).parents[3] / "shared" / "data"


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth enough to have structure, 8-bit RGB."""
    fine = np.random.default_rng(seed).uniform(0, 255, (height // 4 + 2, width // 4 + 2, 3))
    return imresize(fine, 4)[:height, :width].clip(0, 255).round().astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for i in range(3):
        save(tmp_path / "train" / f"{i}.png", noise(50 + i, 41, i))
    save(tmp_path / "val" / "a.png", noise(33, 46, 9))
    return tmp_path


def task(data: Path, **kwargs: object) -> SuperResolution:
    made = SuperResolution(data=str(data), model="ffnet_sr_nano", dim=8, depth=1, crop=24, **kwargs)  # type: ignore
    made.open()
    return made


# --- Samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_crops_of_both_pictures_show_the_same(data: Path, scale: int) -> None:
    """Bicubic reduction of the large crop is the small one, where it does not read beyond the crop."""
    made = task(data, scale=scale)
    orientations = set()
    for turn in range(12):
        torch.manual_seed(turn)
        small, large = made.sample(turn % 3, 48)
        assert small.shape == (3, 48 // scale, 48 // scale)
        assert small.dtype == torch.uint8
        assert large.shape == (3, 48, 48)
        reduced = imresize(large.permute(1, 2, 0).numpy(), 1 / scale)
        inner = np.s_[3:-3, 3:-3]
        difference = reduced.astype(int)[inner] - small.permute(1, 2, 0).numpy()[inner]
        assert np.abs(difference).max() <= 1  # both are rounded
        orientations.add(bytes(small.numpy()))
    assert len(orientations) > 6


def test_samples_depend_on_the_random_state_alone(data: Path) -> None:
    made, again = task(data), task(data)
    torch.manual_seed(5)
    first = made.sample(1, None)
    again.sample(0, None)
    torch.manual_seed(5)
    second = again.sample(1, None)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[1].shape == (3, 24, 24)


def test_all_eight_orientations_occur(data: Path) -> None:
    """A crop as large as the picture: only its orientation is left to chance."""
    save(data / "train" / "0.png", noise(24, 24, 3))
    made, seen = task(data), set()
    small = made._train[0][0]
    for _ in range(100):
        seen.add(bytes(made.sample(0, 24)[0].numpy()))
    turned = {
        bytes(np.ascontiguousarray(np.rot90(side, k).transpose(2, 0, 1)))
        for side in (small, small[:, ::-1])
        for k in range(4)
    }
    assert seen == turned
    assert len(seen) == 8


def test_pictures_smaller_than_the_crop_are_mirrored(data: Path) -> None:
    save(data / "train" / "0.png", noise(10, 90, 3))
    small, large = task(data).sample(0, 24)
    assert (small.shape, large.shape) == ((3, 12, 12), (3, 24, 24))
    rows = {bytes(row.numpy()) for row in (large if small[0].float().std(0).sum() else large.mT).permute(1, 0, 2)}
    columns = {bytes(column.numpy()) for column in large.permute(2, 0, 1)}
    assert min(len(rows), len(columns)) <= 10


def test_repeats_lengthen_an_epoch(data: Path) -> None:
    made = task(data, passes=4)
    assert len(made) == 12
    torch.manual_seed(0)
    a = made.sample(1, None)
    torch.manual_seed(0)
    assert torch.equal(made.sample(10, None)[0], a[0])


def test_pairs_are_found_by_name_and_checked(tmp_path: Path) -> None:
    save(tmp_path / "hr" / "0801.png", noise(21, 32))
    low = noise(10, 16, 1)
    save(tmp_path / "lr" / "0801x2.png", low)
    pairs = PicturePairs(tmp_path / "hr", 2, tmp_path / "lr")
    small, large = pairs[0]
    assert np.array_equal(small, low)
    assert large.shape == (20, 32, 3)
    with pytest.raises(MetamixerError, match=r"lr holds no small picture of .*0801.png"):
        PicturePairs(tmp_path / "hr", 3, tmp_path / "lr")
    save(tmp_path / "lr" / "0801x2.png", noise(11, 16))
    with pytest.raises(MetamixerError, match=r"0801x2.png has 16 × 11 pixels where .*0801.png asks for 16 × 10"):
        PicturePairs(tmp_path / "hr", 2, tmp_path / "lr")[0]


@pytest.mark.parametrize(
    ("large", "small", "expected"),
    [
        (["0.png"], ["0.png", "0x2.png"], ["0.png"]),
        (["a/0.png", "b/0.png"], ["a/0.png", "b/0x2.png"], ["a/0.png", "b/0x2.png"]),  # by place
        (["a/0.png", "b/1.png"], ["X2/0x2.png", "X2/1x2.png"], ["X2/0x2.png", "X2/1x2.png"]),  # by name
        (["a/0.png", "1.png"], ["a/0.png", "b/0.png", "c/1.png"], ["a/0.png", "c/1.png"]),
        (["a/0.png"], ["b/0.png", "c/0.png"], r"b/0.png and .*c/0.png could both be the small picture of .*hr/a/0.png"),
        (["0.png"], ["0.png", "0.bmp"], r"0.bmp and .*0.png could both be the small picture"),
        (["a/0.png", "b/0.png"], ["0.png"], r"lr/0.png would be the small .* both .*hr/a/0.png and .*hr/b/0.png"),
    ],
)
def test_every_picture_has_a_small_one_of_its_own(
    large: list[str], small: list[str], expected: list[str] | str, tmp_path: Path
) -> None:
    for folder, names in {"hr": large, "lr": small}.items():
        for name in names:
            save(tmp_path / folder / name, noise(2, 2))
    if isinstance(expected, str):
        with pytest.raises(MetamixerError, match=expected):
            PicturePairs(tmp_path / "hr", 2, tmp_path / "lr")
    else:
        pairs = PicturePairs(tmp_path / "hr", 2, tmp_path / "lr")
        assert dict(zip(pairs.large, pairs.small or [], strict=True)) == {
            tmp_path / "hr" / name: tmp_path / "lr" / other for name, other in zip(large, expected, strict=True)
        }


def test_one_picture_and_its_small_one(tmp_path: Path) -> None:
    large, small = save(tmp_path / "a.png", noise(8, 6)), save(tmp_path / "ax2.png", noise(4, 3))
    assert np.array_equal(PicturePairs(large, 2, small)[0][0], noise(4, 3))


def test_pictures_are_kept_as_far_as_there_is_room(data: Path) -> None:
    size = sum(p.nbytes for p in PicturePairs(data / "train", 2)[0])
    pairs = PicturePairs(data / "train", 2, keep=size)
    assert pairs[0] is pairs[0]
    assert pairs[1] is not pairs[1]


# --- Loss ------------------------------------------------------------------------------------------------------------


def test_loss_is_l1_and_the_spectrum(data: Path) -> None:
    made = task(data)
    small, large = made.collate([made.sample(i, None) for i in range(2)])
    parts = made.loss(nn.Upsample(scale_factor=2), (small, large))
    out, target = nn.Upsample(scale_factor=2)(small / 255), large / 255
    assert float(parts["l1"]) == pytest.approx(float((out - target).abs().mean()), rel=1e-5)
    # By the definition of the transform, one frequency at a time.
    a = (out - target).double().numpy()
    u, v = np.arange(24), np.arange(13)
    rows, columns = (np.exp(-2j * np.pi * np.outer(k, np.arange(24)) / 24) for k in (u, v))
    spectrum = np.einsum("uh,nchw,vw->ncuv", rows, a, columns)
    expected = 0.02 * (np.abs(spectrum.real).mean() + np.abs(spectrum.imag).mean()) / 2
    assert float(parts["fourier"]) == pytest.approx(expected, rel=1e-4)


def test_fourier_loss_has_a_gradient_and_is_zero_for_equals() -> None:
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert float(fourier_loss(x, x.detach()).detach()) == 0
    assert torch.autograd.gradcheck(lambda t: fourier_loss(t, torch.zeros_like(t)), x)


# --- Metrics ---------------------------------------------------------------------------------------------------------


def test_psnr_and_ssim_equal_scikit_image() -> None:
    for seed, shape in enumerate([(40, 51), (11, 11), (30, 12)]):
        a, b = luma(noise(*shape, seed)), luma(noise(*shape, seed) // 2 + 40)
        expected = structural_similarity(
            a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(a, b) == pytest.approx(expected, abs=1e-9)
        assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9)
    with pytest.raises(ValueError, match="at least 11 × 11"):
        ssim(np.zeros((10, 20)), np.zeros((10, 20)))


def test_quality_is_on_luma_inside_the_border() -> None:
    a, b = noise(30, 30), noise(30, 30)
    b[:2] = 0
    b[:, -2:] = 255
    assert quality(a, b, 2) == (float("inf"), pytest.approx(1.0))
    b[10, 10] = (255, 255, 255)
    assert quality(a, b, 2)[0] == pytest.approx(
        20 * np.log10(255 / abs(luma(a)[10, 10] - luma(b)[10, 10])) + 10 * np.log10(26 * 26)
    )
    assert luma(np.array([[[255, 255, 255], [0, 0, 0]]], np.uint8)) == pytest.approx(np.array([[235, 16]]))
    assert np.isnan(quality(a[:14, :14], a[:14, :14], 2)[1])
    with pytest.raises(MetamixerError, match="all border"):
        quality(a[:4, :4], a[:4, :4], 2)


@pytest.mark.shared
@pytest.mark.parametrize(("scale", "ratio", "similarity"), [(2, 33.66, 0.9299), (3, 30.39, 0.8682), (4, 28.42, 0.8104)])
def test_bicubic_enlargement_of_set5_has_the_published_figures(
    scale: int, ratio: float, similarity: float, tmp_path: Path
) -> None:
    """As every paper since A+ (Timofte et al. 2014) lists them: reduction, enlargement, luma, border, PSNR and SSIM."""
    archive = SHARED / "sr.tar"
    if not archive.exists():
        pytest.skip("Set5 lies in the shared data beside the checkout")
    import tarfile

    with tarfile.open(archive) as file:
        file.extractall(tmp_path, [m for m in file.getmembers() if "/Set5/" in m.name], filter="data")
    pairs = PicturePairs(tmp_path / "sr" / "Set5", scale)
    rows = np.array([quality(imresize(low, scale), high, scale) for low, high in (pairs[i] for i in range(5))])
    assert rows[:, 0].mean() == pytest.approx(ratio, abs=0.03)
    assert rows[:, 1].mean() == pytest.approx(similarity, abs=0.001)


class Repeat(FFNetSR):
    """Repeats pixels: no details."""

    def __init__(self, scale: int = 2) -> None:
        super().__init__(scale, dim=4, depth=0)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)


def test_evaluation_is_the_mean_of_the_pictures(data: Path) -> None:
    save(data / "val" / "b.png", noise(40, 24, 11))
    made, model = task(data), Repeat().train()
    found = made.evaluate(model, torch.device("cpu"))
    rows, cubic = [], []
    for small, large in (made._validation[i] for i in range(2)):
        rows.append(quality(small.repeat(2, 0).repeat(2, 1), large, 2))
        cubic.append(quality(imresize(small, 2), large, 2))
    assert [found["psnr"], found["ssim"]] == pytest.approx(np.mean(rows, 0))
    assert [found["bicubic_psnr"], found["bicubic_ssim"]] == pytest.approx(np.mean(cubic, 0))
    assert found == made.evaluate(model, torch.device("cpu"))
    assert model.training
    folder = evaluate_folder(model, data / "val", tile=7)  # repeating needs no neighbours: tiles do not matter
    assert (folder.psnr, folder.bicubic_ssim, folder.count) == (
        pytest.approx(found["psnr"]), pytest.approx(found["bicubic_ssim"]), 2,
    )  # fmt: skip


# --- Training and results --------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_the_file_comes_back(data: Path, tmp_path: Path) -> None:
    made = task(data)
    model = made.create_model().train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    batch = made.collate([made.sample(i % 3, None) for i in range(6)])
    losses = []
    for _ in range(25):
        loss = sum(made.loss(model, batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    made.save(model, tmp_path / "sr.safetensors")
    again = mm.create_model("ffnet_sr_nano", checkpoint=tmp_path / "sr.safetensors").eval()
    picture = torch.rand(1, 3, 9, 9)
    assert torch.equal(again(picture), model.eval()(picture))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
@pytest.mark.parametrize("size", [(30, 20), (1, 1), (700, 5)])
def test_enlargement_of_any_picture(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    picture = Image.fromarray(noise(size[1], size[0])).convert(mode)
    picture.save(tmp_path / "a.png")
    result = enlarge(Repeat(), tmp_path / "a.png", tile=64)
    assert result.picture.size == result.bicubic.size == (2 * size[0], 2 * size[1])
    assert json.dumps(result.to_dict())
    written = result.save(tmp_path, "b")
    assert [path.name for path in written] == ["b.png", "b_comparison.png"]
    assert np.array_equal(np.asarray(Image.open(written[0])), np.asarray(result.picture))
    sheet = np.asarray(Image.open(written[1]))
    assert sheet.shape[0] <= 480 + 60


@pytest.mark.parametrize(("scale", "size"), [(2, (60, 40)), (3, (170, 200)), (4, (123, 20))])
def test_the_sheet_shows_three_panels(scale: int, size: tuple[int, int]) -> None:
    picture = Image.fromarray(noise(size[1], size[0]))
    whole = enlarge(Repeat(scale), picture)
    sheet = np.asarray(whole.draw())
    width, height = (min(480, scale * side) for side in size)
    left, top = (scale * size[0] - width) // 2, (scale * size[1] - height) // 2
    middle = np.s_[top : top + height, left : left + width]
    shown = [sheet[42 : 42 + height, x : x + width] for x in range(12, 12 + 3 * (width + 12), width + 12)]
    repeated = np.asarray(picture).repeat(scale, 0).repeat(scale, 1)
    assert np.array_equal(shown[0], repeated[middle])
    assert np.array_equal(shown[2], repeated[middle])
    assert np.array_equal(shown[1], imresize(np.asarray(picture), scale)[middle])


class LargestTensor(TorchFunctionMode):
    """Notes how many bytes the largest tensor has that an operation gives."""

    bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.bytes = max(self.bytes, out.numel() * out.element_size())
        return out


def test_enlargement_takes_little_more_than_its_result() -> None:
    picture = Image.fromarray(noise(300, 500))
    tracemalloc.start()
    with LargestTensor() as largest:
        result = enlarge(Repeat(4), picture, tile=16)
        result.draw()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    pixels = result.picture.width * result.picture.height
    assert peak < 3 * 3 * pixels  # both enlargements at 8 bits, one of them twice while it is copied
    assert largest.bytes < pixels  # a tile's floating-point numbers, or the picture as it was at 8 bits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere"}, "needs the folders 'train' and 'val'"),
        ({"validation": "nowhere"}, "nowhere: no such file or folder"),
        ({"small": "empty"}, "holds no pictures"),
        ({"small": "val"}, r"val holds no small picture of .*train/0.png"),
        ({"crop": 1}, "crop must be at least the scale"),
        ({"passes": 0}, "passes must be a whole number from 1"),
    ],
)
def test_folders_and_settings_that_do_not_work(
    data: Path, change: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "empty").mkdir()
    monkeypatch.chdir(data)
    with pytest.raises(MetamixerError, match=message):
        SuperResolution(**({"data": str(data)} | change)).open()


def test_pictures_and_networks_that_do_not_work(data: Path) -> None:
    made = task(data)
    save(data / "train" / "0.png", noise(1, 30))
    with pytest.raises(MetamixerError, match=r"0.png has 30 × 1 pixels, too few to be made 2 times smaller"):
        made.sample(0, None)
    (data / "train" / "1.png").write_bytes(b"no picture")
    with pytest.raises(MetamixerError, match=r"1.png cannot be read as a picture"):
        made.sample(1, None)
    made.model = "ffnet_tsf"
    made.dim = made.depth = None
    with pytest.raises(MetamixerError, match="takes no argument 'scale'"):
        made.create_model()


@pytest.mark.parametrize(
    ("name", "pixels", "message"),
    [
        ("train/0.png", noise(1, 30), "has 30 × 1 pixels, too few to be made 2 times smaller"),
        ("train/0.png", None, r"cannot be read as a picture \(unknown format\)"),
        ("val/a.png", noise(40, 5), "has 5 × 40 pixels, nothing but border where 2 on each side do not count"),
        ("val/a.png", None, "cannot be read as a picture"),
    ],
)
def test_pictures_are_looked_at_before_training(name: str, pixels: np.ndarray | None, message: str, data: Path) -> None:
    if pixels is None:
        (data / name).write_bytes(b"no picture")
    else:
        save(data / name, pixels)
    with pytest.raises(MetamixerError, match=f"{name} {message}"):
        task(data)
    if name.startswith("val"):
        with pytest.raises(MetamixerError, match=f"{name} {message}"):
            evaluate_folder(Repeat(), data / "val")
