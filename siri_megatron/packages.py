"""Which versions of which packages are installed. Imports none of them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata


def installed_version(name: str) -> str | None:
    """The version of a distribution; None if it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Version by name, of those that are there."""
    return {name: version for name in names if (version := installed_version(name)) is not None}
