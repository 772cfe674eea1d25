"""`gan compare`: a table of trained runs, groups of them against a baseline, and their curves."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gan.commands.arguments import folder
from gan.metrics.report import plain
from gan.trained import comparison
from gan.trained.comparison import Difference, Group
from gan.trained.rows import pooled

EXPLAINED = """\
Means and standard deviations over repeats: other seeds, or other splits of what is held out.
Differences are paired over the repeats of both, with Student's 95 % intervals over splits (means
over their seeds) or, of one split, over seeds; those by font are means over repeats, with bootstrap
intervals over families of fonts. A difference counts if its interval leaves 0 out."""


def add_parser(commands: Any) -> None:
    """Adds `compare` with the function `func(args) -> exit status`."""
    parser = commands.add_parser("compare", help=__doc__)
    parser.add_argument(
        "runs", nargs="+", help="runs' directories, patterns of them, or folders such as a multirun"
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="TAG",
        help="a tag of metrics.jsonl, such as metric/fid, or CELL/METRIC of an evaluation by font, "
        "such as UFUC/l1; several times for several (all measures)",
    )
    parser.add_argument(
        "--baseline",
        metavar="KEY=VALUE,... or RUN",
        help="the group that the others are held against (the first)",
    )
    parser.add_argument(
        "--rows",
        action="store_true",
        help="also what `gan evaluate` says of a W-Net, of all of a group's runs together: other "
        "splits hold out other fonts, and of more fonts more can be claimed",
    )
    parser.add_argument(
        "--out", type=folder, metavar="FOLDER", help="for compare.md, compare.json and compare.png"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Prints the table and writes the files that were asked for."""
    print(compare(args.runs, args.metric, args.baseline, args.out, args.rows))
    return 0


def compare(
    runs: Sequence[str | Path],
    metrics: Sequence[str] = (),
    baseline: str | None = None,
    out: Path | None = None,
    rows: bool = False,
) -> str:
    """The table of runs as Markdown; with `out`, also files in that folder.

    With `rows` also those of each group's evaluations together, and what may be claimed of them.

    Raises: ValueError where there is nothing to compare, or a metric or the baseline is unknown.
    """
    records = [comparison.read(path) for path in comparison.found(runs)]
    groups = comparison.grouped(records)
    tags = comparison.measures(records, metrics)
    first = comparison.chosen(groups, baseline)
    facts = numbers(groups, first, tags)
    parts = [table(groups, first, tags)]
    for group, said in zip(groups, facts["groups"], strict=True) if rows else ():
        found, tables = pooled({at: run.path for at, run in group.runs.items()}).told()
        parts.append(f"{said['name']}: {found.sentence}\n\n```\n{tables}\n```")
        said |= {"claim": found.claim, "sentence": found.sentence}
        said["tests"] = {claim: [t._asdict() for t in ts] for claim, ts in found.tests.items()}
    text = "\n\n".join(parts)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "compare.md").write_text(text + "\n", encoding="utf-8")
        readable = json.dumps(plain(facts), indent=1, ensure_ascii=False)
        (out / "compare.json").write_text(readable + "\n", encoding="utf-8")
        try:
            from gan.trained import curves
        except ImportError:
            print(
                f"gan: {out / 'compare.png'} needs matplotlib: pip install 'gan[compare]'",
                file=sys.stderr,
            )
        else:
            curves.draw(groups, first, tags, out / "compare.png")
    return text


def table(groups: Sequence[Group], baseline: Group, tags: Sequence[str]) -> str:
    """The groups' means, then their differences to the baseline."""
    titles = [tag.removeprefix("metric/") for tag in tags]
    ordered = [baseline, *(group for group in groups if group is not baseline)]
    rows = []
    for group in ordered:
        values = [group.values(tag).values() for tag in tags]
        cells = [_mean(*comparison.spread(found)) if found else "" for found in values]
        mark = "*" if group.unfinished else ""
        rows.append([comparison.named(group, baseline) + mark, str(len(group.runs)), *cells])
    parts = [_table(["runs", "repeats", *titles], rows)]
    if len(ordered) > 1:
        rows = _differences(ordered[1:], baseline, tags)
        parts.append(_table([f"minus {comparison.named(baseline, baseline)}", *titles], rows))
        parts.append(EXPLAINED)
    unfinished = [run for group in ordered for run in group.unfinished]
    if unfinished:
        listed = [f"- {run.path}: step {run.step} of {run.steps}" for run in unfinished]
        parts.append("\n".join(["\\* with unfinished runs, as far as they are:", "", *listed]))
    others = [f"- {run.path}" for group in ordered for run in group.others]
    if others:
        parts.append("\n".join(["Left out, as another run of these repeats them:", "", *others]))
    return "\n\n".join(parts)


def _differences(groups: Sequence[Group], baseline: Group, tags: Sequence[str]) -> list[list[str]]:
    rows = []
    for group in groups:
        name = comparison.named(group, baseline)
        rows.append([name, *(_interval(comparison.paired(group, baseline, t)) for t in tags)])
        fonts = [comparison.by_font(group, baseline, tag) for tag in tags]
        if any(fonts):
            rows.append([f"{name}, by font", *map(_interval, fonts)])
    return rows


def numbers(groups: Sequence[Group], baseline: Group, tags: Sequence[str]) -> dict[str, Any]:
    """The same for machines."""
    found = []
    for group in groups:
        spreads = {t: comparison.spread(v.values()) for t in tags if (v := group.values(t))}
        apart = {t: comparison.paired(group, baseline, t) for t in tags}
        fonts = {t: comparison.by_font(group, baseline, t) for t in tags}
        found.append(
            {
                "name": comparison.named(group, baseline),
                "settings": dict(group.settings),
                "baseline": group is baseline,
                "runs": [
                    {
                        "path": str(run.path),
                        "seed": seed,
                        "split": split,
                        "step": run.step,
                        "finished": run.finished,
                        "values": {tag: run.last(tag) for tag in tags},
                    }
                    for (seed, split), run in group.runs.items()
                ],
                "left_out": [str(run.path) for run in group.others],
                "metrics": {t: {"mean": m, "deviation": d} for t, (m, d) in spreads.items()},
                "differences": {t: d._asdict() for t, d in apart.items() if d},
                "by_font": {t: d._asdict() for t, d in fonts.items() if d},
            }
        )
    return {"metrics": list(tags), "groups": found}


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table whose columns are as wide as their widest cell."""
    lines = [list(titles), *map(list, rows)]
    wide = [max(len(line[place]) for line in lines) for place in range(len(titles))]
    ruled = ["-" * width for width in wide]
    lines.insert(1, ruled)
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, wide, strict=True)) + " |"
        for line in lines
    )


def _mean(mean: float, deviation: float | None) -> str:
    return f"{mean:.4g}" if deviation is None else f"{mean:.4g} ± {deviation:.2g}"


def _interval(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if difference.low is None:
        return f"{difference.mean:+.4g} (one pair)"
    return f"{difference.mean:+.4g} [{difference.low:+.4g}, {difference.high:+.4g}]"
