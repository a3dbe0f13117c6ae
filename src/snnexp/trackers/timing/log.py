"""The blocks of logs/timing.log: the tree of a step, or of all steps, as text."""

from snnexp.trackers.timing.spans import STEP, Node

WIDTH, NAMES = 80, 40
"""Width of a line of "=", and of the names before the colon, in characters."""


def step_block(step: int, root: Node, means: dict[str, float]) -> str:
    """Return the block of one step: the time of each part, its share of the step, and its mean over the steps (`means`, ms, by path)."""
    lines = _head(f"Step {step}")
    for node in _timed_nodes(root):
        mean = means.get(node.path, node.inclusive)
        lines.append(f"{_name(node)}: {node.inclusive:>8.2f}ms{_share(node, node.inclusive, root.inclusive)} [avg: {mean:>8.2f}ms]")
        if node.overlapped:
            lines.append(_overlapped(node.overlapped))
    other = root.exclusive
    if other > 0:
        mean = means.get("other", other)
        lines.append(f"{'other':<{NAMES}}: {other:>8.2f}ms ({_percent(other, root.inclusive)}) [avg: {mean:>8.2f}ms]")
    return "\n".join([*lines, _total(root.inclusive), ""])


def summary_block(title: str, rows: list[dict[str, object]]) -> str:
    """Return the block of all steps: the mean of each part, its share of the mean step, and its extremes, from `TimingLogger.rows`."""
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


def _timed_nodes(root: Node) -> list[Node]:
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
