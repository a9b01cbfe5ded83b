"""P-tuning (v1): soft tokens before every row, produced by a small network that lets them depend on one another.

Liu et al. 2021, "GPT Understands, Too", arXiv 2103.10385, sec. 3.3, eq. 5-7:

    e [P, D] --> BiLSTM --> Linear, ReLU, Linear --> p [P, D]  --> before the row's embeddings
                 (or the MLP only)

After training only the finished p is needed; that is what the PEFT export holds. The checkpoint keeps the network.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from weitiao.core.messages import Message
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.virtual_tokens import add_virtual_tokens, prompt_as_peft, random_token_ids
from weitiao.model.layers.shape_trace import moved


class PTuning(Method):
    """Train soft tokens through a small prompt encoder."""

    learning_rate: ClassVar[float] = 1e-3
    learning_rate_reason: ClassVar[Message] = Message("the encoder is made of matrices; 1e-3 suits small networks")
    starts_at_base: ClassVar[bool] = False
    encoder_decoder: ClassVar[bool] = False

    num_virtual_tokens: int = Field(default=16, ge=1)
    """Number P of soft tokens."""
    encoder: Literal["lstm", "mlp"] = "lstm"
    """The network that produces them: a bidirectional LSTM followed by an MLP, or the MLP only."""
    encoder_hidden_size: int = Field(default=128, ge=1)
    """Hidden width of the network."""

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Add virtual tokens whose embeddings come from a prompt encoder."""
        embedding: Any = model.get_input_embeddings()
        device = embedding.weight.device
        ids = random_token_ids(embedding.num_embeddings, self.num_virtual_tokens).to(device)
        encoder = PromptEncoder(embedding(ids).detach().float(), self.encoder_hidden_size, self.encoder == "lstm")
        moved(encoder, device)
        virtual_tokens = add_virtual_tokens(model, self.num_virtual_tokens, lambda: encoder())
        model.add_module("prompt_encoder", encoder)
        return Attachment(
            trainable={f"prompt_encoder.{name}" for name, _ in encoder.named_parameters()},
            virtual_tokens=lambda: virtual_tokens.ids,
            set_enabled=virtual_tokens.set_enabled,
            as_peft=lambda: prompt_as_peft(model, encoder()),
        )


class PromptEncoder(nn.Module):
    """() -> soft tokens [P, D]: an embedding plus the network's output for it (a residual, so they start near tokens)."""

    def __init__(self, initial: Tensor, hidden_size: int, lstm: bool) -> None:
        super().__init__()
        width = initial.shape[1]
        self.embedding = nn.Parameter(initial.clone())
        self.lstm = nn.LSTM(width, hidden_size, num_layers=2, bidirectional=True, batch_first=True) if lstm else None
        mlp_width = 2 * hidden_size if lstm else width
        self.mlp = nn.Sequential(nn.Linear(mlp_width, 2 * hidden_size), nn.ReLU(), nn.Linear(2 * hidden_size, width))

    def forward(self) -> Tensor:
        with torch.autocast(self.embedding.device.type, enabled=False):
            x = self.embedding[None] if self.lstm is None else self.lstm(self.embedding[None])[0]
            return self.embedding + self.mlp(x)[0]
