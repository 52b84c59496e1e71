"""The pages of the site that no file in docs/ has; mkdocs calls these functions while it builds (mkdocs.yml).

The help of every command, the reference of the public interface, and files outside of docs/ that pages link to: those
become pages, and the links are rewritten, so that the same Markdown reads well on GitHub and here.
"""

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import sslkit
from sslkit.cli.app import Verb, build_app, verbs
from sslkit.cli.options import data_table, expected

ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"(\]\()(?!https?://|#)([^)#\s]+)(#[^)]*)?\)")
_LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json"}

# Pages of the reference: modules whose public names each of them has, beside the three pages of `sslkit.__all__`.
_MODULES = {
    "nn": ("Heads, teachers, losses", ("sslkit.nn",)),
    "transforms": ("Image transforms and views", ("sslkit.image.transforms", "sslkit.image.views")),
    "encoders": ("Encoders", ("sslkit.encoders.build", "sslkit.encoders.recipe")),
    "testing": ("Testing a task", ("sslkit.testing",)),
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the commands to the navigation, by panel."""
    commands: dict[str, list[str]] = {}
    for verb in own_verbs():
        commands.setdefault(verb.panel, []).append(f"commands/{verb.name}.md")
    for section in config.nav or []:
        if "Commands" in section:
            section["Commands"] += [{panel: pages} for panel, pages in commands.items()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    for verb in own_verbs():
        files.append(File.generated(config, f"commands/{verb.name}.md", content=command_page(verb)))
    for name, text in reference_pages():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    for path in linked_files():
        if path.suffix == ".md":
            files.append(File.generated(config, site_path(path), content=path.read_text(encoding="utf-8")))
        else:
            files.append(File.generated(config, site_path(path), content=listing(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links to files outside of docs/ lead to their pages here."""
    if page.file.src_uri == "index.md":
        page.meta["hide"] = ["navigation", "toc"]  # not in the file, where GitHub would show it
    origin = file_of(page.file.src_uri)
    if origin is None:
        return markdown

    def rewrite(match: re.Match[str]) -> str:
        target = origin.parent / match[2]
        if not target.is_file():
            return match[0]
        link = posixpath.relpath(site_path(target.resolve()), posixpath.dirname(page.file.src_uri) or ".")
        return f"{match[1]}{link}{match[3] or ''})"

    return _LINK.sub(rewrite, markdown)


def own_verbs() -> list[Verb]:
    """Return the commands that this repository has."""
    return [verb for verb in verbs() if verb.entry is None or verb.entry.package == "sslkit"]


def command_page(verb: Verb) -> str:
    """Return the help of a command as a page: a table of flags for each of its panels."""
    group: Any = typer.main.get_command(build_app([verb.name]))
    command = group.commands[verb.name]
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    usage = " ".join(["sslkit", verb.name, *(f"[{argument.name.upper()}]" for argument in arguments), "[OPTIONS]"])
    parts = [f"# sslkit {verb.name}\n", f"{verb.summary}\n", f"```sh\n{usage}\n```\n"]
    for argument in arguments:
        if argument.help:
            parts.append(f"`{argument.name.upper()}`: {_text(argument.help)}\n")
    panels: dict[str, list[str]] = {}
    for option in command.params:
        if option.param_type_name == "option" and not option.hidden:
            panels.setdefault(option.rich_help_panel or "Options", []).append(_row(option))
    for title, rows in panels.items():
        parts += [f"## {title}\n", "| flag | |", "|---|---|", *rows, ""]
    if verb.name == "pretrain":
        parts.append("Each task has options of its own: `sslkit pretrain TASK --help`, or [all flags](../flags.md).\n")
    parts.append("Exit codes and data options: [commands and flags](../flags.md).")
    return "\n".join(parts)


def _row(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    value = "" if option.is_flag else f" *{_text(option.metavar or 'TEXT')}*"
    return f"| {names}{value} | {_text(option.help or '')} |"


def _text(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "&#124;").replace("*", "\\*").replace("_", "\\_")


def reference_pages() -> Iterator[tuple[str, str]]:
    """Return name and text of the pages of the reference; mkdocstrings fills them from the docstrings."""
    specs = [name for name in sslkit.__all__ if name.endswith("Spec")]
    classes = [name for name in sslkit.__all__ if name[0].isupper() and name not in specs]
    functions = [name for name in sslkit.__all__ if name[0].islower()]
    yield "functions", "\n".join(["# Functions\n", *map(_entry, functions)])
    yield "classes", "\n".join(["# Classes\n", *map(_entry, classes)])
    yield "specs", "\n".join(["# Specs: the options of functions\n", *(_entry(name) + _fields(name) for name in specs)])
    for page, (title, modules) in _MODULES.items():
        entries = [f"::: {module}\n    options:\n      heading: {module}\n      heading_level: 2\n" for module in modules]
        yield page, "\n".join([f"# {title}\n", *entries])


def _entry(name: str) -> str:
    fields = "      show_if_no_docstring: true\n" if name[0].isupper() and not name.endswith("Spec") else ""
    return f"::: {sslkit._WHERE[name]}.{name}\n    options:\n      heading: {name}\n      heading_level: 2\n{fields}"


def _fields(spec: str) -> str:
    """Return a table of the fields of a spec."""
    lines = ["\n| field | accepts | default | |", "|---|---|---|---|"]
    tables = []
    for name, field in getattr(sslkit, spec).model_fields.items():
        default = "required" if field.is_required() else "" if field.default in (None, {}) else f"`{field.default}`"
        if data_table(field) is not None:
            tables.append(name.replace("_", "-"))
        else:
            lines.append(f"| `{name}` | {_text(expected(field))} | {default} | {_text(field.description or '')} |")
    if tables:
        lines.append(f"\nAlso the [options](../flags.md#data-options) of {', '.join(tables)} data, such as `size`.")
    return "\n".join([*lines, ""])


def linked_files() -> list[Path]:
    """Return the files outside of docs/ that pages link to, and those that these link to."""
    waiting, linked = sorted((ROOT / "docs").rglob("*.md")), set[Path]()
    while waiting:
        page = waiting.pop()
        for match in _LINK.finditer(page.read_text(encoding="utf-8")):
            target = (page.parent / match[2]).resolve()
            if target.is_file() and not target.is_relative_to(ROOT / "docs") and target not in linked:
                linked.add(target)
                waiting += [target] if target.suffix == ".md" else []
    return sorted(linked)


def site_path(path: Path) -> str:
    """Return where a file of the repository is on the site: docs/ is its root, and what is no Markdown gets a page."""
    inside = path.relative_to(ROOT / "docs" if path.is_relative_to(ROOT / "docs") else ROOT).as_posix()
    return inside if path.is_relative_to(ROOT / "docs") or path.suffix == ".md" else f"{inside}.md"


def file_of(place: str) -> Path | None:
    """Return the file of the repository that a page shows, None for one that is made here."""
    return next((path for path in (ROOT / "docs" / place, ROOT / place) if path.is_file()), None)


def listing(path: Path) -> str:
    """Return a page with the content of a file."""
    language = _LANGUAGES.get(path.suffix, "text")
    fence = "````"
    return f"# {path.name}\n\n{fence}{language}\n{path.read_text(encoding='utf-8')}{fence}\n"
