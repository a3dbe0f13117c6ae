"""What `snnexp profile` found, as text: from the content of profile.json alone."""

from typing import Any

GIB = 2**30
KINDS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "buffers": "buffers, EMA",
    "activations": "activations",
}
TREE = "where the time goes"
LOADER_WAITS = 0.1
"""Part of a step spent waiting for data from which on the loader is called the bottleneck."""


def size(count: float | None) -> str:
    """Bytes in words."""
    if count is None:
        return "-"
    for unit, name in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}" if unit == GIB else f"{count / unit:.1f} {name}"
    return f"{count:.0f} B"


def report(found: dict[str, Any]) -> str:
    """The profile of one setting."""
    parts = [heading(found), speed(found), tree(found), memory(found["memory"]), hardware(found["hardware"]), layers(found["layers"])]
    return "\n\n".join(part for part in parts if part)


def heading(found: dict[str, Any]) -> str:
    """What was measured on what."""
    effective = found["batch_size"] * found["accumulate"]
    batch = f"batch {found['batch_size']}" + (f" x {found['accumulate']} accumulated = {effective}" if found["accumulate"] > 1 else "")
    how = (", channels_last" if found["channels_last"] else "") + (", compiled" if found["compile"] else "")
    where = found["device"] + (f", {found['threads']} threads of {found['cores']} cores" if found["device"] == "cpu" else "")
    return (
        f"{found['model']} on {found['dataset']}: {found['parameters']:,} parameters, {batch}, {found['precision']}{how}, "
        f"workers={found['workers']}\n{where}, torch {found['torch']}, LIF: {found['neuron']}"
    )


def speed(found: dict[str, Any]) -> str:
    """Time of a step and samples per second."""
    step, rate = found["step_ms"], found["samples_per_s"]
    busy = " (far above: the machine does something else too, or steps differ)" if step["p95"] > 1.5 * step["median"] else ""
    return (
        f"{found['steps']} steps after {found['warmup']} of warm-up: median {step['median']:.1f} ms, min {step['min']:.1f}, "
        f"p95 {step['p95']:.1f}{busy}\n"
        f"{rate['median']:.4g} samples/s (median step; best {rate['best']:.4g}, all steps together {rate['mean']:.4g})"
    )


def tree(found: dict[str, Any]) -> str:
    """Where the time of a step goes, and whether the loader holds it up."""
    rows = found.get("tree") or []
    if not rows:
        return ""
    names = [("" if row["name"] == "step" else "  " * (row["depth"] + 1)) + row["name"].rpartition("/")[2] for row in rows]
    width = max(map(len, [*names, TREE]))
    lines = [f"{TREE:<{width}}  {'ms':>9} {'own ms':>9} {'p95':>9}  share of the step"]
    for name, row in zip(names, rows, strict=True):
        lines.append(f"{name:<{width}}  {row['inclusive_ms']:9.2f} {row['exclusive_ms']:9.2f} {row['p95_ms']:9.2f}  {row['share']:6.1%}")
    return "\n".join([*lines, loader(rows, found["workers"])])


def loader(rows: list[dict[str, Any]], workers: int) -> str:
    """Whether the loader is the bottleneck, in words."""
    waits = next((row["share"] for row in rows if row["name"] == "data"), 0.0)
    if waits < LOADER_WAITS:
        return f"The loader is no bottleneck: {waits:.1%} of a step is spent waiting for data."
    hint = "raise workers or prefetch" if workers else "workers=1 or more would fetch beside the step"
    return f"The loader is a bottleneck: {waits:.1%} of a step is spent waiting for data; {hint}."


