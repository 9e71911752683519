"""Describe requests and answers for OpenAPI; the answers themselves are plain dictionaries."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class Guess(BaseModel):
    """One class."""

    index: int
    name: str
    probability: float


class Timing(BaseModel):
    """Where the time went, in milliseconds, and how many images shared the batch."""

    decode_ms: float
    wait_ms: float
    model_ms: float
    batch: int


class Result(BaseModel):
    """The answer for one image: for a classifier its classes, for a detector its objects; or an error."""

    file: str | None
    classes: list[Guess] | dict[str, float] | None = None
    objects: list[dict[str, Any]] | None = None
    error: str | None = None
    timing: Timing | None = None


class Predicted(BaseModel):
    """The answers for the images of a request, in its order."""

    model: str
    results: list[Result]
    total_ms: float


class Vector(BaseModel):
    """The features of one image, or an error."""

    file: str | None
    features: list[float] | None = None
    error: str | None = None
    timing: Timing | None = None


class Embedded(BaseModel):
    """The features of the images of a request, in its order."""

    model: str
    results: list[Vector]
    total_ms: float


class Health(BaseModel):
    """What is served, and whether it is ready."""

    status: str
    model: str
    task: str


class Fault(BaseModel):
    """Why there is no answer, in a sentence."""

    detail: str


_BINARY = {"schema": {"type": "string", "format": "binary"}}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "one image as it is, or several files in a form",
        "content": {
            "image/*": _BINARY,
            "application/octet-stream": _BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    "required": ["files"],
                }
            },
        },
    }
}
