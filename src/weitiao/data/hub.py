"""Data sets of Hugging Face and ModelScope by id: their Parquet files, downloaded once, checked and pinned.

    data: hf:owner/name                                         the split train, in the revision that is newest now
    data: {path: hf:owner/name, subset: zh, split: test, revision: 4f1a2b...}
    data: modelscope:owner/name

The hub's own library downloads (and goes on where it was cut off); here each file's sha256 is compared with the one that
the hub tells. What was downloaded is recorded beside it, so the same files are read again without any request, whatever
the hub has by then. On Hugging Face, files come from the branch refs/convert/parquet, which the hub makes of every
public data set, or with `revision`, from that revision.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from weitiao.core.errors import DataError
from weitiao.core.files import file_sha256, home, write_text
from weitiao.core.hardware import needs
from weitiao.core.messages import Message
from weitiao.core.recipe_sections import Source

HUGGING_FACE, MODELSCOPE = "hf:", "modelscope:"
CONVERTED = "refs/convert/parquet"
ID = re.compile(r"[\w.-]+/[\w.-]+")
NUMBERED = re.compile(r"(.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?")  # train-00000-of-00002
SPLITS = ("train", "validation", "valid", "dev", "test")
PARTIAL = "partial-"  # a folder of refs/convert/parquet that holds the first 5 GB


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set, as the hub lists it."""

    path: str
    size: int
    sha256: str
    """"": the hub tells none (small files outside its large-file storage)."""


@dataclass(frozen=True)
class PinnedDataset:
    """A split of a data set on this disk."""

    id: str
    revision: str
    """Hugging Face: the commit. ModelScope: the branch or tag; its files are pinned by their sha256."""
    subset: str
    split: str
    files: tuple[dict[str, Any], ...]
    """Of each: the path on the hub, that on this disk, its size and sha256."""

    @property
    def reason(self) -> Message:
        """What the Run records."""
        return Message(
            "{id}, subset {subset}, split {split}: {n} Parquet files, {size:,} bytes, sha256 checked",
            id=self.id,
            subset=self.subset,
            split=self.split,
            n=len(self.files),
            size=sum(x["size"] for x in self.files),
        )


def is_hub_id(path: str) -> bool:
    """Whether a source names a data set of a hub."""
    return path.startswith((HUGGING_FACE, MODELSCOPE))


def dataset_files(source: Source) -> list[Path]:
    """The Parquet files of a source on this disk."""
    return [Path(x["local"]) for x in pinned_dataset(source).files]


def pinned_dataset(source: Source) -> PinnedDataset:
    """The data set of a source; downloaded if it is not on this disk.

    Raises:
        DataError: there is no such data set, subset or split; it needs a token; the network fails; a file is damaged.
    """
    hub, _, name = source.path.partition(":")
    if not ID.fullmatch(name):
        raise DataError("data: {path} names no data set; write {hub}:owner/name.", path=source.path, hub=hub)
    key = [source.revision or "newest", source.subset or "default", source.split]
    record = home() / "datasets" / hub / name.replace("/", "--") / ("--".join(x.replace("/", "_") for x in key) + ".json")
    if record.exists():
        known = json.loads(record.read_text(encoding="utf-8"))
        pinned = PinnedDataset(**{**known, "files": tuple(known["files"])})
        if all(Path(x["local"]).is_file() and Path(x["local"]).stat().st_size == x["size"] for x in pinned.files):
            return pinned
    pinned = (_from_hugging_face if hub == "hf" else _from_modelscope)(source, name)
    record.parent.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(asdict(pinned), indent=1))
    return pinned


def _from_hugging_face(source: Source, name: str) -> PinnedDataset:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    api, path = HfApi(), source.path
    try:
        try:
            revision = source.revision or CONVERTED
            listed = api.dataset_info(name, revision=revision, files_metadata=True)
        except RevisionNotFoundError:
            if source.revision:
                raise
            listed = api.dataset_info(name, files_metadata=True)  # not converted: perhaps it is Parquet already
    except GatedRepoError:
        raise DataError(
            "data: {path} is gated: accept its terms on its page, and log in with: hf auth login", path=path
        ) from None
    except RepositoryNotFoundError:
        raise DataError(
            "data: there is no data set {path}, or it is private: then log in with: hf auth login", path=path
        ) from None
    except RevisionNotFoundError:
        raise DataError("data: {path} has no revision {revision}.", path=path, revision=source.revision) from None
    except Exception as error:  # the network, a proxy, a server: whatever it is, the user needs one sentence
        raise _unreachable(path, error) from None
    remote = [RemoteFile(x.rfilename, x.size or 0, x.lfs.sha256 if x.lfs else "") for x in listed.siblings or ()]
    commit = listed.sha or ""
    subset, chosen = choose(remote, source)

    def download(file: RemoteFile) -> Path:
        return Path(hf_hub_download(name, file.path, repo_type="dataset", revision=commit))

    return PinnedDataset(path, commit, subset, source.split, _downloaded(path, chosen, download))


