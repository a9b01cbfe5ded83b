"""The routes about the server itself: its models, its adapters, its health and its counters."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from weitiao.core.messages import Message
from weitiao.deploy.serve.api_errors import ApiError
from weitiao.deploy.serve.completion_schema import Body
from weitiao.deploy.serve.served_model import ROUTES
from weitiao.deploy.serve.service import Service


class AdapterRequest(Body):
    """An adapter of --adapters-dir, by its name."""

    lora_name: str
    lora_path: None = None
    """vLLM's; a path is never taken from a request."""


def listing_routes(service: Service) -> APIRouter:
    """Models, adapters, health, metrics."""
    router = APIRouter()

    @router.get("/health")
    def health() -> Any:
        """Whether the model's thread works; the one route without a key."""
        healthy = service.thread.is_healthy
        return JSONResponse({"status": "ok" if healthy else "failing"}, 200 if healthy else 503)

    @router.get("/ready")
    def ready() -> Any:
        """Whether a request would be answered now."""
        load = service.thread.load
        full = service.thread.num_open >= load.slots + service.limits.max_queue
        is_ready = service.thread.is_healthy and not full
        facts = {"running": load.running, "waiting": load.waiting, "slots": load.slots}
        return JSONResponse({"ready": is_ready, **facts}, 200 if is_ready else 503)

    @router.get("/metrics")
    def metrics() -> Response:
        """Counters for Prometheus."""
        service.update_gauges()
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/v1/models")
    def models() -> Any:
        """Every name that `model` may be."""
        return {"object": "list", "data": [_model(service, name) for name in service.table.names()]}

    @router.get("/v1/models/{name}")
    def model(name: str) -> Any:
        """One of them."""
        service.table.resolve(name)
        return _model(service, name)

    @router.get("/v1/adapters")
    def adapters() -> Any:
        """Adapters in memory."""
        return {"object": "list", "data": [_model(service, name) for name in service.table.loaded()]}

    async def load(body: AdapterRequest, request: HttpRequest) -> Any:
        """Load an adapter of --adapters-dir into memory, before it is asked for."""
        await service.thread.run(service.table.load, _adapter(service, body))
        return {"loaded": service.table.loaded()}

    async def unload(body: AdapterRequest, request: HttpRequest) -> Any:
        """Take an adapter out of memory; it stays in its folder."""
        await service.thread.run(service.table.unload, _adapter(service, body))
        return {"loaded": service.table.loaded()}

    for path in ("/v1/adapters/load", "/v1/load_lora_adapter"):
        router.post(path)(load)
    for path in ("/v1/adapters/unload", "/v1/unload_lora_adapter"):
        router.post(path)(unload)
    return router


def _adapter(service: Service, body: AdapterRequest) -> str:
    adapter = service.table.resolve(body.lora_name)
    if not adapter:
        raise ApiError(409, Message("this is the base model, which stays"), "not_unloadable")
    return adapter


def _model(service: Service, name: str) -> dict[str, Any]:
    parent = {} if name == service.table.base else {"parent": service.table.base}
    facts = {"max_model_len": service.served.max_length, "abilities": sorted(service.served.abilities)}
    facts["routes"] = [ROUTES[x] for x in sorted(service.served.abilities)]
    return {"id": name, "object": "model", "created": service.started, "owned_by": "weitiao", **parent, **facts}
