"""Regularizers on token embeddings scale with a token's row, so they must know which row it belongs to."""

from weitiao.core.messages import Message
from weitiao.core.objective import Objective


def no_token_to_row_map(objective: Objective) -> Message:
    """Why the row of an embedded token is not known; empty: it is."""
    if objective.traits.needs_encoder_decoder:
        return Message("encoder and decoder have separate embeddings, and the map from tokens to rows is not known there")
    if objective.traits.repacks_segments:
        return Message(
            "objective {name} repacks the texts of its rows, so the token-to-row map is lost", name=objective.name
        )
    return Message("")
