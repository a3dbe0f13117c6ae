"""The results of `snnexp profile` as text, from the content of profile.json."""

from typing import Any

from snnexp.engine.pipeline.data_wait import BOTTLENECK

GIB = 2**30
KINDS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "buffers": "buffers, EMA",
    "activations": "activations",
}
TREE_HEADING = "where the time goes"


def format_bytes(count: float | None) -> str:
    """Return a number of bytes with its unit."""
    if count is None:
        return "-"
    for unit, name in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}" if unit == GIB else f"{count / unit:.1f} {name}"
    return f"{count:.0f} B"


def profile_text(profile: dict[str, Any]) -> str:
    """Return the profile of one setting as text."""
    parts = [heading(profile), speed(profile), tree(profile)]
    parts += [memory(profile["memory"]), hardware(profile["hardware"]), layers(profile["layers"])]
    return "\n\n".join(part for part in parts if part)


def heading(profile: dict[str, Any]) -> str:
    """Return the lines on what was measured, with which settings and on which hardware."""
    size, accumulate = profile["batch_size"], profile["accumulate"]
    batch = f"batch {size}" + (f" x {accumulate} accumulated = {size * accumulate}" if accumulate > 1 else "")
    how = (", channels_last" if profile["channels_last"] else "") + (", compiled" if profile["compile"] else "")
    where = profile["device"] + (f", {profile['threads']} threads of {profile['cores']} cores" if profile["device"] == "cpu" else "")
    return (
        f"{profile['model']} on {profile['dataset']}: {profile['parameters']:,} parameters, {batch}, {profile['precision']}{how}, "
        f"workers={profile['workers']}\n{where}, torch {profile['torch']}, LIF: {profile['neuron']}"
    )


def speed(profile: dict[str, Any]) -> str:
    """Return the lines on the time of a step and samples per second."""
    step, rate = profile["step_ms"], profile["samples_per_s"]
    busy = " (far above: the machine does something else too, or steps differ)" if step["p95"] > 1.5 * step["median"] else ""
    return (
        f"{profile['steps']} steps after {profile['warmup']} of warm-up: median {step['median']:.1f} ms, min {step['min']:.1f}, "
        f"p95 {step['p95']:.1f}{busy}\n"
        f"{rate['median']:.4g} samples/s (median step; best {rate['best']:.4g}, all steps together {rate['mean']:.4g})"
    )


def tree(profile: dict[str, Any]) -> str:
    """Return the table of the time of a step by parts, and whether the loader is the bottleneck."""
    rows = profile.get("tree") or []
    if not rows:
        return ""
    names = [("" if row["name"] == "step" else "  " * (row["depth"] + 1)) + row["name"].rpartition("/")[2] for row in rows]
    width = max(map(len, [*names, TREE_HEADING]))
    lines = [f"{TREE_HEADING:<{width}}  {'ms':>9} {'own ms':>9} {'p95':>9}  share of the step"]
    for name, row in zip(names, rows, strict=True):
        lines.append(f"{name:<{width}}  {row['inclusive_ms']:9.2f} {row['exclusive_ms']:9.2f} {row['p95_ms']:9.2f}  {row['share']:6.1%}")
    return "\n".join([*lines, loader(rows, profile["workers"])])


def loader(rows: list[dict[str, Any]], workers: int) -> str:
    """Return the line on whether the loader is the bottleneck."""
    waits = next((row["share"] for row in rows if row["name"] == "data"), 0.0)
    if waits < BOTTLENECK:
        return f"The loader is no bottleneck: {waits:.1%} of a step is spent waiting for data."
    hint = "raise workers or prefetch" if workers else "workers=1 or more would fetch beside the step"
    return f"The loader is a bottleneck: {waits:.1%} of a step is spent waiting for data; {hint}."


