# SPDX-License-Identifier: Apache-2.0
"""Fills in what the repository already says: methods, recipes, and files outside `docs/`."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent


def on_page_markdown(markdown, **_):
    """Replaces the markers of a page; MkDocs calls this before it renders the page."""
    markdown = re.sub("<!-- include (.+) -->", lambda match: included(match[1]), markdown)
    markdown = markdown.replace("<!-- methods -->", methods())
    return markdown.replace("<!-- recipes -->", recipes())


def included(name):
    """Returns a file of the repository, with its links into `docs/` alone, as links within it."""
    text = (ROOT / name).read_text().replace("](docs/", "](")
    return re.sub(r"\[([^]]+)\]\((?!http|#|[\w/]+\.md)[^)]+\)", r"\1", text)


def methods():
    """Returns an API entry for each file of methods."""
    names = sorted(path.stem for path in (ROOT / "ssl_noisy/methods").glob("[!_]*.py"))
    return "\n\n".join(f"::: ssl_noisy.methods.{name}" for name in names)


def recipes():
    """Returns a section for each recipe, with its header as the file has it."""
    sections = []
    for path in sorted((ROOT / "flags").glob("*.cfg")):
        title, *parts = header(path.read_text())
        items = "\n".join(f"- {part}" for part in parts)
        sections.append(f"### {path.stem}\n\n{title}\n\n{items}")
    return "\n\n".join(sections)


def header(text):
    """Returns the parts of a recipe's header: the title, then `Run: ...`, `Published: ...`."""
    lines = [line[1:] for line in text.splitlines() if line.startswith("#")]
    parts = []
    for line in lines:
        if not parts or re.match(r" [A-Z][\w .]*:( |$)", line):
            parts.append(line.strip())
        elif figure := re.match(r" +(--\w+=\S+)( \(default\))?: (.*)", line):
            parts[-1] += f"\n    - `{figure[1]}`{figure[2] or ''}: {figure[3]}"
        else:
            parts[-1] += " " + line.strip()
    return [re.sub("(python -m .*)", r"`\1`", part).replace("<", "&lt;") for part in parts]
