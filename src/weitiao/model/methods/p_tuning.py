"""P-tuning (v1): soft tokens before every row, made by a small network that lets them depend on one another.

Liu et al. 2021, "GPT Understands, Too", arXiv 2103.10385, sec. 3.3, eq. 5-7:

    e [P, D] --> BiLSTM --> Linear, ReLU, Linear --> p [P, D]  --> before the row's embeddings
                 (or an MLP alone)

Only the finished p is needed afterwards: that is what is exported. The network is trained with it and kept in the State.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.virtual_tokens import add_virtual_tokens, prompt_as_peft, some_words


class PTuning(Method):
    """Learn soft tokens through a small prompt encoder."""

    learning_rate: ClassVar[float] = 1e-3
    learning_rate_reason: ClassVar[str] = "the encoder's matrices learn at usual rates; 1e-3 suits small networks"
    starts_at_base: ClassVar[bool] = False
    encoder_decoder: ClassVar[bool] = False

    num_virtual_tokens: int = Field(default=16, ge=1)
    """Soft tokens P."""
    encoder: Literal["lstm", "mlp"] = "lstm"
    """The network that makes them: a bidirectional LSTM with an MLP behind it, or the MLP alone."""
    encoder_hidden_size: int = Field(default=128, ge=1)
    """Width inside the network."""

    def attach(self, model: nn.Module) -> Attachment:
        """The prompt encoder fills slots before every row."""
        embedding: Any = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        weight = embedding.weight
        ids = some_words(embedding.num_embeddings, self.num_virtual_tokens).to(weight.device)
        encoder = PromptEncoder(embedding(ids).detach().float(), self.encoder_hidden_size, self.encoder == "lstm").to(
            weight.device
        )
        virtual_tokens = add_virtual_tokens(model, self.num_virtual_tokens, lambda: encoder())
        model.add_module("prompt_encoder", encoder)
        return Attachment(
            trainable={f"prompt_encoder.{name}" for name, _ in encoder.named_parameters()},
            virtual_tokens=lambda: virtual_tokens.ids,
            set_enabled=virtual_tokens.set_enabled,
            as_peft=lambda: prompt_as_peft(model, encoder()),
        )


class PromptEncoder(nn.Module):
    """() -> the soft tokens [P, D]: where they started, and what the network adds."""

    def __init__(self, start: Tensor, hidden: int, lstm: bool) -> None:
        super().__init__()
        width = start.shape[1]
        self.embedding = nn.Parameter(start.clone())
        self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True) if lstm else None
        inside = 2 * hidden if lstm else width
        self.mlp = nn.Sequential(nn.Linear(inside, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))

    def forward(self) -> Tensor:
        with torch.autocast(self.embedding.device.type, enabled=False):
            x = self.embedding[None] if self.lstm is None else self.lstm(self.embedding[None])[0]
            return self.embedding + self.mlp(x)[0]
