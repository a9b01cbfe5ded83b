"""The bytes of data files, plain or compressed: .gz, .bz2, .xz and .zst as a stream, and the files inside a .zip.

    rows.jsonl.gz              is read as rows.jsonl
    rows.zip/2026/a.jsonl      a file in an archive has the archive's path, a slash and its name

Nothing is written to disk, whatever names an archive holds. Byte offsets are those of the unpacked bytes. A file that
unpacks to more than RATIO times its size, beyond FREE_BYTES, is refused: so small a file would fill the memory.
"""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, cast

import pyarrow as pa

from weitiao.core.errors import DataError

RATIO, FREE_BYTES = 200, 1 << 28  # text packs 3 to 30 times; what unpacks to less than 256 MB does no harm
BUFFER = 1 << 18
PACKED_ENDINGS = (".gz", ".bz2", ".xz", ".zst")
ZIP = b"PK\x03\x04"
NO_ROWS = ("__MACOSX/",)  # what macOS adds to an archive
DAMAGE = (EOFError, OSError, ValueError, RuntimeError, NotImplementedError, zlib.error, lzma.LZMAError, zipfile.BadZipFile,
          pa.ArrowException)  # fmt: skip
Unpacker = Callable[[BinaryIO], Any]
UNPACKERS: tuple[tuple[bytes, str, Unpacker], ...] = (
    (b"\x1f\x8b", "gzip", lambda packed: gzip.GzipFile(fileobj=packed)),
    (b"BZh", "bzip2", bz2.BZ2File),
    (b"\xfd7zXZ\x00", "xz", lzma.LZMAFile),
    (b"\x28\xb5\x2f\xfd", "zstd", lambda packed: pa.CompressedInputStream(packed, "zstd")),
)


def open_file(path: Path) -> BinaryIO:
    """The unpacked bytes of a file, as a stream to be closed.

    Raises:
        DataError: while it is read: the packed bytes are damaged, or unpack to far too much.
    """
    opened: Any = path.open("rb") if path.is_file() else _open_member(path)
    head = opened.peek(10)[:10]
    for magic, kind, unpack in UNPACKERS:
        if head.startswith(magic):
            return cast(BinaryIO, io.BufferedReader(_Unpacked(path, kind, unpack(opened), opened), BUFFER))
    return opened


def read_file(path: Path) -> bytes:
    """All unpacked bytes of a file."""
    with open_file(path) as opened:
        return opened.read()


def is_packed(path: Path) -> bool:
    """Whether a file's rows cannot be read from its own bytes: it is compressed, or lies in an archive."""
    if not path.is_file():
        return True
    with open(path, "rb") as opened:
        head = opened.read(10)
    return any(head.startswith(magic) for magic, _, _ in UNPACKERS)


def ending_of(path: Path) -> str:
    """The ending of a file's name in lower case, without that of a compression: .jsonl for ROWS.JSONL.GZ."""
    suffixes = [x.lower() for x in path.suffixes[-2:]]
    return (
        suffixes[-2] if suffixes[-1:] and suffixes[-1] in PACKED_ENDINGS and len(suffixes) > 1 else "".join(suffixes[-1:])
    )


def on_disk(path: Path) -> Path:
    """The file itself, or the archive that holds it.

    Raises:
        DataError: there is neither.
    """
    for position in (path, *path.parents):
        if position.is_file():
            return position
    raise DataError("data: there is no file {path}.", path=path)


def in_archive(path: Path) -> bool:
    """Whether a path leads into a zip file."""
    return not path.exists() and any(x.is_file() and is_archive(x) for x in path.parents)


def is_archive(path: Path) -> bool:
    """A zip file that is no document: workbooks and Word's files are zip files too."""
    with open(path, "rb") as opened:
        if opened.read(4) != ZIP:
            return False
    with _archive(path) as archive:
        return not {"[Content_Types].xml", "mimetype"} & set(archive.namelist())


def holds_rows(path: Path, endings: Collection[str]) -> bool:
    """Whether a file is an archive that holds a file with one of these endings."""
    if path.suffix.lower() != ".zip" or not path.is_file() or not is_archive(path):
        return False
    with _archive(path) as archive:
        return any(ending_of(Path(_name(x))) in endings for x in archive.infolist())


def office_folders(path: Path) -> set[str]:
    """The folders in a zip file, with a slash: word/ and xl/ tell what a document is."""
    try:
        with zipfile.ZipFile(io.BytesIO(read_file(path))) as archive:
            return {x.partition("/")[0] + "/" for x in archive.namelist() if "/" in x}
    except DAMAGE as error:
        raise _damaged(path, "zip", error) from None


