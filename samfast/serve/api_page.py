"""The page at /docs: the OpenAPI document as HTML that needs neither another site nor a script."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

Document = Mapping[str, Any]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""The page's content security policy: nothing but its own style."""

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
section { border-top: 1px solid #8886; margin-top: 2rem; padding-top: .5rem; }
h2, h3 { line-height: 1.25; }
h2 code { font-weight: 600; }
h2 b { color: light-dark(#a34a00, #ff9147); }
h3 { font-size: 1rem; margin-bottom: .25rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { background: #8882; border-radius: 6px; padding: .75rem; white-space: pre-wrap; }
table { border-collapse: collapse; width: 100%; }
td { border-bottom: 1px solid #8884; padding: .3rem .75rem .3rem 0; vertical-align: top; }
td:first-child { min-width: 7rem; }
nav ul { columns: 20rem; list-style: none; padding: 0; }
"""


def add_api_page(app: FastAPI) -> None:
    """Serve the page at /docs."""

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        page = api_page(app.openapi(), str(request.base_url).rstrip("/"))
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})


def api_page(document: Document, address: str) -> str:
    """An OpenAPI document as HTML: each operation with a command to try it, and each schema.

    address  of the server, without a slash at its end, for the commands
    """
    info = document["info"]
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    links = "".join(
        f'<li><a href="#{_anchor(method, path)}"><code>{method} {escape(path)}</code></a></li>'
        for method, path, _ in operations
    )
    models: Document = document.get("components", {}).get("schemas", {})
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{escape(info['title'])}: HTTP API</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}: HTTP API</h1>",
        f"<p>{escape(info.get('summary', ''))}. The same for programs: ",
        '<a href="openapi.json">openapi.json</a>. A server that was started with a token wants ',
        "<code>-H 'Authorization: Bearer TOKEN'</code> with each command.</p>",
        f"<nav><ul>{links}</ul></nav>",
        *(_operation(method, path, each, models, address) for method, path, each in operations),
        *(_model(name, schema) for name, schema in models.items()),
        "</body></html>",
    ]
    return "".join(parts)


def _operation(method: str, path: str, operation: Document, models: Document, address: str) -> str:
    """A route: what it does, a command, its parameters, its body, its answers."""
    body: Document = operation.get("requestBody", {}).get("content", {})
    command = _command(method, f"{address}{path}", body, models)
    rows = [
        (each["name"], _type(each["schema"]), each.get("description", ""))
        for each in operation.get("parameters", ())
    ]
    answers: dict[str, list[str]] = {}
    for status, answer in sorted(operation["responses"].items()):
        answers.setdefault(_contents(answer.get("content", {})), []).append(status)
    return "".join(
        [
            f'<section id="{_anchor(method, path)}"><h2><b>{method}</b> ',
            f"<code>{escape(path)}</code></h2>",
            f"<p>{escape(operation.get('description', ''))}</p><pre>{escape(command)}</pre>",
            _table("Parameters", rows),
            _table("Body", [(kind, _type(of.get("schema", {})), "") for kind, of in body.items()]),
            _table("Answers", [(", ".join(of), kind, "") for kind, of in answers.items()]),
            "</section>",
        ]
    )


def _model(name: str, schema: Document) -> str:
    """A schema: its fields and an example."""
    required = schema.get("required", ())
    rows = [
        (
            field + ("" if field in required else "?"),
            _type(of),
            _sentence(of.get("description", ""), of.get("default")),
        )
        for field, of in schema.get("properties", {}).items()
    ]
    example = next(iter(schema.get("examples", ())), None)
    return "".join(
        [
            f'<section id="{escape(name)}"><h2>{escape(name)}</h2>',
            f"<p>{escape(schema.get('description', ''))}</p>",
            _table("Fields (a question mark: may be left out)", rows),
            "" if example is None else f"<pre>{escape(json.dumps(example, indent=2))}</pre>",
            "</section>",
        ]
    )


def _command(method: str, url: str, body: Document, models: Document) -> str:
    """A command of curl that makes the request, with the first example that the schema has."""
    parts = ["curl"]
    if method != "GET":
        parts += ["-X", method]
    if "application/octet-stream" in body:
        binary = "photo.jpg" if "image/*" in body else "embedding.safetensors"
        parts += ["--data-binary", f"@{binary}", "-H", "Content-Type: application/octet-stream"]
    elif "application/json" in body:
        example: Any = next(_examples(body["application/json"]["schema"], models), {})
        parts += ["-H", "Content-Type: application/json", "-d", json.dumps(example)]
    # $ID is the reader's; everything else is quoted for the shell.
    return f"{shlex.join(parts)} " + url.replace("{id}", "$ID").replace("{name}", "$NAME")


def _examples(schema: Document, models: Document) -> Iterator[Any]:
    """The examples of a schema, or of those it refers to."""
    yield from schema.get("examples", ())
    if "$ref" in schema:
        yield from _examples(models[schema["$ref"].rpartition("/")[2]], models)
    for each in schema.get("anyOf", ()):
        yield from _examples(each, models)


def _table(title: str, rows: Sequence[tuple[str, str, str]]) -> str:
    """Rows of (name, type as HTML, text) below a title; nothing for no rows."""
    if not rows:
        return ""
    body = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{kind}</td><td>{escape(text)}</td></tr>"
        for name, kind, text in rows
    )
    return f"<h3>{escape(title)}</h3><table>{body}</table>"


def _contents(contents: Document) -> str:
    """What an answer holds, as HTML."""
    return "<br>".join(
        f"{escape(kind)} {_type(content.get('schema', {}))}" for kind, content in contents.items()
    )


def _type(schema: Document) -> str:
    """A schema in a few words of HTML, with links to those that have a section."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(each))}</code>" for each in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    if schema.get("type") == "array":
        exact = schema.get("minItems") if schema.get("minItems") == schema.get("maxItems") else None
        return f"list of {f'{exact} ' if exact else ''}{_type(schema.get('items', {}))}"
    if schema.get("format") == "binary":
        return "a file's bytes"
    limits = [
        f"{words} {schema[key]:g}"
        for key, words in (("minimum", "at least"), ("maximum", "at most"))
        if key in schema
    ]
    if "maxLength" in schema:
        limits.append(f"of at most {schema['maxLength']} characters")
    return escape(" ".join([str(schema.get("type", "")), ", ".join(limits)]).strip())


def _sentence(text: str, default: Any) -> str:
    """A field's description, with its default unless that is empty."""
    if default in (None, [], {}):
        return text
    return f"{text}{'; ' if text else ''}default {json.dumps(default)}"


def _anchor(method: str, path: str) -> str:
    """The name of a route within the page."""
    return method.lower() + "".join(c if c.isalnum() else "-" for c in path)