def memory(found: dict[str, Any]) -> str:
    """Peak memory, what holds it, and the formula beside it."""
    measured, rules, peak = found["measured"], found["formula"], found["peak"]
    whole = sum(measured.values())
    lines = [f"{'memory':<16} {'measured':>11} {'share':>6}  {'formula':>11}"]
    for key, name in KINDS.items():
        rule = rules.get(key)
        said = f"  {size(rule['bytes']):>11}  {rule['rule']}" if rule else ""
        lines.append(f"{name:<16} {size(measured[key]):>11} {measured[key] / whole if whole else 0:6.1%}{said}")
    lines.append(f"{'together':<16} {size(whole):>11}")
    if peak["of"] == "device":
        lines.append(f"peak on the device: {size(peak['bytes'])} allocated, {size(peak['reserved'])} reserved by the allocator")
    else:
        lines.append(f"peak of the process: {size(peak['bytes'])}, of which {size(peak['before'])} before the model was built (libraries)")
    lines.append(
        "Activations: what autograd holds for one batch's backward pass, each storage once; what a checkpointed part computes again in\n"
        "backward is not among them, nor the short-lived results that the peak has too."
    )
    return "\n".join(lines)


def hardware(found: dict[str, Any]) -> str:
    """The share of the hardware's measured peak."""
    peak = found["peak"]
    best = (
        f"{peak['flops_per_s'] / 1e9:,.0f} GFLOP/s, the best of {peak['products']} products {peak['size']} x {peak['size']} in "
        f"{peak['precision']}"
    )
    if found["flops"] is None:
        return f"share of the hardware: not counted ({found['reason']}); measured peak {best}"
    rate = f"{found['flops'] / 1e9:,.2f} GFLOP a step, {found['flops_per_s'] / 1e9:,.0f} GFLOP/s"
    lines = [
        f"share of the hardware: {found['share']:.1%} ({rate};",
        f"measured peak {best}, just now)",
        "Counted: matrix products and convolutions, as executed. Not counted: everything elementwise, norms, neurons"
        + (f", and {', '.join(found['not_counted'])}." if found["not_counted"] else "."),
    ]
    return "\n".join(lines)


def layers(found: dict[str, Any] | None) -> str:
    """How fast the network's kinds of layer are in each precision and layout, and what auto takes by that."""
    if not found or not found["kinds"]:
        return ""
    columns = list(dict.fromkeys(name for row in found["kinds"].values() for name in row["gflops"]))
    lines = [f"{'layers, GFLOP/s':<16} {'weights':>8}  {'  '.join(columns)}"]
    for kind, row in found["kinds"].items():
        cells = [f"{row['gflops'][name]:{len(name)}.0f}" if name in row["gflops"] else " " * len(name) for name in columns]
        lines.append(f"{kind:<16} {row['share']:8.0%}  {'  '.join(cells)}".rstrip())
    return "\n".join(
        [
            *lines,
            "Forward and backward of one layer on one thread by processor time, measured just now and kept for this machine. By it",
            f"precision=auto takes {found['precision']}, channels_last=auto takes {spelt(found['channels_last'])}: the plain one where the "
            "other is not faster by a tenth.",
        ]
    )


# ------------------------------------------------------------------------------------------------------- the ladder

HEADER = ("setting", "", "batch", "memory", "step ms", "samples/s", "gain", "over baseline")


def spelt(value: Any) -> str:
    """A value as the command line has it."""
    return {"True": "true", "False": "false", "None": "null"}.get(str(value), str(value))


def cells(row: dict[str, Any], changes: tuple[str, ...]) -> list[str]:
    """A rung of the ladder, cell by cell; * marks what changes the numbers of training."""
    changed = [f"{key}={spelt(value)}{'*' if key in changes else ''}" for key, value in row["changed"].items()]
    name = " ".join(changed) or "baseline"
    effective = f"{row['batch_size'] * row['accumulate']}"
    if row["state"] != "ok":
        used = size(row["memory"]) if row["memory"] else ""
        return [name, "", effective, used, f"{row['state']}: {row['reason']}"]
    gains = ["" if gain is None or not row["changed"] else f"x{gain:.2f}" for gain in (row["gain"], row["over_baseline"])]
    kept = "kept" if row["kept"] else ""
    return [name, kept, effective, size(row["memory"]), f"{row['step_ms']['median']:.1f}", f"{row['samples_per_s']['median']:.4g}", *gains]


