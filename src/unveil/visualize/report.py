"""One self-contained HTML page: text, tables, pictures inside."""

import base64
import html
import io
from dataclasses import dataclass, field

from PIL import Image

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .3rem .9rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #222; }
tbody tr + tr td { border-top: 1px solid #ddd; } tr.ours td { font-weight: 600; }
img { max-width: 100%; } p.small, figcaption { color: #555; font-size: .9rem; } figure { margin: 1rem 0; }
"""


@dataclass
class Report:
    """Collects the parts in order; `html()` is the page."""

    title: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str, *, small: bool = False) -> None:
        kind = ' class="small"' if small else ""
        self.parts.append(f"<p{kind}>{html.escape(text)}</p>")

    def table(self, header: list[str], rows: list[list[str]], *, highlight: str | None = None) -> None:
        """`highlight`: the row whose first cell is this stands out."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = ""
        for row in rows:
            kind = ' class="ours"' if row[0] == highlight else ""
            body += f"<tr{kind}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        self.parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def picture(self, picture: Image.Image, caption: str) -> None:
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        self.parts.append(
            f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def html(self) -> str:
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
            f"<style>{STYLE}</style></head><body>\n<h1>{html.escape(self.title)}</h1>\n"
            + "\n".join(self.parts)
            + "\n</body></html>\n"
        )
