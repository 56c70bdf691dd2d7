"""The web page: its folder, and a real browser that classifies a photograph as PyTorch does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import metamixer as mm
from metamixer.deploy import web
from metamixer.deploy.pictures import photographs
from metamixer.errors import MetamixerError

PAGE = Path(web.__file__).parent / "web_page"
SCREENSHOT = Path(__file__).parents[2] / "test-artefacts" / "web_page.png"  # kept, to be looked at
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# Stands around the page: waits until it has classified and measured, and tells the server what it shows.
WATCHER = """<!doctype html><style>body{margin:0} iframe{width:100vw;height:100vh;border:0}</style>
<iframe src="index.html?picture=photo.png&measure"></iframe><img src="wait" alt="">
<script>
const watch = setInterval(() => {
  const page = document.querySelector("iframe").contentDocument, state = page.body && page.body.dataset.state;
  if (!state) return;
  clearInterval(watch);
  const text = (id) => page.getElementById(id).textContent;
  const answers = [...page.querySelectorAll("#answers li")].map((row) => row.textContent);
  const milliseconds = page.getElementById("latency").dataset.milliseconds;
  const said = { state, answers, milliseconds, problem: text("problem"), device: text("device") };
  navigator.serviceWorker.ready.then(() => fetch("result", { method: "POST", body: JSON.stringify(said) }));
}, 100);
</script>"""


class Handler(SimpleHTTPRequestHandler):
    """Serves the folder; holds the watcher's picture back, and so the browser's screenshot, until the result is in."""

    done: threading.Event
    result: dict

    def do_GET(self):
        if self.path == "/wait":
            self.done.wait(120)
        super().do_GET()

    def do_POST(self):
        self.result.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()
        self.done.set()

    def log_message(self, *_):
        pass


@pytest.fixture
def package():
    if not web._kept().is_file():
        pytest.skip(f"{web.PACKAGE} is not on this machine; a web export fetches it with npm")


def test_page_names_no_address_outside_its_folder():
    for file in PAGE.iterdir():
        assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", file.read_text(encoding="utf-8")), file.name


def test_without_the_runtime_files_the_way_to_get_them_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(web.PLACE, raising=False)
    monkeypatch.setattr(web.shutil, "which", lambda name: None)
    with pytest.raises(MetamixerError, match=rf"npm pack onnxruntime-web@{web.VERSION}.* {web.PLACE}"):
        web.check()


def test_another_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(web.PLACE, str(tmp_path / "other.tgz"))
    with pytest.raises(MetamixerError, match="no such file"):
        web.runtime_package()
    (tmp_path / "other.tgz").write_bytes(b"something else")
    with pytest.raises(MetamixerError, match="is not onnxruntime-web"):
        web.runtime_package()


def test_photograph_in_a_browser(package, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    model = mm.create_model("casvit_nano.cifar10")
    photograph = max(photographs(8), key=lambda picture: mm.predict(model, picture).scores[0])
    folder = tmp_path / "page"
    report = mm.export(model, "web", folder, pictures=[photograph], repeats=0)
    assert report.top1_agreement == 1
    photograph.save(folder / "photo.png")
    (folder / "watcher.html").write_text(WATCHER)
    Handler.done, Handler.result = threading.Event(), {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    SCREENSHOT.parent.mkdir(exist_ok=True)
    SCREENSHOT.unlink(missing_ok=True)
    command = [
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=500,900",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]  # fmt: skip
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        online = [*command, f"--screenshot={SCREENSHOT}", f"{address}/watcher.html"]
        subprocess.run(online, capture_output=True, timeout=240, check=False)
    finally:
        server.shutdown()
        server.server_close()
    assert Handler.result["state"] == "ready", Handler.result
    expected = mm.predict(model, photograph)
    assert Handler.result["answers"][0].startswith(expected.labels[0])
    assert float(Handler.result["milliseconds"]) > 0
    assert SCREENSHOT.stat().st_size > 1000
    # The server is gone, and the page opens from what the browser kept at that one visit.
    offline = [*command, "--virtual-time-budget=20000", "--dump-dom", address]
    page = subprocess.run(offline, capture_output=True, text=True, timeout=240, check=False).stdout
    assert '<h1 id="name">casvit_nano</h1>' in page
    assert 'data-state="ready"' in page
