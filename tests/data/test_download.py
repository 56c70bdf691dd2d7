"""Downloads from a local server: whole or not at all, resumed where they broke off."""

from __future__ import annotations

import errno
import hashlib
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from metamixer import MetamixerError
from metamixer.data import folder_lock
from metamixer.data.download import cache_folder, download, one_process

CONTENTS = bytes(range(256)) * 4096
whole = pytest.mark.promise(
    "faults", "downloads are whole and the file asked for, or not there: no web page, no half, no mixture"
)


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


@whole
def test_a_web_page_is_not_the_file(server: Any, cache: Path) -> None:
    server.extra["Content-Type"] = "text/html; charset=utf-8"
    with pytest.raises(MetamixerError, match=r"/file answers with a web page instead of the file; a login or a proxy"):
        download(url(server), "weights.pth")
    assert files(cache) == []


@whole
@pytest.mark.parametrize("known", [{}, {"sha256": DIGEST}])
def test_a_broken_answer_without_a_length_is_not_whole(server: Any, cache: Path, known: dict[str, str]) -> None:
    server.chunked, server.breaks, server.etag = True, 1, '"1"'
    assert download(url(server), "weights.pth", **known).read_bytes() == CONTENTS
    assert len(server.requests) == 2


@whole
def test_a_file_that_changed_meanwhile_is_not_mixed(server: Any, cache: Path) -> None:
    server.breaks, server.etag = 10**6, '"1"'
    with pytest.raises(MetamixerError, match="broke off"):
        download(url(server), "weights.pth")
    server.breaks, server.etag = 0, '"2"'
    server.files["file"] = CONTENTS[::-1]
    assert download(url(server), "weights.pth").read_bytes() == CONTENTS[::-1]
    assert server.headers[-1]["If-Range"] == '"1"'
    assert files(cache) == ["weights.pth"]


def test_without_a_mark_or_a_digest_an_earlier_attempt_counts_for_nothing(server: Any, cache: Path) -> None:
    cache.mkdir()
    (cache / "weights.pth.part").write_bytes(b"another file")
    assert download(url(server), "weights.pth").read_bytes() == CONTENTS
    assert server.requests == [None]


def test_another_part_than_asked_for_is_not_taken(server: Any, cache: Path) -> None:
    """A server that goes on elsewhere: all of it anew, without asking for parts again."""
    cache.mkdir()
    (cache / "weights.pth.part").write_bytes(CONTENTS[:1000])
    server.extra["Content-Range"] = "bytes 7-9/10"
    server.answers["file"] = [206, 206]
    with pytest.raises(MetamixerError, match="a part of the file only"):
        download(url(server), "weights.pth", sha256=DIGEST)
    del server.extra["Content-Range"]
    assert download(url(server), "weights.pth", sha256=DIGEST).read_bytes() == CONTENTS


def test_a_file_without_contents_is_refused(server: Any, cache: Path) -> None:
    server.files["file"] = b""
    with pytest.raises(MetamixerError, match="has no contents and was deleted"):
        download(url(server), "weights.pth")
    assert files(cache) == []


def test_an_answer_that_never_ends_is_cut_off(server: Any, cache: Path) -> None:
    server.chunked = True
    with pytest.raises(MetamixerError, match="has more than 1000 bytes instead of 1000 and was deleted"):
        download(url(server), "weights.pth", size=1000)
    assert files(cache) == []


@pytest.mark.promise("faults", "a cache that is full, or will be, is told in a sentence and left as it was")
def test_what_does_not_fit_is_not_begun(server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(MetamixerError, match=r"cache has 1 kB free, and 1.05 MB are to be fetched"):
        download(url(server), "weights.pth")
    assert files(cache) == []


@pytest.mark.promise("faults", "a cache that is full, or will be, is told in a sentence and left as it was")
def test_a_disk_that_fills_meanwhile(server: Any, small_disk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAMIXER_CACHE", str(small_disk.path / "cache"))
    server.chunked = True  # nobody can tell how much comes
    server.files["file"] = CONTENTS * 4
    small_disk.leave(300_000)
    with pytest.raises(MetamixerError, match=r"cannot be written \((No space left on device|File too large)\)"):
        download(url(server), "weights.pth")
    assert files(small_disk.path / "cache") == []


@pytest.mark.promise("processes", "of several processes that want one file, one fetches it")
def test_two_processes_fetch_once(server: Any, cache: Path) -> None:
    server.files["file"] = CONTENTS * 8
    code = f"from metamixer.data.download import download; print(download({url(server)!r}, 'weights.pth'))"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in running] == [str(cache / "weights.pth")] * 2
    assert server.requests == [None]
    assert (cache / "weights.pth").read_bytes() == CONTENTS * 8


def test_what_is_fetched_is_said_before(server: Any, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(MetamixerError):
        download(url(server, "none"), "weights.pth")
    assert caplog.messages == [f"fetching {url(server, 'none')}"]
    with ThreadPoolExecutor(1) as second:
        with one_process(cache / "weights.pth"):
            waiting = second.submit(download, url(server), "weights.pth")
            assert not wait([waiting], timeout=1.5).done
            (cache / "weights.pth").write_bytes(CONTENTS)
        assert waiting.result(timeout=60) == cache / "weights.pth"
    assert caplog.messages[1:] == ["waiting for another process that is fetching weights.pth"]


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no locks here")])
def test_a_file_system_without_locks_is_said(
    server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(folder_lock.FileLock, "acquire", refuse)
    assert download(url(server), "weights.pth").read_bytes() == CONTENTS
    assert "see to it that no other process fetches weights.pth" in caplog.messages[0]
