"""The page: what is written on it arrives as text, pictures arrive whole."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image

from unveil.visualize.report import Report

SPITEFUL = "<script>alert(\"1\")</script> & 'more'"


class Page(HTMLParser):
    """Tags with their attributes, and the text of each tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("img", "meta"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1], data))


def test_text_is_escaped_everywhere() -> None:
    report = Report(title=SPITEFUL)
    report.heading(SPITEFUL)
    report.text(SPITEFUL)
    report.text(SPITEFUL, small=True)
    report.table([SPITEFUL, "b"], [[SPITEFUL, "1"], ["x", SPITEFUL]])
    report.picture(Image.new("RGB", (2, 2)), SPITEFUL)
    page = Page(report.html())
    assert not page._open
    assert "script" not in {tag for tag, _ in page.tags}
    found = [tag for tag, text in page.texts if text == SPITEFUL]
    assert found == ["title", "h1", "h2", "p", "p", "th", "td", "td", "figcaption"]
    assert next(given for tag, given in page.tags if tag == "img")["alt"] == SPITEFUL


def test_pictures_are_inside_and_decode() -> None:
    picture = Image.linear_gradient("L").resize((13, 7)).convert("RGB")
    report = Report(title="t")
    report.picture(picture, "one")
    page = Page(report.html())
    source = next(given for tag, given in page.tags if tag == "img")["src"]
    assert source is not None and source.startswith("data:image/png;base64,")
    decoded = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2], validate=True)))
    assert decoded.format == "PNG" and decoded.size == (13, 7) and decoded.tobytes() == picture.tobytes()


def test_nothing_is_fetched() -> None:
    report = Report(title="t")
    report.text("x")
    assert not {"link", "script", "iframe"} & {tag for tag, _ in Page(report.html()).tags}
    assert "http" not in report.html() and "@import" not in report.html() and "url(" not in report.html()


def test_parts_come_in_order_and_one_row_stands_out() -> None:
    report = Report(title="The title")
    report.heading("first")
    report.table(["", "100"], [["a", "1 %"], ["b", "2 %"]], highlight="b")
    report.text("last")
    page = Page(report.html())
    texts = [text for tag, text in page.texts if tag not in ("style", "title")]
    assert texts == ["The title", "first", "100", "a", "1 %", "b", "2 %", "last"]
    rows = [given for tag, given in page.tags if tag == "tr"]
    assert rows == [{}, {}, {"class": "ours"}]