def _from_modelscope(source: Source, name: str) -> PinnedDataset:
    needs("modelscope_hub", "modelscope", "A modelscope: data set")
    from modelscope_hub import HubApi
    from modelscope_hub.errors import (
        AuthenticationError,
        NotExistError,
        PermissionDeniedError,
    )

    api, path, revision = HubApi(), source.path, source.revision or "master"
    try:
        listed = api.list_repo_files(name, "dataset", revision=revision)
    except NotExistError:
        raise DataError(
            "data: there is no data set {path} with the revision {revision}.", path=path, revision=revision
        ) from None
    except (AuthenticationError, PermissionDeniedError):
        raise DataError("data: {path} is private: log in with: modelscope login", path=path) from None
    except Exception as error:  # the library raises many types; the user needs one sentence
        raise _unreachable(path, error) from None
    remote = [RemoteFile(x.path, x.size, x.sha256 or "") for x in listed if x.type != "tree"]
    subset, chosen = choose(remote, source)

    def download(file: RemoteFile) -> Path:
        return Path(api.download_file(name, "dataset", file.path, revision=revision))

    return PinnedDataset(path, revision, subset, source.split, _downloaded(path, chosen, download))


def choose(remote: Sequence[RemoteFile], source: Source) -> tuple[str, list[RemoteFile]]:
    """The subset and the Parquet files of its split, in the order of their names.

    Raises:
        DataError: there are none; what there is.
    """
    by_part: dict[tuple[str, str], list[RemoteFile]] = {}
    for file in sorted(remote, key=lambda x: x.path):
        if file.path.lower().endswith(".parquet"):
            by_part.setdefault(_part_of(file.path), []).append(file)
    if not by_part:
        raise DataError(
            "data: {path} has no Parquet files; it has: {names}. Download it, and give the path of its files.",
            path=source.path,
            names=", ".join(x.path for x in remote[:6]) + (" ..." if len(remote) > 6 else "") or "-",
        )
    subsets = sorted({subset for subset, _ in by_part})
    subset = source.subset or ("default" if "default" in subsets or len(subsets) > 1 else subsets[0])
    if subset not in subsets:
        raise DataError("data: {path} has the subsets {known}: name one with subset.", path=source.path,
                        known=", ".join(subsets))  # fmt: skip
    if (subset, source.split) not in by_part:
        splits = sorted(split for part, split in by_part if part == subset)
        raise DataError(
            "data: {path}, subset {subset}, has no split {split}; it has: {known}.",
            path=source.path,
            subset=subset,
            split=source.split,
            known=", ".join(splits),
        )
    return subset, by_part[subset, source.split]


def _part_of(path: str) -> tuple[str, str]:
    """(subset, split) of a Parquet file, in the two layouts of the hub: subset/split/0000.parquet, and
    subset/split-00000-of-00002.parquet, where the subset may be missing or called `data`."""
    *folders, name = PurePosixPath(path).with_suffix("").parts
    if name.isdecimal() and folders:
        split, folders = folders[-1].removeprefix(PARTIAL), folders[:-1]
    elif match := NUMBERED.fullmatch(name):
        split = match[1]
    elif name in SPLITS:
        split = name
    elif folders and folders[-1] in SPLITS:
        split, folders = folders[-1], folders[:-1]
    else:
        split = "train"
    subset = "/".join(x for x in folders if x != "data")
    return subset or "default", split


def _downloaded(
    path: str, files: Sequence[RemoteFile], download: Callable[[RemoteFile], Path]
) -> tuple[dict[str, Any], ...]:
    """Download the files and compare their size and sha256 with what the hub tells.

    Raises:
        DataError: the network fails, or a file is not what the hub lists.
    """
    downloaded = []
    for file in files:
        try:
            local = download(file)
        except Exception as error:  # as above
            raise DataError(
                "data: {file} of {path} could not be downloaded: {error}. Run again: it goes on where it stopped.",
                file=file.path,
                path=path,
                error=_sentence(error),
            ) from None
        sha256 = file_sha256(local)
        if local.stat().st_size != file.size or (file.sha256 and sha256 != file.sha256):
            local.resolve().unlink()
            local.unlink(missing_ok=True)
            raise DataError(
                "data: {file} of {path} was damaged on its way (sha256 {got}, expected {expected}), and is deleted. Run "
                "again.",
                file=file.path,
                path=path,
                got=sha256[:12],
                expected=file.sha256[:12] or f"{file.size} bytes",
            )
        downloaded.append({"path": file.path, "local": str(local), "size": file.size, "sha256": sha256})
    return tuple(downloaded)


def _unreachable(path: str, error: Exception) -> DataError:
    return DataError("data: {id} is not on this disk and cannot be read: {error}", id=path, error=_sentence(error))


def _sentence(error: Exception) -> str:
    text = next((x.strip() for x in str(error).splitlines() if x.strip()), "") or type(error).__name__
    return text[:160]
