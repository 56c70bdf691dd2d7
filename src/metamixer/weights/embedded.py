"""Weights shipped with the package: ``embedded/ARCHITECTURE.TAG.safetensors``, each with a model card beside it, and
classifiers with ``ARCHITECTURE.TAG.json``, the figures of the card.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from metamixer.data.files import read_regular, replace_when_done
from metamixer.errors import MetamixerError
from metamixer.limits import CONFIG_BYTES
from metamixer.printing import notices
from metamixer.schemas import FiguresEntries, validated
from metamixer.weights.checkpoint import Metadata, metadata_from, open_weights, read_metadata

FOLDER = Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class Embedded:
    """One shipped file: its path, what it says of itself, and its model card."""

    path: Path
    metadata: Metadata

    @property
    def card(self) -> Path:
        return self.path.with_suffix(".md")

    @property
    def top1(self) -> float | None:
        """Accuracy on its validation pictures in percent; None where it was not measured.

        Raises MetamixerError for a file of figures that is none.
        """
        file = self.path.with_suffix(".json")
        if not file.exists():
            return None
        return validated(FiguresEntries, read_regular(file, CONFIG_BYTES, "figures"), file, json=True).top1


def embedded_weights(folder: Path | None = None) -> dict[str, Embedded]:
    """Shipped weights by ``architecture.tag``; for each architecture those that know most classes come first.

    Opens no weights that ``index.json`` beside them knows, since this runs whenever timm is imported, and of others the
    headers alone. A file that cannot be read, or belongs to another network than its name says, is left out with a
    notice.
    """
    folder = FOLDER if folder is None else folder
    index = _index(folder)
    found = {}
    for path in sorted(folder.glob("*.*.safetensors")):
        name = path.name.removesuffix(".safetensors")
        try:
            metadata = metadata_from(index[name], path) if name in index else read_metadata(path)
        except MetamixerError as error:
            notices.warning("shipped weights left out: %s", error)
            continue
        if metadata is None or metadata.architecture != name.partition(".")[0]:
            notices.warning("shipped weights left out: %s does not say that it belongs to this network", path)
            continue
        found[name] = Embedded(path, metadata)
    return dict(sorted(found.items(), key=lambda item: (item[0].partition(".")[0], -_classes(item[1]), item[0])))


def _index(folder: Path) -> dict[str, dict[str, str]]:
    """The headers of the folder's weights by ``architecture.tag``, as far as they are repeated in ``index.json``."""
    file = folder / "index.json"
    if not file.exists():
        return {}
    return validated(dict[str, dict[str, str]], read_regular(file, CONFIG_BYTES, "an index"), file, json=True)


def write_index(folder: Path = FOLDER) -> None:
    """Repeat the headers of a folder's weights in its ``index.json``; to be called whenever a file is put there."""
    headers = {}
    for path in sorted(folder.glob("*.*.safetensors")):
        with open_weights(path) as file:
            headers[path.name.removesuffix(".safetensors")] = dict(sorted(file.metadata().items()))
    with replace_when_done(folder / "index.json") as temporary:
        temporary.write_text(json.dumps(headers, indent=1) + "\n", encoding="utf-8")


def _classes(weights: Embedded) -> int:
    return int(weights.metadata.pretrained_cfg().get("num_classes", 0))
