"""Options that several commands share, with one name and one meaning each."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_URL = "fastfeat://127.0.0.1:7077"

Url = Annotated[
    str,
    typer.Option(
        "--url", "-u", envvar="FASTFEAT_URL", help="The server: fastfeat://HOST:PORT or fastfeat+unix:///PATH."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a machine instead of a table.")]
Entities = Annotated[
    list[str] | None,
    typer.Option("--entity", "-e", help="Join keys as key=value[,key=value...] or JSON; repeat for more entities."),
]
