"""Charts: well-formed, to scale, and safe with any text."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.chart import Bar, Group, draw_chart

SVG = "{http://www.w3.org/2000/svg}"


def widths(document: str) -> list[float]:
    """Of the bars, without the legend's."""
    root = ElementTree.fromstring(document)  # noqa: S314  # we wrote it
    return [float(rect.attrib["width"]) for rect in root.iter(f"{SVG}rect") if rect.attrib["height"] != "10"]


def test_bars_are_to_scale_from_zero() -> None:
    groups = [
        Group("twinport", (Bar(1.0, "1 s"), Bar(2.0, "2 s")), ours=True),
        Group("other", (Bar(4.0, "4 s"), None)),
    ]
    first, second, most = widths(draw_chart("Title", "times", ("up", "down"), groups))
    assert second == pytest.approx(2 * first, abs=0.2)
    assert most == pytest.approx(4 * first, abs=0.2)


def test_a_chart_fits_its_picture() -> None:
    groups = [Group(f"peer {number}", (Bar(number + 1.0, "x"),)) for number in range(12)]
    root = ElementTree.fromstring(draw_chart("T", "t", ("up",), groups))  # noqa: S314
    _, _, width, height = (float(word) for word in root.attrib["viewBox"].split())
    for rect in root.iter(f"{SVG}rect"):
        assert float(rect.attrib["x"]) + float(rect.attrib["width"]) <= width
        assert float(rect.attrib["y"]) + float(rect.attrib["height"]) <= height


def test_text_is_escaped() -> None:
    document = draw_chart('a < b & "c"', "<", ("<up>",), [Group("<&>", (Bar(1.0, "<1>"),))])
    root = ElementTree.fromstring(document)  # noqa: S314
    assert {'a < b & "c"', "<&>", "<1>", "<up>"} <= {text.text for text in root.iter(f"{SVG}text")}
    assert root.attrib["aria-label"] == 'a < b & "c"'


def test_a_chart_is_readable_in_light_and_dark_and_has_no_script() -> None:
    document = draw_chart("T", "t", ("up",), [Group("a", (Bar(0.0, "0"),))])
    assert "prefers-color-scheme: dark" in document
    assert "script" not in document
    assert document == draw_chart("T", "t", ("up",), [Group("a", (Bar(0.0, "0"),))])
