"""How a table's cells are written: columns, spans of time, sizes. Pure."""

from collections.abc import Sequence


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two spaces apart, no trailing blanks."""
    widths = [max(len(row[n]) for row in (titles, *rows)) for n in range(len(titles))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (titles, *rows))
    return "\n".join(line.rstrip() for line in lines)


def age(seconds: float, *, whole: bool = False) -> str:
    """`12s`, `3m`, `2.5h`; `whole`: without a fraction."""
    units = (("d", 86400), ("h", 3600), ("m", 60))
    unit, length = next((each for each in units if seconds >= each[1]), ("s", 1))
    return f"{seconds // length:.0f}{unit}" if whole else f"{seconds / length:.1f}{unit}"


def size(count: float) -> str:
    """`512B`, `1.5MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f}{unit}" if unit == "B" else f"{count:.1f}{unit}"
        count /= 1024
    return f"{count:.1f}TiB"
