"""A step of SeqSetVAE beside a loop over patients and sets."""


def test_both_sides_agree_and_are_timed_and_weighed(script, stays):
    out = script("bench_seqset", stays, "--batch", 4, "--rounds", 2)
    assert "loss of 4 stays: batched " in out
    (row,) = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| 4 |")]
    assert all(float(value) > 0 for value in row[1:6]) and all(float(value) >= 0 for value in row[6:]) and len(row) == 8
    paddings = [line for line in out.splitlines() if line.startswith(("| 16 |", "| 32 |")) and "%" in line]
    assert len(paddings) == 2
