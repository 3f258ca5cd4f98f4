"""Bar charts as SVG, by hand: readable in light and in dark, and the same bytes for the same values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH = 720
_LABEL_WIDTH = 120
_VALUE_WIDTH = 90
_BAR_HEIGHT = 13
_GROUP_GAP = 10
_TOP = 58
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 14px; }
.quiet { fill: #59636e; }
.ours { font-weight: 600; }
.bar0 { fill: #0969da; } .bar1 { fill: #54aeff; }
.other0 { fill: #818b98; } .other1 { fill: #b7bfc8; }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc; } .quiet { fill: #9198a1; }
.bar0 { fill: #4493f8; } .bar1 { fill: #1f6feb; }
.other0 { fill: #9198a1; } .other1 { fill: #656c76; }
}
"""


@dataclass(frozen=True)
class Bar:
    """One bar, and what is written at its end."""

    value: float
    text: str


@dataclass(frozen=True)
class Group:
    """One contender: a label and a bar for each series; ``None`` where nothing was measured."""

    label: str
    bars: tuple[Bar | None, ...]
    ours: bool = False


def draw_chart(title: str, subtitle: str, series: Sequence[str], groups: Sequence[Group]) -> str:
    """An SVG document. All bars share one scale that begins at 0."""
    most = max((bar.value for group in groups for bar in group.bars if bar), default=0.0) or 1.0
    group_height = len(series) * _BAR_HEIGHT + _GROUP_GAP
    height = _TOP + len(groups) * group_height + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'height="{height}" role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">',
        f"<style>{_STYLE}</style>",
        f'<text x="0" y="16" class="title">{escape(title)}</text>',
        f'<text x="0" y="36" class="quiet">{escape(subtitle)}</text>',
    ]
    for number, group in enumerate(groups):
        parts += _draw_group(group, _TOP + number * group_height, most)
    at = _LABEL_WIDTH
    for number, name in enumerate(series):
        for kind in ("bar", "other"):
            parts.append(f'<rect x="{at}" y="{height - 16}" width="10" height="10" class="{kind}{number}"/>')
            at += 12
        parts.append(f'<text x="{at + 2}" y="{height - 7}" class="quiet">{escape(name)}</text>')
        at += 30 + 8 * len(name)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw_group(group: Group, top: int, most: float) -> list[str]:
    middle = top + len(group.bars) * _BAR_HEIGHT / 2 + 4
    label = f'<text x="{_LABEL_WIDTH - 8}" y="{middle:g}" text-anchor="end"'
    parts = [f"{label}{' class=' + chr(34) + 'ours' + chr(34) if group.ours else ''}>{escape(group.label)}</text>"]
    for number, bar in enumerate(group.bars):
        if bar is None:
            continue
        width = max(1.0, bar.value / most * (_WIDTH - _LABEL_WIDTH - _VALUE_WIDTH))
        y = top + number * _BAR_HEIGHT
        kind = "bar" if group.ours else "other"
        parts += [
            f'<rect x="{_LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{_BAR_HEIGHT - 2}" class="{kind}{number}"/>',
            f'<text x="{_LABEL_WIDTH + width + 5:.1f}" y="{y + 10}" class="quiet">{escape(bar.text)}</text>',
        ]
    return parts
