"""The protocols of other tools, one file each, off unless `--wire` names them.

    cvat.py            CVAT's interactors and detectors, as a nuclio dashboard
    label_studio.py    an ML backend of Label Studio
    x_anylabeling.py   X-AnyLabeling-Server
    samapi.py          samapi, which QuPath's extension SAM calls
    roboflow.py        Roboflow inference
    tool_requests.py   what they share

Each file offers `router(service)`, and its docstring says what the tool sends and expects, and
where its code says so. Masks are the engine's own: a file only translates.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence

WIRES = ("cvat", "label-studio", "x-anylabeling", "samapi", "roboflow")
"""The names of `--wire`. That of a file has underscores."""

_BASIC = ("cvat", "label-studio")
"""Tools that can send a user and a password only. The password is the token, any user will do."""


def token_of(
    names: Sequence[str], headers: Mapping[str, str], query: Mapping[str, str]
) -> str | None:
    """The token of a request that has no `Authorization: Bearer`, as those tools send it, or None.

    headers  of the request, by names of any case
    query    the parameters of its URL

        wires.token_of(["x-anylabeling"], {"token": "secret"}, {})  # "secret"
    """
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic" and set(names) & set(_BASIC):
        try:
            text = base64.b64decode(credentials.strip(), validate=True).decode()
        except (binascii.Error, ValueError):
            return None
        return text.partition(":")[2]
    if "x-anylabeling" in names and headers.get("token"):
        return headers["token"]
    if "roboflow" in names:
        return query.get("api_key")
    return None
