"""What says that a model is the same one as before, so that what it answered need not be computed again."""

import hashlib
import json

from weitiao.pipeline.inference import Model
from weitiao.pipeline.trained import read_trained


def model_identity(model: Model, target: str) -> str:
    """Changes when its weights, its tokenizer, its chat template or its system message do."""
    trained, assets = read_trained(target), model.assets
    parts = [model.model.base_identity.exact, trained.identity if trained else "", assets.identity, assets.system]
    return hashed(json.dumps(parts))


def hashed(text: str) -> str:
    """Sixteen hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