def memory(facts: dict[str, Any]) -> str:
    """Return the table of memory by kind of tensor, measured and by formula, and the peak."""
    measured, rules, peak = facts["measured"], facts["formula"], facts["peak"]
    whole = sum(measured.values())
    lines = [f"{'memory':<16} {'measured':>11} {'share':>6}  {'formula':>11}"]
    for key, name in KINDS.items():
        rule = rules.get(key)
        formula = f"  {format_bytes(rule['bytes']):>11}  {rule['rule']}" if rule else ""
        lines.append(f"{name:<16} {format_bytes(measured[key]):>11} {measured[key] / whole if whole else 0:6.1%}{formula}")
    lines.append(f"{'together':<16} {format_bytes(whole):>11}")
    highest = format_bytes(peak["bytes"])
    if peak["of"] == "device":
        lines.append(f"peak on the device: {highest} allocated, {format_bytes(peak['reserved'])} reserved by the allocator")
    else:
        before = format_bytes(peak["before"])
        lines.append(f"peak of the process: {highest}, of which {before} before the model was built (libraries)")
    lines.append(
        "Activations: what autograd holds for one batch's backward pass, each storage once; what a checkpointed part computes again in\n"
        "backward is not among them, nor the short-lived results that the peak has too."
    )
    return "\n".join(lines)


def hardware(facts: dict[str, Any]) -> str:
    """Return the lines on the share of the hardware's measured peak speed."""
    peak = facts["peak"]
    best = (
        f"{peak['flops_per_s'] / 1e9:,.0f} GFLOP/s, the best of {peak['products']} products {peak['size']} x {peak['size']} in "
        f"{peak['precision']}"
    )
    if facts["flops"] is None:
        return f"share of the hardware: not counted ({facts['reason']}); measured peak {best}"
    rate = f"{facts['flops'] / 1e9:,.2f} GFLOP a step, {facts['flops_per_s'] / 1e9:,.0f} GFLOP/s"
    lines = [
        f"share of the hardware: {facts['share']:.1%} ({rate};",
        f"measured peak {best}, just now)",
        "Counted: matrix products and convolutions, as executed. Not counted: everything elementwise, norms, neurons"
        + (f", and {', '.join(facts['not_counted'])}." if facts["not_counted"] else "."),
    ]
    return "\n".join(lines)


def layers(facts: dict[str, Any] | None) -> str:
    """Return the table of the speed of the network's kinds of layer in each precision and layout, and what `auto` chooses by it."""
    if not facts or not facts["kinds"]:
        return ""
    columns = list(dict.fromkeys(name for row in facts["kinds"].values() for name in row["gflops"]))
    lines = [f"{'layers, GFLOP/s':<16} {'weights':>8}  {'  '.join(columns)}"]
    for kind, row in facts["kinds"].items():
        cells = [f"{row['gflops'][name]:{len(name)}.0f}" if name in row["gflops"] else " " * len(name) for name in columns]
        lines.append(f"{kind:<16} {row['share']:8.0%}  {'  '.join(cells)}".rstrip())
    return "\n".join(
        [
            *lines,
            "Forward and backward of one layer on one thread by processor time, measured just now and kept for this machine. By it",
            f"precision=auto takes {facts['precision']}, channels_last=auto takes {as_typed(facts['channels_last'])}: the plain one where "
            "the other is not faster by a tenth.",
        ]
    )


# ------------------------------------------------------------------------------------------------------- the ladder

HEADER = ("setting", "", "batch", "memory", "step ms", "samples/s", "gain", "over baseline")


