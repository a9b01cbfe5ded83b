"""The routes of models that do not generate: /v1/classify, /tag, /answer, /rerank, /embeddings, /transcribe, /predict.

Their forms are those of OpenAI (embeddings, transcriptions), of vLLM (classify) and of Cohere and Jina (rerank), where
there is one. Probabilities are always given.
"""

import array
import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field, StrictBool, StrictInt, StrictStr
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse

from weitiao.deploy.serve.api_errors import invalid
from weitiao.deploy.serve.completion_schema import Body, Text
from weitiao.deploy.serve.event_stream import until_disconnect
from weitiao.deploy.serve.served_model import Ability
from weitiao.deploy.serve.service import Service

Texts = Annotated[list[Text], Field(min_length=1)]


class InputRequest(Body):
    """POST /v1/classify and /v1/tag."""

    model: StrictStr
    input: Text | Texts
    task: StrictStr = ""
    """Of a model of several tasks: which."""
    user: StrictStr | None = None


class EmbeddingRequest(Body):
    """POST /v1/embeddings."""

    model: StrictStr
    input: Text | Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: None = None
    task: StrictStr = ""
    user: StrictStr | None = None


class Question(Body):
    """A question and the text that may have its answer."""

    question: Text
    context: Text


class AnswerRequest(Body):
    """POST /v1/answer: one question, or several."""

    model: StrictStr
    question: Text | None = None
    context: Text | None = None
    inputs: Annotated[list[Question], Field(min_length=1)] | None = None
    task: StrictStr = ""


class Document(Body):
    """A document as Cohere's and Jina's clients may send it."""

    text: Text


class RerankRequest(Body):
    """POST /v1/rerank."""

    model: StrictStr
    query: Text
    documents: Annotated[list[Text | Document], Field(min_length=1)]
    top_n: Annotated[StrictInt, Field(ge=1)] | None = None
    return_documents: StrictBool = False
    task: StrictStr = ""


class PredictRequest(Body):
    """POST /v1/predict: rows with the columns of the objective, for every objective that predicts."""

    model: StrictStr
    rows: Annotated[
        list[dict[Literal["text", "other", "query", "document", "question", "context"], Text]], Field(min_length=1)
    ]
    task: StrictStr = ""


