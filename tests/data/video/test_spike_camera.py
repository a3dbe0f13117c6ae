import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from data.video.made_clips import some
from snnexp.data.video.spike_camera import (
    Box,
    Representation,
    Stream,
    check_spikes,
    first_charge,
    frames_in_dat,
    interpolate,
    luminance,
    middle_tfi_of,
    open_dat,
    pack_rows,
    rates,
    simulate,
    tfi_of,
    tfp_of,
    window_start,
    write_dat,
)
from snnexp.errors import UserError


def test_a_dat_file_is_bottom_up_with_bit_0_on_the_left(tmp_path: Path) -> None:
    # Two frames of 16 x 2: the first bytes are the bottom row.
    (tmp_path / "a.dat").write_bytes(bytes([0b00000001, 0b10000000, 0b00000110, 0, 255, 0, 0, 1]))
    read = open_dat(tmp_path / "a.dat", 2, 16).read(0, 2)
    expected = np.zeros((2, 2, 16), dtype=np.uint8)
    expected[0, 1, [0, 15]] = 1
    expected[0, 0, [1, 2]] = 1
    expected[1, 1, :8] = 1
    expected[1, 0, 8] = 1
    assert read.dtype == np.uint8 and np.array_equal(read, expected)


@pytest.mark.parametrize(("height", "width"), [(6, 16), (4, 10)])  # rows of whole bytes, and rows that begin within one
def test_a_dat_file_gives_back_what_was_written(height: int, width: int, tmp_path: Path) -> None:
    spikes = some(20, height, width)
    write_dat(tmp_path / "a.dat", spikes)
    assert (tmp_path / "a.dat").stat().st_size == 20 * height * width // 8 == 20 * len(spikes[0].ravel()) // 8
    for stream in (open_dat(tmp_path / "a.dat", height, width), pickle.loads(pickle.dumps(open_dat(tmp_path / "a.dat", height, width)))):
        assert stream.count == 20 and np.array_equal(stream.read(0, 20), spikes)
        box = Box(1, 3, 2, 6)
        assert np.array_equal(stream.read(4, 5, box), spikes[4:9, 1:3, 3:9])


def test_a_mapped_stream_pickles_as_its_place(tmp_path: Path) -> None:
    write_dat(tmp_path / "a.dat", some(800))
    assert len(pickle.dumps(open_dat(tmp_path / "a.dat", 6, 16))) < 1000


def test_packed_rows_of_any_width_are_a_stream() -> None:
    spikes = some(20, 5, 13)
    stream = Stream(pack_rows(spikes), 5, 13)
    assert stream.packed.shape == (20, 5, 2)
    assert np.array_equal(stream.read(0, 20), spikes) and np.array_equal(stream.read(3, 2, Box(1, 7, 3, 6)), spikes[3:5, 1:4, 7:])


def test_a_dat_file_of_a_wrong_size_is_named_with_what_was_expected(tmp_path: Path) -> None:
    path = tmp_path / "a.dat"
    path.write_bytes(b"\0" * 30)
    with pytest.raises(UserError, match=r"a\.dat has 30 bytes.* 12 bytes \(16 x 6 .*24 for 2 frames, 36 for 3"):
        open_dat(path, 6, 16)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="0 bytes"):
        open_dat(path, 6, 16)
    with pytest.raises(UserError, match="whole bytes"):
        open_dat(path, 3, 5)
    with pytest.raises(UserError, match=r"b\.dat: cannot be read"):
        frames_in_dat(tmp_path / "b.dat", 6, 16)


def test_windows_lie_within_the_stream() -> None:
    assert [window_start(m, 5, 20) for m in (0, 2, 3, 10, 17, 19)] == [0, 0, 1, 8, 15, 15]
    assert window_start(10, 4, 20) == 8  # frames 8 to 11: the moment is the later of the two in the middle
    assert window_start(9.5, 4, 20) == 8  # 8 to 11: in the middle of them
    assert window_start(9.5, 5, 20) == 8  # 8 to 12: the later of the two that meet is in the middle
    spikes = some()
    stream = Stream(pack_rows(spikes), 6, 16)
    assert np.array_equal(stream.around(1, 5), spikes[:5]) and np.array_equal(stream.around(10, 5), spikes[8:13])


