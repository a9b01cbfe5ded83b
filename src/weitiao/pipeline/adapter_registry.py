"""The adapters of a base model by name: opened and checked, added and removed while the model is used.

    folder  -->  same base? own stop tokens? low-rank?  -->  tensors into a slot (AdapterPool)  -->  does it change logits?

A plain LoRA's tensors go from its file straight into the slot. Every other low-rank method is attached to the base for a
moment and taken off again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from weitiao.core.batch import Row, pack
from weitiao.core.errors import DataError, ModelError
from weitiao.core.example import Text
from weitiao.core.files import file_sha256
from weitiao.core.trainable_model import TrainableModel
from weitiao.model.adapters.adapter_pool import AdapterPool
from weitiao.model.adapters.adapter_weights import (
    LowRankAdapter,
    cannot_share,
    detach,
    is_plain_lora,
    read_low_rank,
    restore_base_layers,
    shares_base,
)
from weitiao.model.adapters.module_replacement import linear_names, shape_of
from weitiao.model.loading.load import Base
from weitiao.pipeline.load import BaseAssets, apply_adapter, open_base_assets, open_trained_assets, with_overlong
from weitiao.pipeline.trained import TrainedRun, check_unchanged, read_trained

PROBE_LENGTH = 8  # tokens
CLOCK = ("strftime", "date", "now")  # of these, a chat template that writes today's date mentions one


@dataclass(frozen=True)
class OpenedAdapter:
    """An adapter before its weights are read."""

    trained: TrainedRun
    assets: BaseAssets
    """The tokenizer and template it was trained with; adapters with the same ones share them."""


class AdapterOpener:
    """Opens adapters of one base model. What many of them have in common is loaded once."""

    def __init__(self, target: str, assets: BaseAssets, overlong: str = "auto") -> None:
        """
        Args:
            target: the base model, as the user names it.
            overlong: as of `with_overlong`.
        """
        self.target, self.assets, self.overlong = target, assets, overlong
        self._opened: dict[tuple, tuple[BaseAssets, bool]] = {}

    def open(self, folder: str) -> OpenedAdapter:
        """
        Raises:
            ModelError: it is not an adapter of this base, or is more than a low-rank change of its linear layers.
            RunError: it has no result yet, or its base was trained again since.
        """
        trained = read_trained(folder)
        if trained is None:
            raise ModelError("{target} is neither a run nor an adapter in PEFT's format.", target=folder)
        if not shares_base(trained.method):
            raise cannot_share(str(trained.folder))
        if trained.objective.heads(1) or trained.objective.traits.needs_mlm_head:
            raise ModelError(
                "{adapter} has a head of its own (objective {objective}), so it cannot share batches with other adapters. "
                "Load it alone.",
                adapter=trained.folder,
                objective=trained.objective.name,
            )
        refuse_new_tokens(trained)
        assets, same_base = self._assets_of(trained)
        check_unchanged(trained, assets.base_chain, assets.folder)
        if not same_base:
            raise ModelError(
                "{adapter} was trained on {base}, not on {target}. Name {base} instead.",
                adapter=trained.folder,
                base=trained.base,
                target=self.target,
            )
        return OpenedAdapter(trained, assets)

    def _assets_of(self, trained: TrainedRun) -> tuple[BaseAssets, bool]:
        """What `open_trained_assets` gives, and whether its base is this one."""
        recipe, date, template = trained.recipe, trained.recorded("date"), trained.template
        literal = recipe is None or not all(x.parse_special_tokens for x in recipe.data)
        own = Path(template).read_text(encoding="utf-8") if template and Path(template).is_file() else template
        written = own or str(getattr(self.assets.tokenizer, "chat_template", "") or "")
        key = (trained.base, trained.revision, own, date if any(x in written for x in CLOCK) else None, literal)
        if key not in self._opened:
            assets = open_base_assets(trained.base, trained.revision, template, date, not literal)
            self._opened[key] = assets, share_base(self.assets, assets)
        assets, same_base = self._opened[key]
        continues_text = assets.continues_text or trained.objective.traits.example_type is Text
        system = trained.recorded("system") or ""
        own = {"system": system, "continues_text": continues_text, "history_tokens": trained.history_tokens}
        if any(getattr(assets, key) != value for key, value in own.items()):
            assets = replace(assets, **own)
        return with_overlong(assets, self.overlong), same_base


class AdapterRegistry:
    """The adapters that a base model can use, by name."""

    def __init__(self, opener: AdapterOpener, model: TrainableModel, first: str = "") -> None:
        """
        Args:
            model: the base model; from now on it takes an adapter for each row.
            first: the adapter whose stop tokens the model has; "": it has the base's.
        """
        self.first = first
        self.opener, self.model, self.pool = opener, model, AdapterPool(model.model)
        self.assets: dict[str, BaseAssets] = {}
        """The tokenizer and template of each adapter."""
        self._shapes: dict[str | tuple[str, ...], dict[str, tuple[int, int]]] = {}
        model.attachment = self.pool.attachment()

    def add(self, name: str, opened: OpenedAdapter, on_demand: bool = False) -> None:
        """Add an adapter, or replace the one of this name; where that fails, everything stays as it was.

        Args:
            on_demand: only list it; its weights are read when a batch first names it.

        Raises:
            ModelError: it has other stop tokens, its weights do not fit, or it changes nothing.
        """
        if not name:
            raise DataError("an adapter's name is empty; an empty name means the base model.")
        if opened.assets.processor.stop_ids != self.model.processor.stop_ids:
            raise ModelError(
                "{adapter} ends its answers with other stop tokens than {first}: load one at a time.",
                adapter=opened.trained.folder,
                first=self.first or self.opener.target,
            )
        read = self._reader(name, str(opened.trained.folder))
        if on_demand:
            self.pool.register(name, read)
        else:
            candidate = f"\0{name}"  # no name that a user can write
            self.pool.add(candidate, self._read(name, opened), read)
            try:
                self._check_effect(name, candidate)
            except BaseException:
                self.pool.remove(candidate)
                raise
            self.pool.rename(candidate, name)
        self.assets[name] = opened.assets

    def remove(self, name: str) -> None:
        """
        Raises:
            ModelError: there is no such adapter.
        """
        if name not in self.assets:
            raise ModelError(
                "there is no adapter called {name!r}; there are: {adapters}", name=name, adapters=", ".join(self.assets)
            )
        self.pool.remove(name)
        del self.assets[name]

    def _reader(self, name: str, folder: str) -> Callable[[], LowRankAdapter]:
        return lambda: self._read(name, self.opener.open(folder))

    def _read(self, name: str, opened: OpenedAdapter) -> LowRankAdapter:
        """The weights of an adapter.

        Raises:
            ModelError, RunError: they are missing, damaged, of another shape, not finite, or change nothing.
        """
        trained, method = opened.trained, opened.trained.method
        if is_plain_lora(method):
            adapter = read_low_rank(trained.weights, method, self._shapes_of(method.target_modules), trained.recipe is None)
        else:
            adapter = LowRankAdapter.of_layers(self._taken_off(opened))
        adapter.check(name)
        return adapter

    def _shapes_of(self, targets: str | tuple[str, ...]) -> dict[str, tuple[int, int]]:
        if targets not in self._shapes:
            with self.pool.unmounted():
                model = self.model.model
                self._shapes[targets] = {x: shape_of(model.get_submodule(x)) for x in linear_names(model, targets)}
        return self._shapes[targets]

    def _taken_off(self, opened: OpenedAdapter) -> dict:
        """The layers of an adapter after its method was attached to the base, filled and detached."""
        model = self.model
        base = Base(model.model, model.architecture, model.backbone, model.lm_head, [], 0, opened.assets.folder)
        with self.pool.unmounted():
            try:
                filled = apply_adapter(base, opened.trained, opened.assets.processor)
                return detach(model.model, filled.attachment, opened.trained.method, str(opened.trained.folder))
            finally:
                restore_base_layers(model.model)
                model.model.requires_grad_(False)

    @torch.no_grad()
    def _check_effect(self, name: str, candidate: str) -> None:
        """
        Raises:
            ModelError: the logits of a probe are those of the base model, bit for bit.
        """
        if self.model.architecture.kind != "decoder":
            return
        embeddings: Any = self.model.model.get_input_embeddings()
        size = len(embeddings.weight)
        ids = [(k + 1) * size // (PROBE_LENGTH + 2) for k in range(PROBE_LENGTH)]
        row: Row = {"input_ids": ids, "labels": ids}
        changed, base = (self.model.logits(pack([row], range(1), (x,)).to(self.model.device)) for x in (candidate, ""))
        if torch.equal(changed, base):
            raise ModelError(
                "{name} changes nothing: with it, the logits of a probe are those of the base model, bit for bit. Was it "
                "trained on this base, and long enough for {dtype}?",
                name=name,
                dtype=str(next(self.model.model.parameters()).dtype).removeprefix("torch."),
            )
        if not bool(changed.isfinite().all()):
            raise ModelError(
                "{name} makes the model's logits infinite or NaN on a probe. Was its training stable?", name=name
            )


def read_on_one_base(targets: Sequence[str]) -> list[tuple[TrainedRun, BaseAssets]]:
    """Several trained results that share a base model, each with its tokenizer and template.

    Raises:
        ModelError: one is not a run or an adapter, or their base models differ.
    """
    results: list[tuple[TrainedRun, BaseAssets]] = []
    for target in targets:
        trained = read_trained(target)
        if trained is None:
            raise ModelError("{target} is neither a run nor an adapter in PEFT's format.", target=target)
        refuse_new_tokens(trained)
        assets = open_trained_assets(trained)
        check_unchanged(trained, assets.base_chain, assets.folder)
        results.append((trained, assets))
        if not share_base(assets, results[0][1]):
            raise ModelError(
                "cannot combine {one} (base {base_of_one}) with {other} (base {base_of_other}): "
                "adapters must share one base model.",
                one=target,
                base_of_one=trained.base,
                other=targets[0],
                base_of_other=results[0][0].base,
            )
    return results


def refuse_new_tokens(trained: TrainedRun) -> None:
    """Adapters on one base have one vocabulary.

    Raises:
        ModelError: this one has new tokens.
    """
    if trained.extension is not None:
        raise ModelError(
            "{adapter} has new tokens (vocabulary), so it shares a base with no other: load it alone, or merge it and take "
            "the merged folder as a base",
            adapter=trained.folder,
        )


def share_base(one: BaseAssets, other: BaseAssets) -> bool:
    """The same base weights, with the same results merged into them, and the same vocabulary."""
    stacks = [[x.identity for x in assets.base_chain] for assets in (one, other)]
    if stacks[0] != stacks[1]:
        return False
    same_folder = one.folder.samefile(other.folder)
    return same_folder or (
        _checksums(one) == _checksums(other) and one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    )


def _checksums(assets: BaseAssets) -> list[str]:
    return [file_sha256(x) for x in sorted(assets.folder.glob("*.safetensors"))]
