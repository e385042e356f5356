"""Options that several commands share, with one name and one meaning each."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_URL = "fastfeat://127.0.0.1:7077"


def checked_url(url: str | None) -> str | None:
    """A URL of the right form, so that a wrong one is a misuse and not a server that is away."""
    from ..client.address import Address
    from ..errors import ConnectFailed

    if url is not None:
        try:
            Address.parse(url)
        except ConnectFailed as error:
            raise typer.BadParameter(str(error)) from None
    return url


Url = Annotated[
    str,
    typer.Option(
        "--url",
        "-u",
        envvar="FASTFEAT_URL",
        callback=checked_url,
        help="The server: fastfeat://HOST:PORT or fastfeat+unix:///PATH.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a machine instead of a table.")]
Entities = Annotated[
    list[str] | None,
    typer.Option("--entity", "-e", help="Join keys as key=value[,key=value...] or JSON; repeat for more entities."),
]