def ladder(rows: list[dict[str, Any]], changes: tuple[str, ...]) -> str:
    """The ladder as a table."""
    table = [list(HEADER), *(cells(row, changes) for row in rows)]
    widths = [max((len(line[index]) for line in table if len(line) == len(HEADER)), default=0) for index in range(len(HEADER))]
    widths[0] = max(len(line[0]) for line in table)
    return "\n".join("  ".join(_padded(line, widths)).rstrip() for line in table)


def _padded(line: list[str], widths: list[int]) -> list[str]:
    left = (0, 1)
    whole = len(line) == len(HEADER)
    return [
        cell if not whole and index == len(line) - 1 else f"{cell:{'<' if index in left else '>'}{widths[index]}}"
        for index, cell in enumerate(line)
    ]


def verdict(found: dict[str, Any]) -> str:
    """What tuning came to."""
    tuned, lines = found["tuned"], []
    if found["stopped"]:
        lines.append(f"Not everything was tried: {found['stopped']}.")
    if tuned:
        lines.append(f"Fastest that fits: {_words(tuned)}")
    return "\n".join([*lines, outcome(found), *notes(found)])


def outcome(found: dict[str, Any]) -> str:
    """How the tuned setting stands to the baseline, in a sentence."""
    tuned, final, broken, first = found["tuned"], found["final"], found["broken"], found["rows"][0]
    if tuned and final is None:
        alone = f"tuned {[row for row in found['rows'] if row['kept']][-1]['samples_per_s']['median']:.4g} samples/s"
        if broken is not None:
            return f"{alone}; the baseline did not run again beside it ({broken['state']}: {broken['reason']}), so it is not compared."
        return f"{alone}; the baseline does not run here ({first['state']}: {first['reason']}), so there is nothing to compare it with."
    if not tuned and broken is not None:
        return (
            f"{_words(broken['setting'])} was faster, but did not run in the last comparison ({broken['state']}: {broken['reason']}): "
            "given up, the baseline stays as it is."
        )
    seen_once = [row for row in found["rows"] if row.get("unconfirmed")]
    if final is None and seen_once:
        row = seen_once[-1]
        return (
            f"{_words(row['changed'])} was x{row['gain']:.2f} of the baseline once, which there was no time to measure again, so the "
            "baseline stays as it is: give a larger tune_budget_minutes."
        )
    if final is None:
        return "Nothing was faster than the baseline, beyond the noise: it stays as it is."
    said = (
        f"baseline {final['baseline_samples_per_s']:.4g} -> tuned {final['tuned_samples_per_s']:.4g} samples/s, measured in turn: "
        f"x{final['ratio']:.2f}"
    )
    return f"{said}." if tuned else f"{said}: no faster after all, so the baseline stays as it is."


def _words(setting: dict[str, Any]) -> str:
    return " ".join(f"{key}={spelt(value)}" for key, value in setting.items())


def notes(found: dict[str, Any]) -> list[str]:
    """What the tuned setting does to the training itself."""
    tuned, before, lines = found["tuned"], found["baseline"], []
    if tuned.keys() & {"batch_size", "accumulate"}:
        after = before | tuned
        old, new = (setting["batch_size"] * setting["accumulate"] for setting in (before, after))
        if old == new:
            lines.append(f"An optimizer step still sees {new} samples; batch norm now sees {after['batch_size']} at a time.")
        else:
            lines.append(
                f"An optimizer step now sees {new} samples instead of {old}, so an epoch has {new / old:.3g} times fewer of them; lr is "
                f"as it was. To keep the old recipe: batch_size={before['batch_size']} accumulate={before['accumulate']}."
            )
    if "precision" in tuned:
        lines.append(f"precision={tuned['precision']} rounds otherwise than {found['precision']}: compare the first epochs.")
    if "optimizer" in tuned:
        lines.append("optimizer=adamw8bit is AdamW with 8-bit moments: another recipe, if a near one.")
    if tuned.keys() & {"compile", "channels_last"}:
        lines.append("compile and channels_last sum in another order: the same numbers but for rounding.")
    return lines
