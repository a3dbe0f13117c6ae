"""What the posterior's monitor costs."""


def test_each_preset_has_a_row_that_counts_its_updates(script, stays):
    out = script("bench_posterior", stays, "--steps", 4, "--batch", 2, "--presets", "posterior", "posterior_fast", "--every", 2, 4)
    rows = {line.split()[1]: line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| `")}
    assert list(rows) == ["`posterior`", "`posterior_fast`"] and "batch 2, 4 steps" in out
    for _, step, observed, updated, share in rows.values():
        assert float(step) > 0 and float(observed) > 0 and float(updated) > 0
        assert abs(float(share[:-1]) / 100 - (float(observed) + float(updated)) / float(step)) < 0.05
