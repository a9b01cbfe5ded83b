"""What techniques with fewer bits share: every linear layer rounded, in the format of compressed-tensors."""

from torch import Tensor

from weitiao.core.compressor import Compression, LinearLayer, Subject
from weitiao.core.errors import InvalidValue, ModelError
from weitiao.core.quantization import QuantizationScheme, as_tensors, quantization_config, quantize

POOLERS = "re:.*pooler.*"  # an encoder's, which AutoModel adds although no file has it


def rounded_to_nearest(subject: Subject, scheme: QuantizationScheme) -> Compression:
    """Every linear layer of the model in this scheme.

    Raises:
        ModelError: its layers are no nn.Linear, or cannot be divided into groups.
    """
    refuse_transposed(subject)
    check_groups(subject, scheme)

    def change(name: str, tensor: Tensor) -> dict[str, Tensor]:
        layer = subject.linears.get(name)
        if layer is None:
            return {name: tensor}
        try:
            return as_tensors(name.removesuffix(".weight"), quantize(tensor, scheme, subject.dtype), scheme)
        except InvalidValue as error:
            raise ModelError("{name}: {reason}", name=layer.name, reason=error.message) from None

    ignore = [*subject.others, *([POOLERS] if subject.architecture.kind == "encoder" else [])]
    config = quantization_config(scheme, ignore)
    if not scheme.symmetric:  # compressed-tensors 0.20 opens packed zero points in transformers only so
        config["dequantize"] = True
    return Compression(change, {"quantization_config": config})


def refuse_transposed(subject: Subject) -> None:
    """Formats with fewer bits know nn.Linear only.

    Raises:
        ModelError: the model has Conv1D layers.
    """
    transposed: list[LinearLayer] = [x for x in subject.linears.values() if x.transposed]
    if transposed:
        raise ModelError(
            "{family} has its weights in Conv1D layers ({name}), which readers of quantized files do not know. Export it "
            "as GGUF, or prune it",
            family=subject.architecture.model_type,
            name=transposed[0].name,
        )


def check_groups(subject: Subject, scheme: QuantizationScheme) -> None:
    """Whether the inputs of every layer can be divided into groups; before anything is written.

    Raises:
        ModelError: one cannot.
    """
    for layer in subject.linears.values():
        if scheme.group_size and layer.shape[1] % scheme.group_size:
            fitting = [x for x in (32, 64, 128) if all(y.shape[1] % x == 0 for y in subject.linears.values())]
            raise ModelError(
                "{name} has {columns:,} inputs, which cannot be divided into groups of {group}. Take --method int4 with "
                "group_size={sizes}, or --method int8",
                name=layer.name,
                columns=layer.shape[1],
                group=scheme.group_size,
                sizes="|".join(map(str, fitting)) or "-",
            )