def test_backwards_a_window_is_that_of_the_stream_read_backwards() -> None:
    spikes = some()
    stream, turned = Stream(pack_rows(spikes), 6, 16), Stream(pack_rows(spikes[::-1]), 6, 16)
    for number in (1, 4, 5, 20):
        for moment in np.arange(0, 19.5, 0.5):
            assert np.array_equal(stream.around(moment, number, backwards=True)[::-1], turned.around(19 - moment, number))
    assert np.array_equal(stream.around(10, 4, backwards=True), spikes[9:13])  # forwards 8 to 11
    for number, moment in ((5, 10), (4, 9.5)):  # in the very middle of the window: the same ones
        assert np.array_equal(stream.around(moment, number, backwards=True), stream.around(moment, number))


def test_the_pixel_integrates_fires_and_keeps_the_rest() -> None:
    # theta 2, light 0.75 from 0.5 on: 1.25, 2.0 fires -> 0, 0.75, 1.5, 2.25 fires -> 0.25, 1.0
    light = [np.array([[0.75, 0.0, 1.0]], dtype=np.float32)] * 6
    fired = np.stack(list(simulate(light, 2, np.array([[0.5, 1.75, 0.0]]))))[:, 0]
    assert fired[:, 0].tolist() == [False, True, False, False, True, False]
    assert not fired[:, 1].any()
    assert fired[:, 2].tolist() == [False, True] * 3
    with pytest.raises(UserError, match=r"theta is 0\.5; allowed are 1"):
        next(simulate(light, 0.5, np.zeros((1, 3))))


def test_the_rate_of_a_pixel_is_its_light_over_the_threshold() -> None:
    light = np.linspace(0, 1, 16, dtype=np.float32)[None]
    count = sum(simulate([light] * 400, 2.5, first_charge(1, 16, 2.5, [3])))
    assert np.abs(count - 400 * light / 2.5).max() < 1.01


def test_the_first_charge_is_uniform_below_the_threshold_and_follows_from_the_seed() -> None:
    charge = first_charge(100, 100, 4.0, [7, 1])
    assert np.array_equal(charge, first_charge(100, 100, 4.0, [7, 1])) and not np.array_equal(charge, first_charge(100, 100, 4.0, [7, 2]))
    assert charge.min() >= 0 and charge.max() < 4 and abs(charge.mean() - 2) < 0.1 and abs(charge.std() - 4 / 12**0.5) < 0.05


def test_luminance() -> None:
    picture = np.zeros((3, 1, 4), dtype=np.uint8)
    picture[0, 0, 0] = picture[1, 0, 1] = picture[2, 0, 2] = 255
    picture[:, 0, 3] = 51
    assert luminance(picture)[0] == pytest.approx([0.299, 0.587, 0.114, 0.2], abs=1e-6)
    assert luminance(np.full((1, 1, 1), 51, dtype=np.uint8)).item() == pytest.approx(0.2)


def test_frames_between_two_are_linear() -> None:
    frames = [np.full((1, 1), value, dtype=np.float32) for value in (0.0, 1.0, 0.0)]
    assert [f.item() for f in interpolate(frames, 4)] == [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0]
    assert [f.item() for f in interpolate(frames, 1)] == [0, 1, 0]


def column(*spikes: int, frames: int = 12) -> np.ndarray:
    x = np.zeros((frames, 1, 1), dtype=np.uint8)
    x[list(spikes)] = 1
    return x


@pytest.mark.parametrize(
    ("spikes", "at", "expected"),
    [
        ((2, 6), 4, 1 / 4),
        ((2, 6), 5.5, 1 / 4),
        ((2, 6, 9), 6, 2 / 7),  # two intervals meet at the moment
        ((2, 6), 2, 1 / 4),  # the first spike: only the interval after it
        ((2, 6), 6, 1 / 4),
        ((2, 6, 9), 0, 2 / 7),  # before the first: the mean of all
        ((2, 6, 9), 11, 2 / 7),
        ((5,), 5, 1 / 12),
        ((5,), 0, 1 / 12),
        ((), 3, 0),
        (tuple(range(12)), 5.5, 1),
    ],
)
def test_rates_by_hand(spikes: tuple[int, ...], at: float, expected: float) -> None:
    assert rates(column(*spikes), [at]).item() == pytest.approx(expected)


