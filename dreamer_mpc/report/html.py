"""Pieces of a page in HTML that needs no other file and no network: text is escaped, pictures and videos are inside."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

MEDIA = {".png": "image/png", ".mp4": "video/mp4"}
MB = 1_000_000

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1b1d21; --paper: #ffffff; --soft: #5b6068; --line: #d9dce1; --card: #f4f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e9eb; --paper: #16181c; --soft: #a2a8b1; --line: #383c43; --card: #22252b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 62rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.3rem; margin: 2.2rem 0 0.6rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.4rem 0 0.4rem; overflow-wrap: anywhere; }
p, figcaption, .note { color: var(--soft); font-size: 0.9rem; margin: 0.4rem 0; overflow-wrap: anywhere; }
nav a { color: inherit; margin-right: 1rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); gap: 0.8rem; }
.card { background: var(--card); border-radius: 0.5rem; padding: 0.8rem 1rem; border-left: 0.4rem solid; }
.card b { display: block; font-size: 2rem; line-height: 1.2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem 0.25rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.words th { text-align: left; }
.words td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.words td:first-child { white-space: nowrap; overflow-wrap: normal; }
figure { margin: 0.8rem 0; }
img, video { max-width: 100%; height: auto; display: block; background: #ffffff; border-radius: 0.3rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); padding: 0.6rem 0.8rem;
  font-size: 0.85rem; }
.dot { display: inline-block; width: 0.7em; height: 0.7em; margin-right: 0.5em; border-radius: 50%; }
@media print {
  :root { --ink: #000000; --paper: #ffffff; --soft: #444444; --line: #bbbbbb; --card: #f4f5f7; }
  body { max-width: none; padding: 0; }
  nav, video { display: none; }
  figure, .card, tr { break-inside: avoid; }
}
</style>
</head>
<body>
$body
</body>
</html>
""")


def page(title: str, sections: Sequence[tuple[str, str]], head: str) -> str:
    """The whole page: a title, what stands above all, and sections of a heading and HTML; empty ones are left out."""
    shown = [(name, content) for name, content in sections if content]
    links = "".join(f'<a href="#{anchor(name)}">{escape(name)}</a>' for name, _ in shown)
    parts = [f'<section id="{anchor(name)}"><h2>{escape(name)}</h2>\n{content}</section>' for name, content in shown]
    body = "\n".join([f"<h1>{escape(title)}</h1>", head, f"<nav>{links}</nav>", *parts])
    return PAGE.substitute(title=escape(title), body=body)


def anchor(name: str) -> str:
    """The name of a section in a link."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def note(text: str) -> str:
    """A line of explanation."""
    return f"<p>{escape(text)}</p>\n"


def heading(text: str, color: str | None = None) -> str:
    """A heading below a section's, with a dot of a method's colour."""
    return f"<h3>{dot(color) if color else ''}{escape(text)}</h3>\n"


def dot(color: str) -> str:
    """A mark of a method's colour."""
    return f'<span class="dot" style="background:{escape(color)}"></span>'


def card(number: str, words: str, color: str) -> str:
    """A number to be seen first, and what it is."""
    return f'<div class="card" style="border-left-color:{escape(color)}"><b>{escape(number)}</b>{escape(words)}</div>\n'


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], colors: Sequence[str] = (), words: bool = False) -> str:
    """Rows with the same titles; a method's colour stands before its row; `words`: cells of text, on the left."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = []
    for number, row in enumerate(rows):
        mark = dot(colors[number]) if colors else ""
        cells = "".join(f"<td>{mark if i == 0 else ''}{escape(cell)}</td>" for i, cell in enumerate(row))
        body.append(f"<tr>{cells}</tr>")
    kind = ' class="words"' if words else ""
    whole = f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="wide">{whole}</div>\n'


def code(text: str) -> str:
    """A command."""
    return f"<pre>{escape(text)}</pre>\n"


class Enclosures:
    """Pictures and videos inside the page, as long as they fit into `most` bytes of it; the others are named."""

    def __init__(self, most: float):
        self._left, self.left_out = most, []  # paths

    def figure(self, path: Path, caption: str) -> str:
        """A picture or a video with its caption; a line where it does not fit, or is gone."""
        try:
            size = path.stat().st_size
            if (size + 2) // 3 * 4 > self._left:
                self.left_out.append(path)
                return note(f"{caption}: left out, as the page would be too large; {size / MB:.1f} MB in {path}")
            encoded = base64.b64encode(path.read_bytes()).decode()
        except OSError as error:
            return note(f"{caption}: cannot be read ({error.strerror}), {path}")
        self._left -= len(encoded)
        source, said = f"data:{MEDIA[path.suffix]};base64,{encoded}", escape(caption)
        inside = f'<img alt="{said}" src="{source}">'
        if path.suffix == ".mp4":
            inside = f'<video controls muted loop playsinline preload="metadata" title="{said}" src="{source}"></video>'
        return f"<figure>{inside}<figcaption>{said}</figcaption></figure>\n"
