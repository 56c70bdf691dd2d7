"""Archives from elsewhere: what is read, and what is refused."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from metamixer.data import archives
from metamixer.data.archives import read_archive
from metamixer.errors import MetamixerError


def tar_of(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def zip_of(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_gives_its_files_in_order(tmp_path: Path, mode: str) -> None:
    folder = special("a", tarfile.DIRTYPE)
    path = tar_of(tmp_path / "a.tar", folder, ("a/b.txt", b"one"), ("./c.txt", b"two"), mode=mode)
    assert list(read_archive(path)) == [(PurePosixPath("a/b.txt"), b"one"), (PurePosixPath("c.txt"), b"two")]


def test_a_zip_gives_its_files_in_order(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", ("a/", b""), ("a/b.txt", b"one"), ("c.txt", b"two"))
    assert list(read_archive(path)) == [(PurePosixPath("a/b.txt"), b"one"), (PurePosixPath("c.txt"), b"two")]
    assert [name.name for name, _ in read_archive(path, lambda name: name.name == "c.txt")] == ["c.txt"]


ELSEWHERE = ["../evil.txt", "a/../../evil.txt", "/etc/evil.txt", "..\\evil.txt", "C:\\evil.txt", "a/.."]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    for path in (tar_of(tmp_path / "a.tar", (name, b"x")), zip_of(tmp_path / "a.zip", (name, b"x"))):
        with pytest.raises(MetamixerError, match="would be written elsewhere"):
            list(read_archive(path))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tar_of(tmp_path / "a.tar", special("a/b", kind, "/etc/passwd"))
    with pytest.raises(MetamixerError, match=r"link or device, 'a/b'"):
        list(read_archive(path))


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a/b")
    link.external_attr = 0o120777 << 16
    with pytest.raises(MetamixerError, match=r"link or device, 'a/b'"):
        list(read_archive(zip_of(tmp_path / "a.zip", (link, b"/etc/passwd"))))


def test_huge_members_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 1000)
    for path in (
        tar_of(tmp_path / "a.tar", ("zeros", bytes(1001))),
        zip_of(tmp_path / "a.zip", ("zeros", bytes(1001))),
    ):
        with pytest.raises(MetamixerError, match=r"1001 bytes, 'zeros'"):
            list(read_archive(path))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_damaged_archives_are_one_sentence(tmp_path: Path, mode: str) -> None:
    noise = bytes(i * 7919 % 251 for i in range(20000))
    path = tar_of(tmp_path / "a.tar", ("a", noise), ("b", noise), mode=mode)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(MetamixerError, match="is a damaged archive"):
        list(read_archive(path))
    path.write_bytes(data[: len(data) // 3] + bytes(50) + data[len(data) // 3 + 50 :])
    if mode in ("w:bz2", "w:xz"):  # a plain tar has no checksum of contents, gzip's lies beyond tar's last block
        with pytest.raises(MetamixerError, match="is a damaged archive"):
            list(read_archive(path))


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_text("<html>not found</html>")
    with pytest.raises(MetamixerError, match="is a damaged archive"):
        list(read_archive(tmp_path / "a.tgz"))
    with pytest.raises(MetamixerError, match="no such file"):
        list(read_archive(tmp_path / "none.tgz"))