def test_rates_of_many_pixels_are_those_of_each() -> None:
    spikes = some(15, 200, 100, rate=0.2)  # more than one block
    whole = rates(spikes, [0, 3.5, 7])
    for y, x in ((0, 0), (150, 50), (163, 84), (199, 99)):
        assert np.array_equal(whole[:, y, x], rates(spikes[:, y : y + 1, x : x + 1], [0, 3.5, 7])[:, 0, 0])


def test_representations_by_hand() -> None:
    spikes = column(0, 1, 3, 8)  # of 12
    taken = {kind: Representation(kind, 12, 3).stack(spikes).ravel().tolist() for kind in ("raw", "voxel", "tfp", "tfi")}
    assert taken["raw"] == [1, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0]
    assert taken["voxel"] == taken["tfp"] == [3, 0, 1]
    assert taken["tfi"] == pytest.approx([1 / 2, 1 / 5, 3 / 8])  # at 1.5, 5.5, 9.5
    counts = torch.tensor([[[[[3]], [[0]], [[1]]]]], dtype=torch.uint8)
    assert Representation("tfp", 12, 3).finish(counts).flatten().tolist() == [0.75, 0, 0.25]
    log = np.log1p([3, 0, 1])
    assert Representation("voxel", 12, 3).finish(counts).flatten().numpy() == pytest.approx((log - log.mean()) / log.std(), abs=1e-6)
    assert [Representation(kind, 12, 3).channels for kind in ("raw", "voxel", "tfp", "tfi")] == [12, 3, 3, 3]


def test_voxels_are_standardised_by_clip_and_silence_is_0() -> None:
    counts = torch.from_numpy(some(60, 6, 16).reshape(2, 3, 10, 6, 16))
    data_set = Representation("voxel", 50, 10).finish(counts)
    assert data_set.mean(dim=(1, 2, 3, 4)).abs().max() < 1e-5 and (data_set.std(dim=(1, 2, 3, 4), correction=0) - 1).abs().max() < 1e-5
    assert not Representation("voxel", 50, 10).finish(torch.zeros(1, 2, 10, 4, 4)).any()


@pytest.mark.parametrize("kind", ["raw", "voxel", "tfp", "tfi"])
@pytest.mark.parametrize(("window", "bins"), [(20, 5), (15, 5), (15, 15)])
def test_spikes_read_backwards_give_the_channels_in_reverse(kind: str, window: int, bins: int) -> None:
    way, spikes = Representation(kind, window, bins), some(window)
    assert np.array_equal(way.stack(spikes[::-1]), way.stack(spikes)[::-1])


def test_counts_beyond_a_byte_are_kept() -> None:
    assert Representation("tfp", 600, 2).stack(np.ones((600, 1, 1), dtype=np.uint8)).ravel().tolist() == [300, 300]


def test_what_a_representation_refuses() -> None:
    with pytest.raises(UserError, match=r"spikes is 'vox'; allowed are raw, voxel, tfp, tfi"):
        Representation("vox", 10, 5)
    with pytest.raises(UserError, match=r"bins is 4; .*window=10 allowed are 1, 2, 5, 10"):
        Representation("voxel", 10, 4)
    with pytest.raises(UserError, match="window is 0"):
        Representation("raw", 0, 1)
    assert Representation("raw", 10, 4).channels == 10


def test_tfp_and_tfi_of_a_moment() -> None:
    spikes = some(301)
    stream = Stream(pack_rows(spikes), 6, 16)
    assert np.array_equal(tfp_of(stream, 150, 32), spikes[134:166].sum(0).astype(np.float32) / 32)
    assert np.array_equal(tfi_of(stream, 150), rates(spikes[86:215], [64])[0])
    assert np.array_equal(tfi_of(stream, 3), rates(spikes[:129], [3])[0])
    box = Box(2, 5, 3, 7)
    assert np.array_equal(tfi_of(stream, 150, box), tfi_of(stream, 150)[2:5, 5:12])


