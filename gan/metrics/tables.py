"""Scores as lines of text."""

from collections.abc import Mapping, Sequence

from gan.metrics.glyphs import CELLS
from gan.metrics.scores import Interval, Scores

SHORT = {"L1": "l1", "SSIM": "ssim", "sharp": "sharpness"}
LONG = {
    **{"L1": "l1", "L1/ink": "l1_per_ink", "RMSE": "rmse", "SSIM": "ssim", "PDAR": "pdar"},
    **{"sharp": "sharpness", "content": "content", "style": "style"},
}
FAMILIES = 8  # with fewer in all, the held-out ones are too few to speak of
FEW = 8  # with fewer held out, intervals over them are too narrow


def table(
    rows: Mapping[str, Scores],
    columns: Mapping[str, str] = SHORT,
    among: Sequence[str] = ("SFSC", "SFUC", "UFSC", "UFUC"),
) -> str:
    """Named scores as lines of text, with a legend: columns by their titles, for each of the cells.

    A name that ends in `*` marks a row that sees more than a generator, which the legend explains.
    """
    return "\n".join([body(rows, columns, among), "", *_legend(rows, columns, among)])


def body(rows: Mapping[str, Scores], columns: Mapping[str, str], among: Sequence[str]) -> str:
    """The same without a legend."""
    first = next(iter(rows.values()))
    names = [cell for cell in CELLS if cell in among and cell in first.cells]
    wide = max(map(len, rows))
    widths = {title: max(6, len(title) + 1) for title in columns}
    titles = " |" + "".join(title.rjust(width) for title, width in widths.items())
    cells = "".join(f" | {name:<{len(titles) - 3}}" for name in names)
    lines = [
        (" " * wide + cells).rstrip(),
        " " * wide + titles * len(names),
        "-" * (wide + len(titles) * len(names)),
    ]
    for row, scores in rows.items():
        line = row.ljust(wide)
        for name in names:
            means = {title: scores.cells[name].mean(columns[title]) for title in columns}
            line += " |" + "".join(f"{means[title]:{widths[title]}.3f}" for title in columns)
        lines.append(line)
    return "\n".join(lines)


def listed(title: str, rows: Mapping[str, Mapping[str, float]], wide: int) -> list[str]:
    """Rows of numbers as lines of text, under a title so wide and the numbers' names."""
    lines = [title.ljust(wide) + "".join(f"{name:>9}" for name in next(iter(rows.values())))]
    for row, values in rows.items():
        lines.append(row.ljust(wide) + "".join(f"{value:9.3f}" for value in values.values()))
    return lines


def tagged(rows: Mapping[str, Mapping[str, float]], chosen: str) -> dict[str, float]:
    """Every number by a tag: that of the chosen row is its name, others begin with their row's."""
    return {
        f"{'' if row == chosen else row.replace(' ', '_') + '/'}{name}": value
        for row, values in rows.items()
        for name, value in values.items()
    }


def signed(difference: Interval) -> str:
    """A difference and its 95 % interval."""
    return f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def families(scores: Scores) -> int:
    """How many families of fonts take part in any cell."""
    return len(set().union(*(cell.families.tolist() for cell in scores.cells.values())))


def _legend(
    rows: Mapping[str, Scores], columns: Mapping[str, str], among: Sequence[str]
) -> list[str]:
    scores = next(iter(rows.values()))
    lines = [
        "SF, UF: seen, unseen font; SC, UC: seen, unseen character. Means over fonts.",
        "L1 of ink: less is better; SSIM: more is; sharp: 1 is as sharp as the truth.",
    ]
    for name in among:
        if name not in scores.cells:
            continue
        cell = scores.cells[name]
        lines.append(
            f"{name}: {cell.pairs} targets, {len(cell.styles)} fonts, "
            f"{len(set(cell.families))} families, mean ink {cell.ink.mean():.3f}"
        )
    if any(row.endswith("*") for row in rows):
        lines.append(
            "* sees more: the target in the training fonts, more references, or the truth."
        )
        lines.append("  A seen font is left out of the training fonts for its own targets.")
    if families(scores) < FAMILIES:
        lines.append(f"Only {families(scores)} families: too few for a claim about unseen fonts.")
    return lines
