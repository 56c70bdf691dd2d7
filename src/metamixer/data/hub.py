"""The Hugging Face hub: what this machine has of it already, else briefly the network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from metamixer.data.connection import RefusedError, UnreachableError, ask
from metamixer.data.download import cache_folder, download
from metamixer.errors import MetamixerError
from metamixer.printing import notices

_Loaded = TypeVar("_Loaded")
_NAME = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)


def hub_file(repository: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a model's repository, from the hub's own cache or ours, else downloaded to ours.

    Args:
        repository: ``OWNER/NAME``.
        name: of the file.
        revision: branch, tag or commit; by default "main".

    The variables of the hub's client hold: ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``, ``HF_HUB_CACHE``, ``HF_TOKEN``.

    Returns the file; None where the repository has none of that name.

    Raises MetamixerError where the hub has no such repository or not for this user, without a network, and as
    :func:`metamixer.data.download.download` does.
    """
    import huggingface_hub
    from huggingface_hub import constants

    there = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
    if isinstance(there, str):  # else None, or a mark that the repository has no such file
        return Path(there)
    place = f"hub/{repository}/{revision or 'main'}/{name}"
    if constants.HF_HUB_OFFLINE and not (cache_folder() / place).is_file():
        raise MetamixerError(f"{name} of {repository} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it")
    url = huggingface_hub.hf_hub_url(repository, name, revision=revision)
    try:
        return download(url, place, secrets=_token())
    except RefusedError as error:
        if error.code == 404 and error.headers.get("X-Error-Code") in (None, "EntryNotFound"):
            return None
        raise _explained(error, repository) from None


def with_hub(data_set: str, load: Callable[[], _Loaded]) -> _Loaded:
    """What ``load`` makes of a data set, where the hub can be reached; else what it finds on this machine.

    The hub's client tries for half a minute and longer where there is no network, so we ask first.

    Args:
        data_set: ``OWNER/NAME``, or ``NAME``.
        load: calls the package datasets.

    Raises MetamixerError for a data set that the hub does not have or not for this user, and without a network, where
    ``load`` fails too.
    """
    import datasets
    from huggingface_hub import constants

    if not _NAME.fullmatch(data_set):  # the package would take a folder of this machine for it
        raise MetamixerError(f"no data set of the Hugging Face hub can be called {data_set!r}")
    if datasets.config.HF_HUB_OFFLINE:
        return load()
    notices.warning("asking the Hugging Face hub for %s", data_set)
    try:
        ask(f"{constants.ENDPOINT}/api/datasets/{data_set}", secrets=_token()).close()
    except RefusedError as error:
        raise _explained(error, data_set) from None
    except UnreachableError as unreachable:
        try:
            with _offline():
                found = load()
        except Exception:  # of many kinds; all say that it is not on this machine
            raise unreachable from None
        notices.warning("%s is taken as it was fetched before: the hub cannot be reached", data_set)
        return found
    return load()


def _token() -> dict[str, str] | None:
    import huggingface_hub

    token = huggingface_hub.get_token()
    return {"Authorization": f"Bearer {token}"} if token else None


def _explained(error: RefusedError, repository: str) -> MetamixerError:
    if error.code not in (401, 403, 404):
        return error
    return MetamixerError(
        f"the Hugging Face hub has no {repository}, or not for this user (it answered {error.code}); where it wants a"
        " login or consent, accept on its page and set HF_TOKEN"
    )


@contextmanager
def _offline() -> Iterator[None]:
    """As with ``HF_HUB_OFFLINE``, which both packages read when they are imported."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
