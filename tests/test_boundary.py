"""The pack at ComfyUI's door: folders, progress, interruption and the memory manager, against small fakes."""

import threading

import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, Interrupted, install
from samkit.nodes.model import SAMModelLoader
from samkit.nodes.predict import Segment
from samkit.sam import SAM_MODELS, encode
from samkit.sam.placement.devices import device_for, placed
from samkit.sam.placement.host import PlainHost, move
from samkit.sam.placement.precision import encoder_dtype
from samkit.sam.placement.resident import resident_of
from samkit.sam.tasks.embed import cache
from samkit.utils.comfy_folders import CHECKPOINT_SUFFIXES, model_folders, model_names, model_path

CLICK = '[{"x": 30, "y": 25}]'


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    return install(monkeypatch, FakeComfyUI(tmp_path))


def images(count):
    return as_image(*(make_image(60, 80, seed) for seed in range(count)))


def test_the_sams_folder_is_registered_once(comfy, tmp_path):
    assert model_folders("sams") == model_folders("sams") == [tmp_path / "models" / "sams"]
    assert model_names("sams") == [] and comfy.folder_names_and_paths["sams"][1] == CHECKPOINT_SUFFIXES


def test_folders_of_others_stay_and_only_endings_are_added(comfy, tmp_path):
    theirs, suffixes = [str(tmp_path / "elsewhere")], {".ckpt"}
    comfy.folder_names_and_paths["sams"] = (theirs, suffixes)
    assert not model_names("sams") and model_folders("sams") == [tmp_path / "elsewhere", tmp_path / "models" / "sams"]
    paths, now = comfy.folder_names_and_paths["sams"]
    assert paths is theirs and now == {".ckpt", *CHECKPOINT_SUFFIXES} and suffixes == {".ckpt"}


def test_new_files_in_any_folder_appear_in_the_list(comfy, tmp_path):
    comfy.folder_names_and_paths["sams"] = ([str(tmp_path / "extra")], set())
    assert "found/later.pth" not in SAM_MODELS.names()
    (tmp_path / "extra" / "found").mkdir(parents=True)
    (tmp_path / "extra" / "found" / "later.pth").touch()
    assert any(
        name.replace("\\", "/") == "found/later.pth" for name in SAMModelLoader.INPUT_TYPES()["required"]["model_name"][0]
    )
    found = SAM_MODELS.find("found/later.pth").path
    assert model_path("sams", "found/later.pth") == found == tmp_path / "extra" / "found" / "later.pth"


def test_progress_moves_per_frame(comfy, tiny_model):
    encode(tiny_model, images(3))
    assert [(bar.total, bar.current) for bar in comfy.bars] == [(3, 3)]
    Segment().execute(tiny_model, images(4), positive_coords=CLICK)
    assert [(bar.total, bar.current) for bar in comfy.bars] == [(3, 3), (8, 8)], "one bar: a frame is encoded, then decoded"


def test_cancel_stops_within_a_frame_and_keeps_what_is_done(comfy, tiny_model):
    comfy.interrupted_after = 2
    with pytest.raises(Interrupted):
        encode(tiny_model, images(5))
    assert comfy.bars[0].current == 2
    comfy.interrupted_after = 4
    encode(tiny_model, images(5))
    comfy.interrupted_after = 1
    with pytest.raises(Interrupted):
        Segment().execute(tiny_model, images(5), positive_coords=CLICK)


@pytest.mark.parametrize("mode", ["AUTO", "Prefer GPU"])
def test_a_gpu_run_goes_through_the_memory_manager(comfy, tiny_model, mode):
    comfy.device = torch.device("meta")  # any device but the CPU: a model there has no memory here
    with placed(tiny_model, mode, 77) as device:
        assert device.type == "meta" and tiny_model.pixel_mean.is_meta
    assert len(comfy.loaded) == 1 and comfy.loaded[0].model is resident_of(tiny_model).patcher
    assert all(comfy.full_loads), "a plain nn.Linear cannot run half loaded"
    assert comfy.memory_required == [77]
    with placed(tiny_model, mode):
        pass
    assert len(comfy.loaded) == 1, "one handle per model"


def test_a_plain_sam_goes_through_the_memory_manager_too(comfy, tiny_sam):
    comfy.device = torch.device("meta")
    before = list(tiny_sam.state_dict())
    with placed(tiny_sam, "AUTO"):
        assert tiny_sam.pixel_mean.is_meta
    assert comfy.loaded[0].model is resident_of(tiny_sam).patcher
    assert list(tiny_sam.state_dict()) == before and tiny_sam.pixel_mean.is_cpu
    comfy.loaded[0].model.model.to(torch.device("cpu"))


