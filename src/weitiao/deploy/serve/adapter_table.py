"""Which names a server answers to, and which adapters are in memory.

    resident      named on the command line                    always loaded
    of a folder   --adapters-dir, loaded when first asked for   at most max_cpu_loras; the longest unused one goes first

A name that a client sends is looked up in a table that the server made; it never becomes a part of a path.
"""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from weitiao.core.messages import Message
from weitiao.deploy.serve.api_errors import ApiError, busy
from weitiao.deploy.serve.limits import NAME
from weitiao.deploy.serve.served_model import AdapterSource

REFRESH = 2.0  # seconds between two looks at the folder for a name that is not there


class AdapterTable:
    """The names of a server's models."""

    def __init__(self, base: str, source: AdapterSource, max_cpu_loras: int = 32) -> None:
        """Args:
        max_cpu_loras: of the folder's adapters, how many are in memory at once.
        """
        self.base, self.source, self.max_cpu_loras = base, source, max_cpu_loras
        self._folder: dict[str, str] = {}
        self._looked = float("-inf")
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._in_use: Counter[str] = Counter()
        self._lock = threading.Lock()
        if source.list_folder is not None:
            self._look()

    # -- names --------------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Every name that may be asked for."""
        self._look_now_and_then()
        return list(dict.fromkeys((*self.source.resident, self.base, *self._folder)))

    def resolve(self, model: str) -> str:
        """The adapter of a name; "" is the base model.

        Raises:
            ApiError: 404, there is none.
        """
        if model == self.base:
            return ""
        if model in self.source.resident or model in self._folder:
            return model
        self._look_now_and_then()
        if model in self._folder:
            return model
        raise ApiError(404, Message("there is no such model here; GET /v1/models lists them"), "model_not_found", "model")

    def loaded(self) -> list[str]:
        """Adapters in memory."""
        with self._lock:
            return [*self.source.resident, *self._loaded]

    def _look_now_and_then(self) -> None:
        if self.source.list_folder is not None and time.monotonic() - self._looked > REFRESH:
            self._look()

    def _look(self) -> None:
        assert self.source.list_folder is not None
        taken = {self.base, *self.source.resident}
        found_folders = self.source.list_folder()
        self._folder = {x: folder for x, folder in found_folders.items() if NAME.fullmatch(x) and x not in taken}
        self._looked = time.monotonic()

    # -- memory: on the model's thread, but for `release` -------------------------------------------------------------

    def needs_lease(self, adapter: str) -> bool:
        """Whether it is one of the folder's, which may be out of memory."""
        return bool(adapter) and adapter not in self.source.resident

    def use(self, adapter: str) -> None:
        """Load it if it is not, and keep it until `release`.

        Raises:
            ApiError: 429, all that may be in memory are in use.
            WeitiaoError: it does not fit the base.
        """
        with self._lock:
            self._in_use[adapter] += 1
        try:
            if adapter in self._loaded:
                self._loaded.move_to_end(adapter)
                return
            self._make_room()
            assert self.source.load is not None
            self.source.load(adapter, self._folder[adapter])
            with self._lock:
                self._loaded[adapter] = None
        except BaseException:
            self.release(adapter)
            raise

    def release(self, adapter: str) -> None:
        """It may leave memory again."""
        with self._lock:
            self._in_use[adapter] -= 1

    def load(self, adapter: str) -> None:
        """Load one before it is asked for."""
        if adapter in self.source.resident:
            return
        self.use(adapter)
        self.release(adapter)

    def unload(self, adapter: str) -> None:
        """Take one of the folder's out of memory.

        Raises:
            ApiError: 409, it is in use or always loaded; 404, it is not in memory.
        """
        if adapter in self.source.resident or not adapter:
            raise ApiError(409, Message("this model was named on the command line and stays"), "not_unloadable")
        if adapter not in self._loaded:
            raise ApiError(404, Message("this adapter is not in memory"), "adapter_not_loaded")
        if self._in_use[adapter]:
            raise ApiError(409, Message("this adapter is answering; try again"), "adapter_in_use")
        self._remove(adapter)

    def _make_room(self) -> None:
        while len(self._loaded) >= self.max_cpu_loras:
            idle = next((x for x in self._loaded if not self._in_use[x]), None)
            if idle is None:
                raise busy("{n} adapters are in memory (max_cpu_loras), and all are in use: try again", n=len(self._loaded))
            self._remove(idle)

    def _remove(self, adapter: str) -> None:
        assert self.source.unload is not None
        self.source.unload(adapter)
        with self._lock:
            del self._loaded[adapter]

    @contextmanager
    def releasing(self, adapter: str) -> Iterator[None]:
        """Afterwards, what `use` kept may leave memory."""
        try:
            yield
        finally:
            self.release(adapter)
