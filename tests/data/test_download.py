"""Downloads from a local server: whole or not at all, resumed where they broke off."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from metamixer import MetamixerError
from metamixer.data.download import cache_folder, download, one_process

CONTENTS = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(CONTENTS).hexdigest()


@pytest.fixture(autouse=True)
def served(server: Any, cache: Path) -> None:
    server.files["file"] = CONTENTS


def url(server: Any, name: str = "file") -> str:
    return server.url(name)


def files(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_downloads_once(server: Any, cache: Path) -> None:
    path = download(url(server), "weights.pth", len(CONTENTS), DIGEST)
    assert path == cache / "weights.pth"
    assert path.read_bytes() == CONTENTS
    assert download(url(server), "weights.pth", len(CONTENTS), DIGEST) == path
    assert server.requests == [None]
    assert files(cache) == ["weights.pth"]


def test_a_second_process_waits_for_the_first(server: Any, cache: Path) -> None:
    target = cache / "weights.pth"
    with ThreadPoolExecutor(1) as second:
        with one_process(target):
            waiting = second.submit(download, url(server), "weights.pth", len(CONTENTS), DIGEST)
            assert not wait([waiting], timeout=0.3).done
            target.write_bytes(CONTENTS)
        assert waiting.result(timeout=60) == target
    assert server.requests == []


def test_a_lost_connection_is_resumed(server: Any, cache: Path) -> None:
    server.breaks = 2
    assert download(url(server), "weights.pth", sha256=DIGEST).read_bytes() == CONTENTS
    half = len(CONTENTS) // 2
    assert server.requests == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]


def test_an_earlier_attempt_is_resumed(server: Any, cache: Path) -> None:
    cache.mkdir()
    (cache / "weights.pth.part").write_bytes(CONTENTS[:1000])
    assert download(url(server), "weights.pth", sha256=DIGEST).read_bytes() == CONTENTS
    assert server.requests == ["bytes=1000-"]


def test_a_whole_part_only_needs_its_name(server: Any, cache: Path) -> None:
    cache.mkdir()
    (cache / "weights.pth.part").write_bytes(CONTENTS)
    assert download(url(server), "weights.pth", sha256=DIGEST).read_bytes() == CONTENTS
    assert files(cache) == ["weights.pth"]


def test_a_part_that_is_too_long_starts_anew(server: Any, cache: Path) -> None:
    cache.mkdir()
    (cache / "weights.pth.part").write_bytes(CONTENTS + b"more")
    assert download(url(server), "weights.pth", sha256=DIGEST).read_bytes() == CONTENTS


def test_a_server_without_ranges_starts_anew(server: Any, cache: Path) -> None:
    server.ranges = False
    cache.mkdir()
    (cache / "weights.pth.part").write_bytes(b"x" * 1000)
    assert download(url(server), "weights.pth", sha256=DIGEST).read_bytes() == CONTENTS


@pytest.mark.parametrize(("size", "digest"), [(None, "0" * 64), (5, None)])
def test_another_file_is_refused_and_deleted(server: Any, cache: Path, size: int | None, digest: str | None) -> None:
    with pytest.raises(MetamixerError, match=r"(SHA-256|bytes instead of 5).* was deleted"):
        download(url(server), "weights.pth", size, digest)
    assert files(cache) == []


def test_md5_is_checked_too(server: Any, cache: Path) -> None:
    digest = hashlib.md5(CONTENTS, usedforsecurity=False).hexdigest()
    assert download(url(server), "sets/a.tgz", md5=digest) == cache / "sets" / "a.tgz"
    with pytest.raises(MetamixerError, match=r"MD5 .* was deleted"):
        download(url(server), "b.tgz", md5="0" * 32)
    assert files(cache) == ["sets"]


def test_a_missing_file(server: Any, cache: Path) -> None:
    with pytest.raises(MetamixerError, match=r"/none answered 404"):
        download(url(server, "none"), "weights.pth")
    assert files(cache) == []


def test_no_server(server: Any, cache: Path) -> None:
    address = url(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(MetamixerError, match=r"could not be reached .* is there a network"):
        download(address, "weights.pth")
    assert files(cache) == []


def test_a_connection_that_keeps_breaking_keeps_its_part(
    server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.breaks = 10**6
    with pytest.raises(MetamixerError, match="broke off; run the same command again"):
        download(url(server), "weights.pth")
    assert files(cache) == ["weights.pth.part"]
    held = (cache / "weights.pth.part").read_bytes()
    assert CONTENTS.startswith(held)


def test_a_cache_that_cannot_be_written(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("METAMIXER_CACHE", str(tmp_path / "file"))
    with pytest.raises(MetamixerError, match="cannot be written"):
        download(url(server), "weights.pth")


def test_the_cache_is_in_the_home_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METAMIXER_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "metamixer"
