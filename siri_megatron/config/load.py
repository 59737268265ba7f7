"""Reading and writing a configuration: YAML with `extends:`, overrides, messages that name key and value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from siri_megatron.config.base import Section
from siri_megatron.config.run import RunConfig
from siri_megatron.errors import ConfigError
from siri_megatron.files import write_text


def read_yaml(path: Path, heirs: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML mapping, following `extends:` (relative to the file); the nearer of file and `heirs` wins."""
    heirs = (*heirs, path.resolve())
    if heirs.count(heirs[-1]) > 1:
        raise ConfigError(f"config {path} extends itself: {' extends '.join(heir.name for heir in heirs)}",
                          rule="extends leads to a file that extends nothing", fix="take one of these lines out")
    raw = _mapping(path)
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if not isinstance(parent, str):
        raise ConfigError(f"config {path}: extends is {parent!r}", rule="extends names one YAML file, beside this one",
                          fix="chain files instead: each extends the next")
    return merge(read_yaml(path.parent / parent, heirs), raw)


def _mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"config {path} {'is no file' if path.exists() else 'does not exist'}",
                          rule="CONFIG is a YAML file", fix="give the path of one; shipped ones lie in configs/")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"config {path} is not readable YAML: {error}", rule="CONFIG is a YAML file in UTF-8",
                          fix="mend the place it names") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"config {path} holds a {type(raw).__name__}, not a mapping",
                          rule="CONFIG is a YAML mapping", fix="write `key: value` lines")
    return raw


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` over `base`, mapping by mapping; anything else of `top` replaces what is there."""
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def flat(raw: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in raw.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def apply_overrides(raw: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Apply `a.b=value` on top of a raw mapping. The value is YAML; what is not YAML is text as it stands."""
    for text in overrides:
        key, sep, value = text.partition("=")
        if not sep or not key:
            raise ConfigError(f"override {text!r} has no '='", rule="overrides are key.sub=value",
                              fix="for example budget.l_min=48")
        nested = _scalar(value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        raw = merge(raw, nested)
    return raw


def _scalar(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def validate(raw: dict[str, Any], origin: str) -> RunConfig:
    """Turn a raw mapping into a RunConfig; every problem is named with its key and value."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + describe(error), rule="keys, types and ranges as in docs/configuration.md",
                          fix="correct the keys named above") from None


def describe(error: ValidationError) -> str:
    """Pydantic's findings, a line each: key, value, complaint."""
    found = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "config"
        value = "" if item["type"] == "missing" or isinstance(item["input"], dict) else f" = {item['input']!r}"
        message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        found.append(f"{key}{value}: {message}")
    return "; ".join(found)


def load(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read, override, validate.

    Raises:
        ConfigError: the file is missing or not YAML, an override is malformed, a key is unknown or out of range.
    """
    return validate(apply_overrides(read_yaml(path), overrides or []), str(path))


def save(config: Section, path: Path) -> None:
    """Write the resolved config as YAML (readable by `load`). Atomic: a resume must be able to read it after a kill."""
    write_text(path, as_yaml(config))


def as_yaml(config: Section) -> str:
    """The resolved config as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