def as_typed(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    return {"True": "true", "False": "false", "None": "null"}.get(str(value), str(value))


def cells(row: dict[str, Any], changes: tuple[str, ...]) -> list[str]:
    """Return the cells of a row of the search; * marks what changes the results of training."""
    changed = [f"{key}={as_typed(value)}{'*' if key in changes else ''}" for key, value in row["changed"].items()]
    name = " ".join(changed) or "baseline"
    effective = f"{row['batch_size'] * row['accumulate']}"
    if row["state"] != "ok":
        used = format_bytes(row["memory"]) if row["memory"] else ""
        return [name, "", effective, used, f"{row['state']}: {row['reason']}"]
    gains = ["" if gain is None or not row["changed"] else f"x{gain:.2f}" for gain in (row["gain"], row["over_baseline"])]
    kept = "kept" if row["kept"] else ""
    step_ms, rate = row["step_ms"]["median"], row["samples_per_s"]["median"]
    return [name, kept, effective, format_bytes(row["memory"]), f"{step_ms:.1f}", f"{rate:.4g}", *gains]


def ladder(rows: list[dict[str, Any]], changes: tuple[str, ...]) -> str:
    """Return the rows of the search as a table."""
    table = [list(HEADER), *(cells(row, changes) for row in rows)]
    widths = [max((len(line[index]) for line in table if len(line) == len(HEADER)), default=0) for index in range(len(HEADER))]
    widths[0] = max(len(line[0]) for line in table)
    return "\n".join("  ".join(_padded(line, widths)).rstrip() for line in table)


def _padded(line: list[str], widths: list[int]) -> list[str]:
    left = (0, 1)
    is_complete = len(line) == len(HEADER)
    return [
        cell if not is_complete and index == len(line) - 1 else f"{cell:{'<' if index in left else '>'}{widths[index]}}"
        for index, cell in enumerate(line)
    ]


def verdict(tuning: dict[str, Any]) -> str:
    """Return the result of tuning as text."""
    tuned, lines = tuning["tuned"], []
    if tuning["stopped"]:
        lines.append(f"Not everything was tried: {tuning['stopped']}.")
    if tuned:
        lines.append(f"Fastest that fits: {_words(tuned)}")
    return "\n".join([*lines, outcome(tuning), *notes(tuning)])


def outcome(tuning: dict[str, Any]) -> str:
    """Return a sentence that compares the tuned setting with the baseline."""
    tuned, final, broken, first = tuning["tuned"], tuning["final"], tuning["broken"], tuning["rows"][0]
    if tuned and final is None:
        alone = f"tuned {[row for row in tuning['rows'] if row['kept']][-1]['samples_per_s']['median']:.4g} samples/s"
        if broken is not None:
            return f"{alone}; the baseline did not run again beside it ({broken['state']}: {broken['reason']}), so it is not compared."
        return f"{alone}; the baseline does not run here ({first['state']}: {first['reason']}), so there is nothing to compare it with."
    if not tuned and broken is not None:
        return (
            f"{_words(broken['setting'])} was faster, but did not run in the last comparison ({broken['state']}: {broken['reason']}): "
            "given up, the baseline stays as it is."
        )
    unconfirmed = [row for row in tuning["rows"] if row.get("unconfirmed")]
    if final is None and unconfirmed:
        row = unconfirmed[-1]
        return (
            f"{_words(row['changed'])} was x{row['gain']:.2f} of the baseline once, which there was no time to measure again, so the "
            "baseline stays as it is: give a larger tune_budget_minutes."
        )
    if final is None:
        return "Nothing was faster than the baseline, beyond the noise: it stays as it is."
    comparison = (
        f"baseline {final['baseline_samples_per_s']:.4g} -> tuned {final['tuned_samples_per_s']:.4g} samples/s, measured in turn: "
        f"x{final['ratio']:.2f}"
    )
    return f"{comparison}." if tuned else f"{comparison}: no faster after all, so the baseline stays as it is."


def _words(setting: dict[str, Any]) -> str:
    return " ".join(f"{key}={as_typed(value)}" for key, value in setting.items())


def notes(tuning: dict[str, Any]) -> list[str]:
    """Return lines on how the tuned setting changes the training itself."""
    tuned, before, lines = tuning["tuned"], tuning["baseline"], []
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
        lines.append(f"precision={tuned['precision']} rounds otherwise than {tuning['precision']}: compare the first epochs.")
    if "optimizer" in tuned:
        lines.append("optimizer=adamw8bit is AdamW with 8-bit moments: another recipe, if a near one.")
    if tuned.keys() & {"compile", "channels_last"}:
        lines.append("compile and channels_last sum in another order: the same numbers but for rounding.")
    return lines
