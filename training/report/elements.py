"""The parts of which a report's page is made, as HTML."""

import base64
import html
from collections.abc import Sequence

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}: a report</title>
<style>
:root {{
  --paper: #fcfcfa; --ink: #1d2126; --faint: #646b73; --line: #dcdcd6;
  --first: #2563a8; --second: #c2571a; --third: #8a9098;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --paper: #14171a; --ink: #e4e6e8; --faint: #9aa1a9; --line: #30363c;
    --first: #6ea8e6; --second: #eb955c; --third: #757d86;
  }}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif;
}}
h1 {{ font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }}
h2 {{ font-size: 1.2rem; margin: 2.75rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line); }}
p, ul {{ max-width: 46rem; }}
ul, figcaption, .intro {{ color: var(--faint); }}
ul {{ font-size: .85rem; padding-left: 1.1rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }}
th, td {{
  padding: .4rem 1.25rem .4rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top;
}}
th {{ font-weight: 500; }}
th[scope=col] {{ color: var(--faint); }}
td {{ overflow-wrap: anywhere; }}
td b {{ white-space: nowrap; }}
figure {{ margin: 1.25rem 0 1.75rem; }}
figcaption {{ font-size: .85rem; margin-top: .4rem; }}
figure svg {{ display: block; width: 100%; max-width: 44rem; height: auto; }}
figure svg text {{ font-family: system-ui, sans-serif !important; }}
.grid {{ display: block; height: auto; image-rendering: pixelated; border: 1px solid var(--line); }}
.prepared {{ display: flex; gap: .75rem; flex-wrap: wrap; }}
.prepared span {{ display: flex; flex-direction: column; gap: .5rem; justify-content: space-between; width: 6.5rem; }}
.prepared img {{ width: 100%; image-rendering: pixelated; }}
summary {{ cursor: pointer; margin-bottom: .75rem; }}
</style>
<h1>{title}</h1>
<p class=intro>{intro}</p>
{sections}
</html>
"""


def section(title: str, content: str) -> str:
    """A part of the page, `content` being HTML."""
    return f"<section><h2>{title}</h2>{content}</section>"


def table(head: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML; the first of each row is its head."""
    first = "<tr>" + "".join(f"<th scope=col>{cell}</th>" for cell in head) + "</tr>" if head else ""
    body = "".join(
        "<tr><th scope=row>" + row[0] + "</th>" + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f"<div class=wide><table>{first}{body}</table></div>"


def figure(content: str, caption: str) -> str:
    """A picture, as HTML, above its caption in words."""
    return f"<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>"


def data_uri(png: bytes) -> str:
    """A PNG file as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
