"""Photographs that come with the packages of the ``demo`` extra, and what a classifier may rightly say of them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from metamixer.errors import MetamixerError


@dataclass(frozen=True)
class Photograph:
    """One photograph.

    Args:
        name: short name.
        caption: what it shows.
        credit: who made it, and its licence.
        package: distribution that ships it.
        file: its path within that package's module folder.
        answers: names of classes that are right for it, in lower case; a model that knows none of them cannot be right.
    """

    name: str
    caption: str
    credit: str
    package: str
    file: str
    answers: frozenset[str]

    @property
    def path(self) -> Path:
        """Where it is. Raises MetamixerError where the package, or the photograph in it, is missing."""
        module = {"scikit-image": "skimage", "scikit-learn": "sklearn"}.get(self.package, self.package)
        spec = find_spec(module)  # without importing the package, which takes long
        path = Path(spec.origin).parent / self.file if spec is not None and spec.origin else None
        if path is None or not path.is_file():
            raise MetamixerError(
                f"the demo's photograph of {self.caption} ships with {self.package}, which is missing; install it "
                "with: pip install 'metamixer[demo]'"
            )
        return path

    def is_right(self, label: str) -> bool:
        """Whether a class name, perhaps with synonyms after commas, is right for it."""
        return any(part.strip().lower().replace("_", " ") in self.answers for part in label.split(","))


def _photograph(name: str, caption: str, credit: str, package: str, file: str, *answers: str) -> Photograph:
    return Photograph(name, caption, credit, package, file, frozenset(answers))


PHOTOGRAPHS = (
    _photograph(
        "cat",
        "Chelsea the cat",
        "Stéfan van der Walt, CC0",
        "scikit-image",
        "data/chelsea.png",
        *("cat", "tabby", "tabby cat", "egyptian cat", "tiger cat"),
    ),
    _photograph("coffee", "a cup of espresso", "Rachel Michetti, CC0", "scikit-image", "data/coffee.png", "espresso"),
    _photograph(
        "rocket",
        "a rocket before launch",
        "SpaceX, public domain",
        "scikit-image",
        "data/rocket.jpg",
        *("projectile", "missile", "rocket"),
    ),
    _photograph(
        "officer",
        "Grace Hopper in uniform",
        "United States Navy, public domain",
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        "military uniform",
    ),
    _photograph(
        "astronaut", "the astronaut Eileen Collins", "NASA, public domain", "scikit-image", "data/astronaut.png"
    ),
    _photograph(
        "pagoda",
        "a pagoda by a lake",
        "danielbuechele, CC BY 2.0",
        "scikit-learn",
        "datasets/images/china.jpg",
        "pagoda",
    ),
    _photograph(
        "dahlia",
        "a dahlia",
        "vultilion, CC BY 2.0",
        "scikit-learn",
        "datasets/images/flower.jpg",
        *("dahlia", "flower"),
    ),
)
