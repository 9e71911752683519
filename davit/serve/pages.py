"""Write the pages for people, which ask no other machine for anything: no script, no style, no image."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from .engine import Engine

_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font-family:system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}}
code{{background:#eee;padding:0 .2em}}td,th{{text-align:left;padding:.2em 1em .2em 0;vertical-align:top}}</style>
"""


def front_page(engine: Engine) -> str:
    """Write the line with links that the service's address shows."""
    links = " · ".join(f'<a href="{path}">{path}</a>' for path in ("docs", "openapi.json", "health", "metrics"))
    ways = " and ".join(f"<code>POST /{kind}</code>" for kind in engine.kinds)
    return f"{_HEAD.format(title=escape(engine.name))}<p>{escape(engine.name)}: {ways} with an image. {links}</p>\n"


def docs_page(schema: Mapping[str, Any]) -> str:
    """Write an OpenAPI schema as a page: each path with its parameters, bodies and answers, and a form to try it."""
    info = schema["info"]
    parts = [
        _HEAD.format(title=escape(info["title"])),
        f"<h1>{escape(info['title'])}</h1><p>{_text(info.get('description', ''))} For tools: "
        '<a href="openapi.json">openapi.json</a></p>',
    ]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(path, method, operation))
    parts.append("<h2>Objects</h2>")
    for name, model in sorted(schema.get("components", {}).get("schemas", {}).items()):
        rows = "".join(
            f"<tr><td><code>{escape(field)}</code><td>{escape(_type(value))}"
            for field, value in model.get("properties", {}).items()
        )
        parts.append(f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{_text(model.get("description", ""))}</p>')
        parts.append(f"<table>{rows}</table>")
    return "\n".join(parts) + "\n"


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    parts = [f"<h2>{escape(method.upper())} {escape(path)}</h2><p>{_text(operation.get('description', ''))}</p>"]
    parameters = operation.get("parameters", [])
    for parameter in parameters:
        schema = parameter["schema"]
        about = f"{_type(schema)}, default {schema.get('default')}: {parameter.get('description', '')}"
        parts.append(f"<p><code>?{escape(parameter['name'])}=</code> {escape(about)}</p>")
    body = operation.get("requestBody")
    if body is not None:
        media = ", ".join(f"<code>{escape(one)}</code>" for one in body["content"])
        parts.append(f"<p>Body: {escape(body.get('description', ''))}, as {media}.</p>")
        if "multipart/form-data" in body["content"]:
            fields = "".join(
                f' {escape(one["name"])} <input name="{escape(one["name"])}" size="4" '
                f'value="{escape(str(one["schema"].get("default", "")))}">'
                for one in parameters
            )
            parts.append(
                f'<form method="post" enctype="multipart/form-data" action="{escape(path.lstrip("/"))}">'
                f'<input type="file" name="files" multiple required>{fields} <button>Try it</button></form>'
            )
    rows = "".join(
        f"<tr><td>{escape(status)}<td>{_text(answer['description'])}<td>{_object(answer)}"
        for status, answer in operation["responses"].items()
    )
    parts.append(f"<table>{rows}</table>")
    return "\n".join(parts)


def _object(answer: Mapping[str, Any]) -> str:
    reference = answer.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
    name = escape(reference.rpartition("/")[2])
    return f'<a href="#{name}">{name}</a>' if name else ""


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _text(text: str) -> str:
    """Escape a text, with what is between backticks as code."""
    return "".join(
        f"<code>{escape(part)}</code>" if odd % 2 else escape(part) for odd, part in enumerate(text.split("`"))
    )
