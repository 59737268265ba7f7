"""Fetch wheels by pinned hash and unpack their Python sources, to read them or to put them in front on the path.

    python tools/wheels.py                  fetch every wheel of requirements/compat.lock that is not there yet
    python tools/wheels.py NAME ...         only these packages (NAME, or NAME==VERSION)

A package goes to .compat/NAME-VERSION/. Only its `.py` files and metadata are kept: compiled code is for another Python
or another machine. Nothing is installed, no dependency is followed. Of a line that also pins the wheel's RECORD only
these files are read over the network (tools/wheel_ranges.py), where the server allows it; else the whole wheel.

Invariants:
- pinned: the wheel, or every file that is read of it, has the hash of the lock; another one is refused.
- idempotent: a package that is there is not fetched again, and needs no network.
- whole_or_absent: a package's directory appears under its name only when it is complete.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import wheel_ranges

from siri_megatron.errors import ConfigError, SiriError

ROOT = Path(__file__).resolve().parents[1]
LOCK, PLACE = ROOT / "requirements" / "compat.lock", ROOT / ".compat"
PYTHON, PLATFORM = "3.12", "manylinux_2_28_x86_64"
CHOICE = ("--only-binary=:all:", "--python-version", PYTHON, "--platform", PLATFORM)
TIMEOUT_S = 900
LINE = re.compile(r"([\w.-]+)==([\w.]+) --hash=sha256:([0-9a-f]{64})(?: # RECORD sha256:([0-9a-f]{64}))?")


@dataclass(frozen=True)
class Wheel:
    """A line of the lock. `record`: sha256 of the wheel's RECORD; empty: the wheel is always fetched whole."""

    name: str
    version: str
    sha256: str
    record: str = ""

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"

    def directory(self, place: Path = PLACE) -> Path:
        """Where its sources are, once unpacked."""
        return place / f"{self.name}-{self.version}"

    def called(self, name: str) -> bool:
        return name in (self.name, f"{self.name}=={self.version}")


def read_lock(lock: Path = LOCK) -> list[Wheel]:
    """Raises ConfigError if a line is not NAME==VERSION --hash=sha256:HASH, perhaps with # RECORD sha256:HASH."""
    return [_wheel(line, lock) for line in lock.read_text().splitlines() if line.strip() and not line.startswith("#")]


def unpack(wheel: Wheel, place: Path = PLACE) -> Path:
    """The directory of a wheel's sources; fetched first if it is not there.

    Raises:
        ConfigError: the wheel cannot be fetched, or is not the one that the lock pins.
    """
    directory = wheel.directory(place)
    if directory.is_dir():
        return directory
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place, prefix=".part-") as temporary:
        sources = Path(temporary) / "sources"
        if not (wheel.record and _read_ranges(wheel, sources)):
            with zipfile.ZipFile(_download(wheel, Path(temporary))) as archive:
                archive.extractall(sources, members=filter(_is_source, archive.namelist()))
        shutil.rmtree(directory, ignore_errors=True)
        sources.rename(directory)
    return directory


def _wheel(line: str, lock: Path) -> Wheel:
    found = LINE.fullmatch(line.strip())
    if found is None:
        raise ConfigError(f"{lock}: {line!r}", rule="NAME==VERSION --hash=sha256:HASH [# RECORD sha256:HASH]",
                          fix="mend the line")
    return Wheel(*(part or "" for part in found.groups()))


def _is_source(name: str) -> bool:
    return name.endswith(".py") or ".dist-info/" in name


def _read_ranges(wheel: Wheel, sources: Path) -> bool:
    """Only the sources, over HTTP ranges; False, with a word about why, where that cannot be done."""
    try:
        url, sha256 = wheel_ranges.wheel_url(f"{wheel.name}=={wheel.version}", CHOICE)
        if sha256 != wheel.sha256:
            raise _refused(wheel, f"the index has a wheel with sha256 {sha256}")
        count = wheel_ranges.extract(url, wheel.record, _is_source, sources)
        print(f"{wheel.name}=={wheel.version}: read {count / 2**20:.1f} MiB of its wheel", flush=True)
    except wheel_ranges.Unavailable as reason:
        print(f"{wheel.name}=={wheel.version}: the whole wheel is fetched ({reason})", flush=True)
        return False
    except ValueError as error:
        raise _refused(wheel, str(error)) from None
    return True


def _download(wheel: Wheel, into: Path) -> Path:
    lock = into / "requirement.txt"
    lock.write_text(wheel.requirement + "\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps",
               "--retries", "1", "--require-hashes", *CHOICE, "-d", str(into), "-r", str(lock)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise _refused(wheel, f"not there after {TIMEOUT_S} s") from None
    except subprocess.CalledProcessError as error:
        raise _refused(wheel, _said(error.stderr)) from None
    return next(into.glob("*.whl"))


def _refused(wheel: Wheel, reason: str) -> ConfigError:
    return ConfigError(f"pip cannot fetch {wheel.name}=={wheel.version}:\n{reason}",
                       rule=f"a wheel for Python {PYTHON} on {PLATFORM} with sha256 {wheel.sha256}",
                       fix="check the network, or give a wheel folder: PIP_FIND_LINKS")


def _said(stderr: str) -> str:
    """The lines of pip that say what went wrong."""
    lines = [line for line in stderr.splitlines() if line.strip() and not line.startswith("WARNING: Location")]
    return "\n".join(lines[-6:])


def main(names: Sequence[str]) -> int:
    wheels = [wheel for wheel in read_lock() if not names or any(wheel.called(name) for name in names)]
    for wheel in wheels:
        print(unpack(wheel).relative_to(ROOT), flush=True)
    return 0 if wheels else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SiriError as error:
        sys.exit(str(error))
