"""`sslkit encoders`."""

import json
from typing import Annotated

import typer

from sslkit.console import stdout
from sslkit.contract.errors import SslkitError


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    app.command("encoders", help=summary, rich_help_panel=panel)(_encoders)


def _encoders(
    pattern: Annotated[str | None, typer.Argument(help="List timm's names that contain this, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")] = False,
) -> None:
    """List encoders: installed ones, and how to name timm's, torchvision's and your own."""
    from sslkit import registry

    installed = registry.entries(registry.ENCODERS)
    timm = []
    if pattern is not None:
        from sslkit.encoders.build import published_names

        timm = [name for name in published_names() if pattern in name]
    if as_json:
        keys = ("name", "package", "version", "summary")
        print(json.dumps({"encoders": [{key: getattr(entry, key) for key in keys} for entry in installed], "timm": timm}))
        return
    if pattern is not None:
        installed = [entry for entry in installed if pattern in entry.name]
    if not installed and not timm:
        raise SslkitError(f"no encoder has a name with {pattern}", "`sslkit encoders` lists those of sslkit")
    for entry in installed:
        stdout.print(f"{entry.name:<16} {entry.package} {entry.version}: {entry.summary}", markup=False)
    if pattern is None:
        stdout.print("any timm name    e.g. resnet50, seresnet50, vit_small_patch16_224 (`sslkit encoders vit_small` searches)")
        stdout.print("torchvision:NAME every classification network, e.g. torchvision:alexnet, torchvision:vgg16")
        stdout.print("package.module:factory  your own: returns a module from images to [B, width]")
    for name in timm:
        stdout.print(name, markup=False)
