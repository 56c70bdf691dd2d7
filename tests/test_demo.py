"""The demo: every model and photograph on one page that needs nothing from outside, with the numbers of its JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest
import torch
from PIL import Image

import metamixer as mm
from metamixer.demo import make_demo, run_demo
from metamixer.demo.photographs import PHOTOGRAPHS
from metamixer.demo.run import Guess, _verdict
from metamixer.errors import MetamixerError
from metamixer.weights.checkpoint import save_checkpoint
from metamixer.weights.embedded import embedded_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The shipped weights of classifiers; in a tree without any, an untrained network that knows cats."""
    shipped = {name: weights for name, weights in embedded_weights().items() if weights.metadata.classes}
    if shipped:
        return shipped
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    classes = ["espresso, coffee", "tabby, tabby cat", "<b>", "ship", "frog", "dog"]
    save_checkpoint(mm.create_model("casvit_nano", num_classes=6), folder / "casvit_nano.six.safetensors", classes)
    (folder / "casvit_nano.six.md").write_text("# casvit_nano.six\n\nTop-1 on 600 pictures: **16.7 %**\n")
    return embedded_weights(folder)


@pytest.fixture(scope="module")
def demo(weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    return make_demo(out, weights, repeats=3), out


def test_files(demo, weights):
    names = {f"{name}.onnx" for name in weights}
    reports = {f"{name}.json" for name in names}
    assert {p.name for p in demo[1].iterdir()} == {"report.html", "report.png", "report.json"} | names | reports
    with Image.open(demo[1] / "report.png") as picture:
        assert picture.format == "PNG"
        assert picture.width >= 400


def test_page_needs_nothing_from_outside(demo):
    page = (demo[1] / "report.html").read_text()
    assert "<script" not in page
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", page)
    assert not re.search(r"https?://|url\(|@import", page)


def test_page_holds_every_model_and_photograph(demo, weights):
    page = (demo[1] / "report.html").read_text()
    for name in weights:
        assert page.count(f"</span>{name}") == len(PHOTOGRAPHS) + 1  # its bars beside each, and the table
    for photograph in PHOTOGRAPHS:
        assert f'alt="{photograph.caption}"' in page
        assert photograph.credit in page
    assert page.count('src="data:image/jpeg;base64,') == len(PHOTOGRAPHS)
    assert "<b></span>" not in page  # class names are escaped


def test_page_and_json_give_the_same_numbers(demo):
    content = json.loads((demo[1] / "report.json").read_text())
    page = (demo[1] / "report.html").read_text()
    for model in content["models"]:
        report = model["export"]
        assert report == json.loads((demo[1] / f"{model['name']}.onnx.json").read_text())
        assert report["size_bytes"] == (demo[1] / f"{model['name']}.onnx").stat().st_size
        assert report["count"] == len(PHOTOGRAPHS) == len(model["answers"])
        for number in (
            f"<td>{report['parameters_after']:,}<small>",
            f"<td>{report['size_bytes'] / 1e6:.2f} MB</td>",
            f"<td>{report['max_abs_difference']:.1e}<small>",
            f"<td>{model['macs'] / 1e6:.1f} M</td>",
            f"<td>{model['torch']['median_ms']:.2f} ms<small>",
            f"<td>{model['onnx']['median_ms']:.2f} ms<small>",
            f"<td>{model['torch']['median_ms'] / model['onnx']['median_ms']:.1f} ×</td>",
        ):
            assert number in page
        if model["accuracy"] is not None:
            assert f"<td>{model['accuracy']:.1f} %</td>" in page


def test_exports_agree_and_answers_are_probabilities(demo):
    for model in demo[0].models:
        assert model.export.max_relative_difference < 1e-3
        assert model.export.top1_agreement == 1
        onnx.checker.check_model(demo[1] / f"{model.name}.onnx")
        for answer in model.answers:
            scores = [guess.score for guess in answer.guesses]
            assert scores == sorted(scores, reverse=True)
            assert 0 < sum(scores) <= 1 + 1e-5


def test_answers_are_the_predictions(demo, weights):
    result = demo[0].models[0]
    model = mm.models.load_model(weights[result.name].path)
    for photograph, answer in zip(PHOTOGRAPHS, result.answers, strict=True):
        prediction = mm.predict(model, photograph.path)
        assert [g.score for g in answer.guesses] == pytest.approx(list(prediction.scores))


def test_photographs_are_there_and_credited():
    assert len({p.name for p in PHOTOGRAPHS}) == len(PHOTOGRAPHS)
    for photograph in PHOTOGRAPHS:
        with Image.open(photograph.path) as picture:
            assert min(picture.size) >= 300
        assert photograph.credit


def test_synonyms_count_as_right():
    cat = next(p for p in PHOTOGRAPHS if p.name == "cat")
    assert cat.is_right("tabby, tabby cat")
    assert cat.is_right("Egyptian_cat")
    assert not cat.is_right("bobcat")


@pytest.mark.parametrize(
    ("rights", "knows", "verdict"),
    [
        ((True, False), True, "right"),
        ((False, True), True, "in the top 5"),
        ((False, False), True, "wrong"),
        ((False, False), False, "not among its classes"),
    ],
)
def test_verdict(rights, knows, verdict):
    assert _verdict(tuple(Guess("x", 0.5, right) for right in rights), knows) == verdict


def test_package_of_a_photograph_is_missing(monkeypatch, tmp_path, weights):
    monkeypatch.setattr("metamixer.demo.photographs.find_spec", lambda name: None)
    with pytest.raises(MetamixerError, match=r"scikit-image, which is missing.*metamixer\[demo\]"):
        make_demo(tmp_path, weights)


def test_place_cannot_be_written(tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(MetamixerError, match="taken"):
        run_demo(taken)


def test_no_weights(tmp_path):
    with pytest.raises(MetamixerError, match="no weights"):
        make_demo(tmp_path, {})


def test_command_prints_a_summary(demo, monkeypatch, capsys):
    made: list[Path] = []
    monkeypatch.setattr("metamixer.demo.run.make_demo", lambda out: made.append(out) or demo[0])
    run_demo(demo[1])
    printed = capsys.readouterr().out.replace("\n", "")
    assert made == [demo[1]]
    assert str(demo[1] / "report.html") in printed
    assert f"{demo[0].models[0].export.size_bytes / 1e6:.1f} MB" in printed
