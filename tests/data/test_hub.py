"""The Hugging Face hub, stood in for by a server here: its cache, ours, and what is said where it cannot be had."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from huggingface_hub import constants
from PIL import Image

from metamixer import MetamixerError
from metamixer.data.hub import hub_file
from metamixer.data.source import open_pictures

FILE = "timm/net.a1/resolve/main/model.safetensors"


@pytest.fixture(autouse=True)
def hub(server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is the hub, whose own cache is empty."""
    point_at(server.url("").rstrip("/"), monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache.parent / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    server.files[FILE] = b"weights"


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for place in (constants, huggingface_hub.file_download):  # versions before 1.0 keep it in both
        monkeypatch.setattr(place, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def nowhere(server: Any) -> None:
    server.shutdown()
    server.server_close()


def test_a_file_is_fetched_once(server: Any, cache: Path) -> None:
    path = hub_file("timm/net.a1", "model.safetensors")
    assert path == cache / "hub" / "timm" / "net.a1" / "main" / "model.safetensors"
    assert path.read_bytes() == b"weights"
    nowhere(server)
    assert hub_file("timm/net.a1", "model.safetensors") == path


def test_a_revision_has_a_place_of_its_own(server: Any) -> None:
    server.files[FILE.replace("main", "v2")] = b"others"
    assert hub_file("timm/net.a1", "model.safetensors", "v2").read_bytes() == b"others"
    assert hub_file("timm/net.a1", "model.safetensors").read_bytes() == b"weights"


@pytest.mark.promise("faults", "what is on this machine already needs no network")
def test_the_cache_of_the_hubs_client_counts(server: Any) -> None:
    folder = Path(constants.HF_HUB_CACHE, "models--timm--net.a1")
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "model.safetensors").write_bytes(b"from before")
    nowhere(server)
    assert hub_file("timm/net.a1", "model.safetensors").read_bytes() == b"from before"


def test_a_token_is_sent(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    assert hub_file("timm/net.a1", "model.safetensors").read_bytes() == b"weights"
    assert server.headers[0]["Authorization"] == "Bearer secret"


@pytest.mark.promise("faults", "HF_HUB_OFFLINE is honoured")
def test_offline(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MetamixerError, match="not on this machine, and HF_HUB_OFFLINE forbids to fetch it"):
        hub_file("timm/net.a1", "model.safetensors")
    assert server.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path = hub_file("timm/net.a1", "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_file("timm/net.a1", "model.safetensors") == path


@pytest.mark.parametrize(("code", "error"), [(404, "RepoNotFound"), (401, "RepoNotFound"), (403, "GatedRepo")])
def test_a_repository_that_is_not_for_this_user(server: Any, code: int, error: str) -> None:
    server.answers[FILE] = [code]
    server.extra["X-Error-Code"] = error
    with pytest.raises(MetamixerError, match=rf"no timm/net.a1, or not for this user \(it answered {code}\).*HF_"):
        hub_file("timm/net.a1", "model.safetensors")


def test_a_file_that_the_repository_does_not_have(server: Any) -> None:
    assert hub_file("timm/net.a1", "other.bin") is None


@pytest.mark.promise("faults", "without a network, or with a server that never answers, one sentence comes in seconds")
def test_a_data_set_without_a_network(server: Any) -> None:
    nowhere(server)
    began = time.monotonic()
    with pytest.raises(MetamixerError, match=r"/api/datasets/owner/name could not be reached .* is there a network"):
        open_pictures("hf://owner/name", "train")
    assert time.monotonic() - began < 20  # far less, and 34 without the bounds


@pytest.mark.promise("faults", "what is on this machine already needs no network")
def test_a_data_set_that_was_fetched_before(server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a network the package is asked for what it kept; told so, it does not try for half a minute."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a"]))
    kept = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")], "label": [0]}, features)
    offline: list[tuple[bool, bool]] = []

    def load(name: str, configuration: str | None) -> Any:
        offline.append((datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE))
        return datasets.DatasetDict(train=kept)

    monkeypatch.setattr(datasets, "load_dataset", load)
    server.files["api/datasets/owner/name"] = b"{}"
    assert open_pictures("hf://owner/name", "train").classes == ["a"]
    nowhere(server)
    assert open_pictures("hf://owner/name", "train").classes == ["a"]
    assert offline == [(False, False), (True, True)]
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("code", [401, 404])
def test_a_data_set_that_is_not_there(server: Any, code: int) -> None:
    server.answers["api/datasets/owner/name"] = [code]
    with pytest.raises(MetamixerError, match=rf"has no owner/name, or not for this user \(it answered {code}\)"):
        open_pictures("hf://owner/name", "train")


@pytest.mark.parametrize("name", ["", "..", "../etc", "a/b/c", "/etc", "a b", "x" * 200, "a/<b>"])
def test_names_that_no_data_set_can_have(server: Any, name: str) -> None:
    """The package would take a folder of this machine for some of them."""
    with pytest.raises(MetamixerError, match="no data set of the Hugging Face hub can be called"):
        open_pictures(f"hf://{name}", "train")
    assert server.requests == []
