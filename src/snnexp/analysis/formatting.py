"""Numbers, names and tables as text."""


def shorten(text: str, length: int) -> str:
    """Return a name, cut in its middle to at most `length` characters."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[-(length - 1 - head) :]}"


def format_amount(value: float, unit: str = "") -> str:
    """Return a number with three or four figures and a prefix: 554 M, 547 µJ."""
    prefixes = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p")]
    if not unit:
        prefixes = prefixes[:5]
    size, prefix = next((entry for entry in prefixes if abs(value) >= entry[0]), (1.0, ""))
    return f"{value / size:.4g} {prefix}{unit}".rstrip()


def align_columns(rows: list[list[str]]) -> list[str]:
    """Return rows of cells as lines: the first column left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