def test_cpu_mode_takes_the_model_off_the_gpu_and_the_managers_books(comfy, tiny_model):
    comfy.device = torch.device("meta")
    other = type("Other", (), {"load_device": comfy.device})()
    comfy.loaded.append(type("Entry", (), {"model": other})())
    with placed(tiny_model, "AUTO"):
        pass
    assert len(comfy.loaded) == 2
    with placed(tiny_model, "CPU") as device:
        assert device.type == "cpu" and tiny_model.pixel_mean.device.type == "cpu"
    assert [entry.model for entry in comfy.loaded] == [other] and resident_of(tiny_model).device is None


def test_where_each_mode_runs(comfy):
    comfy.device = torch.device("cuda", 1)
    assert [device_for(mode) for mode in ("AUTO", "Prefer GPU", "CPU")] == [comfy.device, comfy.device, torch.device("cpu")]


@pytest.fixture
def plain(monkeypatch):
    """Outside ComfyUI, on a machine with a device that is not the CPU."""
    monkeypatch.setattr(PlainHost, "device", lambda self: torch.device("meta"))


def test_outside_comfyui_a_model_is_loaded_and_auto_unloads_it(plain, tiny_model):
    for mode, expected, stays in (("AUTO", "meta", None), ("Prefer GPU", "meta", "meta"), ("CPU", "cpu", None)):
        with placed(tiny_model, mode) as device:
            assert device.type == tiny_model.pixel_mean.device.type == expected
        assert tiny_model.pixel_mean.is_cpu
        there = resident_of(tiny_model).device
        assert (there and there.type) == stays, mode


def test_auto_unloads_after_an_error_too(plain, tiny_model):
    with pytest.raises(RuntimeError, match="out of memory"), placed(tiny_model, "AUTO"):
        raise RuntimeError("out of memory")
    assert tiny_model.pixel_mean.is_cpu and resident_of(tiny_model).device is None


@pytest.mark.parametrize(("place", "inside"), [("cpu", True), ("cpu", False), ("meta", True)])
@pytest.mark.parametrize("mode", ["AUTO", "Prefer GPU", "CPU"])
def test_threads_wait_for_each_other_only_where_a_model_has_several_places(
    request, tiny_model, monkeypatch, place, inside, mode
):
    if inside:
        request.getfixturevalue("comfy").device = torch.device(place)
    else:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr("samkit.sam.placement.devices._place", lambda network, device, memory: device)
    entered, leave = threading.Event(), threading.Event()

    def second():
        with placed(tiny_model, "AUTO"):
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=second)
    with placed(tiny_model, mode):
        other.start()
        assert entered.wait(0.2 if place != "cpu" else 10) == (place == "cpu")
    assert entered.wait(10), "its turn comes when the first is done"
    leave.set()
    other.join()


def test_placing_itself_is_always_in_turn(comfy, tiny_model, monkeypatch):
    together, alone = threading.Barrier(2), []

    def place(network, device, memory):
        try:
            together.wait(0.02)  # which another one that is in here, too, would end
        except threading.BrokenBarrierError:
            alone.append(1)
            together.reset()
        return device

    def use():
        with placed(tiny_model, "AUTO"):
            pass

    monkeypatch.setattr("samkit.sam.placement.devices._place", place)
    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alone == [1, 1, 1, 1]


def test_a_model_that_is_there_is_not_moved(tiny_model, monkeypatch):
    moves = []
    monkeypatch.setattr(type(tiny_model), "to", lambda self, device: moves.append(str(device)))
    move(tiny_model, torch.device("cpu"))
    assert moves == []
    move(tiny_model, torch.device("meta"))
    move(tiny_model, torch.device("cuda", 1))
    tiny_model.mask_decoder.iou_token.weight = torch.nn.Parameter(torch.empty(1, 32, device="meta"))
    move(tiny_model, torch.device("cpu"))
    assert moves == ["meta", "cuda:1", "cpu"], "a part that is elsewhere, or has been replaced, is seen"


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cuda", torch.float16),
        ("auto", "cpu", torch.float32),
        ("auto", "mps", torch.float32),
        ("bf16", "cpu", torch.bfloat16),
        ("fp16", "cuda", torch.float16),
        ("fp16", "cpu", torch.float32),
        ("fp32", "cuda", torch.float32),
    ],
)
def test_what_the_encoder_computes_in(comfy, tiny_model, precision, device, expected):
    tiny_model.precision = precision
    assert encoder_dtype(tiny_model, torch.device(device)) == expected


def test_a_plain_sam_computes_in_float32(tiny_sam):
    assert encoder_dtype(tiny_sam, torch.device("cuda")) == torch.float32


def test_threads_do_not_mix_images(tiny_model):
    """A SamPredictor shared by two threads answers with the other's pixels; a stateless decode cannot."""
    from concurrent.futures import ThreadPoolExecutor

    def run(seed):
        height, width = 60 + seed, 80 - seed
        image = as_image(make_image(height, width, seed))
        return Segment().execute(tiny_model, image, positive_coords=CLICK)[3]

    alone = [run(seed) for seed in range(8)]
    cache.clear()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(8)))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other)