async def _predicted(
    service: Service, request: HttpRequest, body: Any, ability: Ability, rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Predictions of all rows.

    Raises:
        ApiError: the model cannot do that, there are too many rows, or one of them cannot be used.
    """
    service.need(ability)
    service.table.resolve(body.model)
    service.check_count(len(rows), "input")
    request.scope["state"]["facts"] |= {"model": service.table.base, "rows": len(rows)}
    answers = await until_disconnect(request, service.thread.predict(rows, body.task))
    for i, x in enumerate(answers):
        if "error" in x:
            raise invalid("input {i}: {problem}", "input", i=i, problem=x["error"])
    return answers


def prediction_routes(service: Service) -> APIRouter:
    """Classes, tags, answers, and what any other objective predicts."""
    router = APIRouter()

    @router.post("/v1/classify")
    async def classify(body: InputRequest, request: HttpRequest) -> Any:
        """The class of each text, with the probabilities of all."""
        texts = _listed(body.input)
        answers = await _predicted(service, request, body, "classify", [{"text": x} for x in texts])
        data = [_classified(i, x) for i, x in enumerate(answers)]
        return {"object": "list", "model": body.model, "data": data}

    @router.post("/v1/tag")
    async def tag(body: InputRequest, request: HttpRequest) -> Any:
        """The entities of each text, with their place in it and their probability."""
        texts = _listed(body.input)
        answers = await _predicted(service, request, body, "tag", [{"text": x} for x in texts])
        data = [{"index": i, "entities": x.get("entities", []), "tags": x.get("tags", [])} for i, x in enumerate(answers)]
        return {"object": "list", "model": body.model, "data": data}

    @router.post("/v1/answer")
    async def answer(body: AnswerRequest, request: HttpRequest) -> Any:
        """The part of each context that answers the question."""
        rows = [x.model_dump() for x in body.inputs or ()]
        if body.question is not None and body.context is not None and not rows:
            rows = [{"question": body.question, "context": body.context}]
        if not rows:
            raise invalid("give question and context, or inputs", "question")
        answers = await _predicted(service, request, body, "answer", rows)
        return {"object": "list", "model": body.model, "data": [_answered(i, x) for i, x in enumerate(answers)]}

    @router.post("/v1/predict")
    async def predict(body: PredictRequest, request: HttpRequest) -> Any:
        """What `weitiao predict` writes for each row."""
        rows: list[dict[str, Any]] = [{str(key): x for key, x in row.items()} for row in body.rows]
        return {"object": "list", "model": body.model, "data": await _predicted(service, request, body, "predict", rows)}

    return router


def retrieval_routes(service: Service) -> APIRouter:
    """What a search needs: vectors, and documents by how well they answer."""
    router = APIRouter()

    @router.post("/v1/rerank")
    async def rerank(body: RerankRequest, request: HttpRequest) -> Any:
        """The documents by how well they answer the query, the best first."""
        documents = [x if isinstance(x, str) else x.text for x in body.documents]
        answers = await _predicted(
            service, request, body, "rerank", [{"query": body.query, "document": x} for x in documents]
        )
        scores = [float(x["predicted"]) for x in answers]
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: body.top_n]
        results = [{"index": i, "relevance_score": scores[i]} for i in order]
        if body.return_documents:
            results = [{**x, "document": {"text": documents[x["index"]]}} for x in results]
        return {"model": body.model, "results": results}

    @router.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest, request: HttpRequest) -> Any:
        """A vector of length 1 for each text."""
        service.need("embed")
        service.table.resolve(body.model)
        texts = _listed(body.input)
        service.check_count(len(texts), "input")
        request.scope["state"]["facts"] |= {"model": service.table.base, "rows": len(texts)}
        assert service.served.embed is not None
        vectors, tokens = await until_disconnect(request, service.thread.run(service.served.embed, texts))
        encode = _base64 if body.encoding_format == "base64" else list
        data = [{"object": "embedding", "index": i, "embedding": encode(x)} for i, x in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": body.model, "data": data, "usage": usage}

    return router


def transcription_routes(service: Service) -> APIRouter:
    """Speech to text: OpenAI's form, and the plain bytes of an audio file."""
    router = APIRouter()

    async def transcribed(request: HttpRequest, raw: bytes) -> str:
        service.need("transcribe")
        request.scope["state"]["facts"] |= {"model": service.table.base, "bytes": len(raw)}
        assert service.served.transcribe is not None
        return await until_disconnect(request, service.thread.run(service.served.transcribe, raw))

    @router.post("/v1/transcribe")
    async def transcribe(request: HttpRequest) -> Any:
        """The transcript of an audio file, sent as the body (Content-Type: audio/wav, audio/flac, audio/ogg)."""
        return {"text": await transcribed(request, await request.body())}

    @router.post("/v1/audio/transcriptions")
    async def transcriptions(request: HttpRequest) -> Any:
        """As OpenAI's clients send it: a form with `file` and `model`. The file's name is not looked at."""
        service.need("transcribe")
        async with request.form(max_files=1, max_fields=16, max_part_size=65_536) as form:
            file, format = form.get("file"), str(form.get("response_format", "json"))
            unknown = set(form) - {"file", "model", "language", "prompt", "response_format", "temperature"}
            if unknown or not isinstance(file, UploadFile) or format not in ("json", "text"):
                raise invalid("a form with file, model and, if wanted, response_format: json or text", "file")
            service.table.resolve(str(form.get("model", "")))
            text = await transcribed(request, await file.read())
        return PlainTextResponse(text) if format == "text" else JSONResponse({"text": text})

    return router


def _listed(input: str | list[str]) -> list[str]:
    return [input] if isinstance(input, str) else input


def _classified(index: int, record: dict[str, Any]) -> dict[str, Any]:
    """vLLM's `label`, `probs` and `num_classes`, and every class by its name."""
    probabilities: dict[str, float] = record.get("probabilities", {})
    probs = list(probabilities.values())
    facts = {"index": index, "label": record.get("predicted"), "probabilities": probabilities}
    return {**facts, "probs": probs, "num_classes": len(probs)}


def _answered(index: int, record: dict[str, Any]) -> dict[str, Any]:
    facts = {"index": index, "answer": record.get("predicted", ""), "probability": record.get("probability")}
    place = {"start": record.get("predicted_start"), "end": record.get("predicted_end")}
    more = {"no_answer_score": record["no_answer_score"]} if "no_answer_score" in record else {}
    return {**facts, **place, **more}


def _base64(vector: Sequence[float]) -> str:
    """Little-endian fp32, as OpenAI's clients ask for by default."""
    return base64.b64encode(array.array("f", vector).tobytes()).decode()
