"""How a step's tree is written for readers: blocks of logs/timing.log."""

from snnexp.trackers.timing.spans import STEP, Node

WIDTH, NAMES = 80, 40
"""Letters of a line of "=", and of the names before the colon."""


def block(number: int, root: Node, means: dict[str, float]) -> str:
    """One step: what each part took, its share of the step, and its mean over the steps (`means`, ms, by path)."""
    lines = _head(f"Step {number}")
    for node in _shown(root):
        mean = means.get(node.path, node.inclusive)
        lines.append(f"{_name(node)}: {node.inclusive:>8.2f}ms{_share(node, node.inclusive, root.inclusive)} [avg: {mean:>8.2f}ms]")
        if node.overlapped:
            lines.append(_overlapped(node.overlapped))
    other = root.exclusive
    if other > 0:
        mean = means.get("other", other)
        lines.append(f"{'other':<{NAMES}}: {other:>8.2f}ms ({_percent(other, root.inclusive)}) [avg: {mean:>8.2f}ms]")
    return "\n".join([*lines, _total(root.inclusive), ""])


def summary(title: str, rows: list[dict[str, object]]) -> str:
    """All steps: the mean of each part, its share of the mean step, and its extremes; `rows` are those of `TimingLogger.rows`."""
    lines = _head(title)
    for row in rows[1:]:
        depth, path = row["depth"], row["name"]
        name = path if not depth else "  " * depth + "- " + path.rpartition("/")[2]
        share = "" if depth else f" ({100 * row['share']:>5.1f}%)"
        name += " (exposed)" if path == "gradient sync" else ""
        extremes = f"[min: {row['min_ms']:>8.2f}ms] [p95: {row['p95_ms']:>8.2f}ms] [max: {row['max_ms']:>8.2f}ms]"
        lines.append(f"{name:<{NAMES}}: {row['inclusive_ms']:>8.2f}ms{share} {extremes}")
        if row.get("overlapped_ms"):
            lines.append(_overlapped(row["overlapped_ms"]))
    return "\n".join([*lines, _total(rows[0]["inclusive_ms"] if rows else 0.0), ""])


def _head(title: str) -> list[str]:
    return ["=" * WIDTH, title, "=" * WIDTH]


def _shown(root: Node) -> list[Node]:
    return [node for node in root.walk() if node is not root and node.inclusive > 0]


def _name(node: Node) -> str:
    indented = node.name if node.depth == 0 else "  " * node.depth + "- " + node.name
    return f"{indented + ' (exposed)' * (node.path == 'gradient sync'):<{NAMES}}"


def _share(node: Node, ms: float, whole: float) -> str:
    return f" ({_percent(ms, whole)})" if node.depth == 0 and node.name != STEP else ""


def _percent(ms: float, whole: float) -> str:
    return f"{100 * ms / whole if whole else 0.0:>5.1f}%"


def _overlapped(ms: float) -> str:
    return f"{'  + behind backward, not in the total':<{NAMES}}: {ms:>8.2f}ms"


def _total(ms: float) -> str:
    return f"{'Total':-<{NAMES}}: {ms:>8.2f}ms"
