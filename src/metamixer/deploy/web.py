"""A folder that any static server can host: a page that runs the model in the browser that opens it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import uuid
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metamixer.data.connection import ANSWER, CONNECT
from metamixer.data.files import make_folder, replace_when_done
from metamixer.deploy import onnx
from metamixer.deploy.report import Runtime
from metamixer.deploy.settings import PLAIN, Settings
from metamixer.errors import MetamixerError
from metamixer.html_page import render
from metamixer.printing import notices

if TYPE_CHECKING:
    from torch import Tensor, nn

_FIXED = "the page feeds one picture of one size"
REFUSES = {"dynamic_batch": _FIXED, "sizes": _FIXED}
RUNS_ON = onnx.RUNS_ON
WHOLE = True  # the page gives pixels and takes probabilities: normalisation and softmax are in the graph

VERSION = "1.27.0"
SHA512 = "ogDLsqIozHZwifPuN37OproAo0byX6t43/bP8GzeZWBWD6MOGExswFAx3up4NS/vvWBOg2u2PXomDt3rMmdQSg=="
PACKAGE = f"onnxruntime-web-{VERSION}.tgz"
PLACE = "METAMIXER_ONNXRUNTIME_WEB"  # environment variable that names the package's file
_WASM_FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_WEBGPU_FILES = (
    "ort.webgpu.min.js",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
_PAGE_FILES = ("index.html", "page.css", "page.js")
_MODEL_FILES = ("model.json", "model.onnx")


def check() -> None:
    """Raises MetamixerError where a package is missing, or the runtime's files can be had nowhere."""
    onnx.check()
    if not _kept().is_file() and shutil.which("npm") is None:
        raise MetamixerError(
            f"a web export needs {PACKAGE} and finds neither it nor npm to fetch it; fetch it elsewhere with `npm pack "
            f"onnxruntime-web@{VERSION}` and name the file in {PLACE}"
        )


def write(model: nn.Module, example: Tensor, path: Path, settings: Settings = PLAIN) -> str:
    """Write the folder: page, model, and the runtime's files (MIT licence, about 38 MB, checked by SHA-512)."""
    package = runtime_package()
    path.mkdir()
    onnx.write(model, example, path / "model.onnx", settings)
    (path / "model.json").write_text(json.dumps(_config(path / "model.onnx", settings.metadata)))
    page = resources.files("metamixer.deploy") / "web_page"
    for name in _PAGE_FILES:
        (path / name).write_bytes((page / name).read_bytes())
    at_once = ["./", *_PAGE_FILES, *_MODEL_FILES, *_WASM_FILES]
    worker = render("deploy/web_page/offline.js", kept=f"metamixer-{uuid.uuid4().hex}", at_once=at_once)
    (path / "offline.js").write_text(worker, encoding="utf-8")
    with tarfile.open(package) as archive:
        for name in (*_WASM_FILES, *_WEBGPU_FILES):
            content = archive.extractfile(f"package/dist/{name}")
            assert content is not None
            (path / name).write_bytes(content.read())
    return f"web page, onnxruntime-web {VERSION}; try it with: python -m http.server --directory FOLDER"


def load(path: str | Path, threads: int = 1) -> Runtime:
    """The folder's model in ONNX Runtime, of which the browser's runtime is a build."""
    return onnx.load(Path(path) / "model.onnx", threads)


def runtime_package() -> Path:
    """The npm package of onnxruntime-web: a file named by the environment, kept from before, or fetched by npm.

    Raises MetamixerError where it cannot be had or is not the one expected.
    """
    path = _kept()
    if not path.is_file():
        if PLACE in os.environ:
            raise MetamixerError(f"{path}, named by {PLACE}: no such file")
        _fetch(path)
    if base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode() != SHA512:
        raise MetamixerError(f"{path} is not onnxruntime-web {VERSION} as published; delete it")
    return path


def _kept() -> Path:
    if PLACE in os.environ:
        return Path(os.environ[PLACE]).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "metamixer" / PACKAGE


def _fetch(path: Path) -> None:
    make_folder(path.parent)
    with replace_when_done(path) as temporary:
        folder = make_folder(temporary.with_suffix(".npm"))
        try:
            notices.warning("fetching onnxruntime-web %s with npm", VERSION)
            # npm by itself tries for minutes where there is no network; this asks for a few lines only.
            _npm("view", "version", f"--fetch-timeout={1000 * CONNECT:.0f}", "--fetch-retries=0", timeout=2 * ANSWER)
            _npm("pack", "--pack-destination", str(folder), timeout=600)
            shutil.move(folder / PACKAGE, temporary)
        except FileNotFoundError as error:
            raise MetamixerError(f"npm could not fetch onnxruntime-web {VERSION} ({error})") from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _npm(action: str, *arguments: str, timeout: float) -> None:
    """One of npm's actions on the package. Raises MetamixerError with npm's own reason where it fails or hangs."""
    command = ["npm", action, f"onnxruntime-web@{VERSION}", "--json", *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise MetamixerError(f"npm did not answer in {timeout:.0f} seconds; is there a network?") from None
    if done.returncode:
        try:
            reason = json.loads(done.stdout)["error"]["summary"]
        except (ValueError, TypeError, KeyError):
            reason = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
        raise MetamixerError(f"npm could not fetch onnxruntime-web {VERSION} ({reason}); is there a network?")


def _config(model: Path, metadata: Any) -> dict[str, Any]:
    preprocessing = json.loads(metadata["preprocessing"])
    size = preprocessing["image_size"]
    return {
        "name": metadata["architecture"],
        "size": size,
        "crop": size / round(size / preprocessing["crop_pct"]),  # what is kept of the shorter side, whole pixels
        "squash": preprocessing.get("crop_mode") == "squash",
        "classes": json.loads(metadata.get("class_names", "null")),
        "megabytes": round(model.stat().st_size / 1e6, 1),
        "onnxruntime": VERSION,
    }