def members(path: Path, endings: Collection[str]) -> list[Path]:
    """The files of an archive that a reader knows, in the order of their names.

    Raises:
        DataError: there are none, a name leads out of the archive, or the archive is damaged.
    """
    with _archive(path) as archive:
        names = sorted(_name(x) for x in archive.infolist() if not x.is_dir())
    for name in names:
        if name.startswith("/") or ".." in PurePosixPath(name).parts or ":" in name.split("/")[0]:
            raise DataError("data: {path} holds a file under the name {name!r}, which leads out of the archive.",
                            path=path, name=name)  # fmt: skip
    files = [path / x for x in names if not x.startswith(NO_ROWS) and not PurePosixPath(x).name.startswith(".")]
    files = [x for x in files if ending_of(x) in endings]
    if not files:
        visible = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        raise DataError("data: {path} holds no file with rows. It holds: {names}", path=path, names=visible or "-")
    return files


def refuse_large_parts(path: Path, whole: bytes) -> None:
    """Refuse a workbook or a Word file whose parts are damaged, or unpack to far too much, before a library opens it.

    The sizes that its directory tells may be wrong, so the parts are unpacked here, and counted.

    Raises:
        DataError: with the part.
    """
    total = 0
    try:
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            for part in archive.infolist():
                part.file_size = max(part.file_size, 1 << 40)  # unpack to the end, not to the size that is told
                with archive.open(part) as opened:
                    while block := opened.read(BUFFER):
                        total += len(block)
                        _check_ratio(path, total, len(whole))
    except DAMAGE as error:
        raise _damaged(path, "zip", error) from None


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a stream, counted; damage is an error that names the file."""

    def __init__(self, path: Path, kind: str, stream: Any, packed: BinaryIO | None = None) -> None:
        self.path, self.kind, self.stream, self.packed, self.num_bytes = path, kind, stream, packed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            block = self.stream.read(len(buffer))
        except DAMAGE as error:
            raise _damaged(self.path, self.kind, error) from None
        buffer[: len(block)] = block
        self.num_bytes += len(block)
        if self.packed is not None:
            _check_ratio(self.path, self.num_bytes, self.packed.tell())
        return len(block)

    def tell(self) -> int:
        return self.num_bytes

    def close(self) -> None:
        if not self.closed:
            self.stream.close()
            if self.packed is not None:
                self.packed.close()
        super().close()


def _check_ratio(path: Path, num_bytes: int, num_packed: int) -> None:
    if num_bytes > FREE_BYTES and num_bytes > RATIO * num_packed:
        raise DataError(
            "data: {path} unpacks to more than {ratio} times its size ({size} MB so far), as files do that are made to "
            "fill a disk. If it is yours, unpack it yourself.",
            path=path,
            ratio=RATIO,
            size=num_bytes >> 20,
        )


def _damaged(path: Path, kind: str, error: BaseException) -> DataError:
    if isinstance(error, RuntimeError) and "encrypted" in str(error):
        return DataError("data: {path} is encrypted: unpack it with its password first.", path=path)
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return DataError("data: {path}: its {kind} data are damaged ({error}). Copy or download the file again.",
                     path=path, kind=kind, error=reason[:160])  # fmt: skip


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except DAMAGE as error:
        raise _damaged(path, "zip", error) from None


def _open_member(path: Path) -> BinaryIO:
    """A file inside an archive."""
    position = on_disk(path)
    name = path.relative_to(position).as_posix()
    with _archive(position) as archive:  # an opened member keeps the file open
        info = next((x for x in archive.infolist() if _name(x) == name), None)
        if info is None:
            raise DataError("data: there is no file {path}.", path=path)
        _check_ratio(path, info.file_size, info.compress_size)
        try:
            member: IO[bytes] = archive.open(info)
        except DAMAGE as error:
            raise _damaged(position, "zip", error) from None
    return cast(BinaryIO, io.BufferedReader(_Unpacked(path, "zip", member), BUFFER))


def _name(info: zipfile.ZipInfo) -> str:
    """A file's name; archives made by Chinese Windows write it in GBK, and say nothing of it."""
    name = info.filename.replace("\\", "/")
    if info.flag_bits & 0x800 or name.isascii():
        return name
    try:
        raw = name.encode("cp437")
    except UnicodeEncodeError:
        return name
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return name
