"""Weights shipped with the package: ``embedded/ARCHITECTURE.TAG.safetensors``, each with a model card beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metamixer.errors import MetamixerError
from metamixer.printing import notices
from metamixer.weights.checkpoint import Metadata, read_metadata

FOLDER = Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class Embedded:
    """One shipped file: its path, what it says of itself, and its model card."""

    path: Path
    metadata: Metadata

    @property
    def card(self) -> Path:
        return self.path.with_suffix(".md")


def embedded_weights(folder: Path | None = None) -> dict[str, Embedded]:
    """Shipped weights by ``architecture.tag``; for each architecture those that know most classes come first.

    Reads the files' headers alone. A file that cannot be read, or belongs to another network than its name says, is
    left out with a notice.
    """
    found = {}
    for path in sorted((FOLDER if folder is None else folder).glob("*.*.safetensors")):
        name = path.name.removesuffix(".safetensors")
        try:
            metadata = read_metadata(path)
        except MetamixerError as error:
            notices.warning("shipped weights left out: %s", error)
            continue
        if metadata is None or metadata.architecture != name.partition(".")[0]:
            notices.warning("shipped weights left out: %s does not say that it belongs to this network", path)
            continue
        found[name] = Embedded(path, metadata)
    return dict(sorted(found.items(), key=lambda item: (item[0].partition(".")[0], -_classes(item[1]), item[0])))


def _classes(weights: Embedded) -> int:
    return int(weights.metadata.pretrained_cfg().get("num_classes", 0))