@pytest.mark.parametrize(
    ("key", "reach", "interval", "joined"),
    [
        (4, 3, 5 - 2, 1 / 3),
        (5, 4, 9 - 5, 2 / (9 - 2)),  # a spike on the key begins the interval; TFI takes both that meet there
        (5, 3, 8 - 5, None),  # none up to 3 frames after the key
        (8, 3, 9 - 5, None),  # none among the 3 frames that end with it
        (8, 4, 9 - 5, 1 / 4),
        (4.5, 3, 5 - 2, 1 / 3),
        (1, 3, 2 - (1 - 3), None),
        (10, 3, 13 - 9, None),  # the last frame
    ],
)
def test_middle_tfi_by_hand(key, reach, interval, joined, monkeypatch) -> None:
    monkeypatch.setattr("snnexp.data.video.spike_camera.REACH", reach)
    spikes = np.zeros((11, 1, 1), dtype=np.uint8)
    spikes[[2, 5, 9]] = 1
    stream = Stream(pack_rows(spikes), 1, 1)
    assert middle_tfi_of(stream, key).item() == np.float32(1 / interval)
    if joined is not None:
        assert rates(spikes, [key]).item() == pytest.approx(joined)


def test_middle_tfi_looks_outwards_frame_by_frame() -> None:
    spikes = some(301) & (np.arange(6)[:, None] > 0)  # the first row is dark
    spikes[150, 3] = 1
    stream, box = Stream(pack_rows(spikes), 6, 16), Box(2, 5, 3, 7)
    for key in (0, 30, 150, 300):
        begin, end = np.full((6, 16), key - 64), np.full((6, 16), key + 64)
        for frame in range(max(key - 63, 0), key + 1):
            begin[spikes[frame] == 1] = frame
        for frame in range(min(key + 64, 300), key, -1):
            end[spikes[frame] == 1] = frame
        assert np.array_equal(middle_tfi_of(stream, key), 1 / (end - begin).astype(np.float32))
        assert np.array_equal(middle_tfi_of(stream, key, box), middle_tfi_of(stream, key)[2:5, 5:12])
    assert middle_tfi_of(stream, 150)[0, 0] == np.float32(1 / 128)


@pytest.mark.parametrize(
    ("begin", "found"),
    [
        (b"% Data file containing CD events.\n% Version 2\n% Width 640\n", "a Prophesee recording"),
        (b"% Date 2019-06-27 14:07:40\n", "a Prophesee recording"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
        (b"#!AER-DAT2.0\r\n", "AEDAT 2.0"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x1f\x8b\x08\x08", "gzip"),
    ],
)
def test_a_dat_file_of_another_format_is_refused_by_its_name(tmp_path: Path, begin: bytes, found: str) -> None:
    (tmp_path / "a.dat").write_bytes(begin + b"\1" * (120 - len(begin)))  # as long as ten frames
    with pytest.raises(UserError, match=rf"a\.dat: is {found}.*no header"):
        open_dat(tmp_path / "a.dat", 6, 16)


def test_spike_files_without_a_spike_are_refused_if_no_other_of_the_clip_has_one(tmp_path: Path) -> None:
    write_dat(tmp_path / "dark.dat", np.zeros((5, 6, 16)))
    write_dat(tmp_path / "lit.dat", some(5))
    check_spikes([tmp_path / "dark.dat", tmp_path / "lit.dat"])
    with pytest.raises(UserError, match=r"dark\.dat: holds not a single spike\."):
        check_spikes([tmp_path / "dark.dat"])
    with pytest.raises(UserError, match="neither do the others of its clip"):
        check_spikes([tmp_path / "dark.dat"] * 2)


def test_spike_files_with_a_pixel_in_each_byte_are_refused(tmp_path: Path) -> None:
    spikes = np.unpackbits(np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8))
    (tmp_path / "bytes.dat").write_bytes(spikes.tobytes())
    with pytest.raises(UserError, match=r"bytes\.dat: its bytes are all 0 or 1, a pixel each as it seems; needed is 1 bit a pixel"):
        check_spikes([tmp_path / "bytes.dat"])
    (tmp_path / "bits.dat").write_bytes(np.packbits(spikes).tobytes())
    (tmp_path / "bright.dat").write_bytes(bytes([0, 255]) * 1000)
    check_spikes([tmp_path / "bits.dat"])
    check_spikes([tmp_path / "bright.dat"])
