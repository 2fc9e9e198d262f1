"""Words as prompts: boxes, labels and scores are transformers' own, for a small Grounding DINO with random weights."""

import gc
import hashlib
import json
import re
import subprocess
import sys
import warnings
import weakref
from collections import namedtuple

import numpy as np
import pytest
import torch
import transformers
from conftest import as_image, make_image
from fakes import FakeComfyUI, Interrupted, install
from load_pack import ROOT
from samkit.nodes.grounding import GroundingLoader, SegmentText, TextToBoxes
from samkit.nodes.predict import Segment
from samkit.sam import GROUNDING_MODELS, GroundingOptions, SAMError, find_boxes, load_grounding, normalise_text
from samkit.sam.placement.host import move
from samkit.sam.placement.resident import resident_of
from samkit.sam.tasks.words import _best
from samkit.sam.weights.registry import GROUNDING, KnownFolder
from samkit.utils.boxes import boxes_per_frame, nested_boxes
from samkit.utils.overlay import paint_boxes
from test_hub import COMMIT, REPO, server  # noqa: F401  a fixture

WORDS = ["cat", "dog", "remote", "control", "red", "a"]
TEXT = "cat. red remote control. a dog."
# Ids that transformers' Grounding DINO knows by number: they separate phrases.
SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
VOCABULARY = [SPECIAL.get(index, f"[unused{index}]") for index in range(1030)] + WORDS
EVERYTHING = {"box_threshold": 0.0, "text_threshold": 0.0, "nms_threshold": 1.0}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model in the form that the hub has them."""
    folder = tmp_path_factory.mktemp("models") / "small"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    transformers.BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 96}
    transformers.GroundingDinoImageProcessor(size=size).save_pretrained(folder)
    random_network().save_pretrained(folder)
    return folder


def random_network(seed=3):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            image_size=64,
            window_size=4,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=transformers.BertConfig(**small, vocab_size=len(VOCABULARY), max_position_embeddings=64),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=30,
        max_text_len=32,
    )
    torch.manual_seed(seed)
    network = transformers.GroundingDinoForObjectDetection(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # lively: as made, every query gives the same
            if parameter.ndim > 1:
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
    return network


@pytest.fixture(scope="session")
def grounding(folder):
    return load_grounding(folder)


@pytest.fixture
def frames():
    return [make_image(60, 90, seed) for seed in range(6)]


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    return install(monkeypatch, FakeComfyUI(tmp_path))


@pytest.fixture
def models(monkeypatch, tmp_path):
    """Where models are looked for: below the pack, as outside ComfyUI."""
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    return tmp_path / "models" / "grounding-dino"


def folder_copy(folder, target):
    target.mkdir(parents=True)
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def reference(folder, pixels, text, box_threshold, text_threshold):
    """transformers alone, one pixels at a time: boxes, scores and words (without what separates them), best first."""
    network = transformers.GroundingDinoForObjectDetection.from_pretrained(folder)
    processor = transformers.GroundingDinoProcessor.from_pretrained(folder)
    inputs = processor(images=pixels, text=text, return_tensors="pt")
    with torch.no_grad():
        outputs = network(**inputs)
    (result,) = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=box_threshold, text_threshold=text_threshold, target_sizes=[(60, 90)]
    )
    order = result["scores"].argsort(descending=True, stable=True)
    words = result["text_labels"]
    words = [" ".join(re.sub(r"\[SEP\]|\[CLS\]|\.", " ", words[index]).split()) for index in order]
    return result["boxes"][order].numpy(), result["scores"][order].numpy(), words


def middle_of(grounding, frames):
    """Thresholds that some boxes of every pixels pass, and some do not."""
    scores = np.concatenate([one.scores for one in find_boxes(grounding, frames, TEXT, GroundingOptions(**EVERYTHING))])
    return float(np.quantile(scores, 0.5)), float(np.quantile(scores, 0.25))


def test_boxes_labels_and_scores_are_transformers_own_over_a_batch(folder, grounding, frames):
    box_threshold, text_threshold = middle_of(grounding, frames)
    found = find_boxes(grounding, frames, TEXT, GroundingOptions(box_threshold, text_threshold, nms_threshold=1.0))
    assert len(found) == len(frames) and len({len(one.boxes) for one in found}) > 1
    for one, frame in zip(found, frames, strict=True):
        boxes, scores, labels = reference(folder, frame, TEXT, box_threshold, text_threshold)
        assert 0 < len(boxes) < 30
        assert np.allclose(one.boxes, boxes, atol=1e-3) and np.allclose(one.scores, scores, atol=1e-5)
        assert one.labels == labels
    assert len({label for one in found for label in one.labels}) > 1


def test_the_node_gives_the_same_as_core_writes_boxes(folder, grounding, frames):
    box_threshold, text_threshold = middle_of(grounding, frames)
    node = TextToBoxes().execute(
        grounding, as_image(*frames), "cat, Red  remote control\na dog", box_threshold, text_threshold, 1
    )
    bboxes, labels, overlay, detector = node
    assert overlay.shape == (6, 60, 90, 3) and all(bboxes)
    _, segs = detector.detect(as_image(frames[0]), box_threshold, 0, 2.0, drop_size=0)  # of random weights, a pixel wide
    given = [(box["label"] or "object", box["score"]) for box in bboxes[0]]
    for seg in segs:  # one image alone rounds otherwise than six together
        assert any(label == seg.label and abs(score - seg.confidence) < 1e-5 for label, score in given), seg
    assert segs
    for boxes, frame in zip(bboxes, frames, strict=True):
        corners, scores, words = reference(folder, frame, TEXT, box_threshold, text_threshold)
        assert [box["label"] for box in boxes] == words
        assert np.allclose([box["score"] for box in boxes], scores, atol=1e-5)
        assert np.allclose(boxes_per_frame(boxes, 1)[0].rows, corners, atol=1e-3)
        assert all(type(box[key]) is float for box in boxes for key in ("x", "y", "width", "height", "score"))
    assert labels == [box["label"] for boxes in bboxes for box in boxes]


@pytest.mark.parametrize("old", [True, False])
def test_both_forms_of_post_processing_are_called_rightly(grounding, frames, old):
    """`box_threshold` and `labels` before transformers 4.51; `threshold` and `text_labels`, with numbers in `labels`, after."""
    seen = []
    result = {"boxes": torch.tensor([[1.0, 2, 30, 40]]), "scores": torch.tensor([0.5])}

    class Processor:
        tokenizer = grounding.processor.tokenizer

        def __call__(self, **inputs):
            return grounding.processor(**inputs)

        def old(self, outputs, input_ids=None, box_threshold=0.25, text_threshold=0.25, target_sizes=None):
            seen.append((box_threshold, text_threshold, target_sizes))
            return [{**result, "labels": ["cat"]}] * len(target_sizes)

        def new(self, outputs, input_ids=None, threshold=0.25, text_threshold=0.25, target_sizes=None, text_labels=None):
            seen.append((threshold, text_threshold, target_sizes))
            return [{**result, "labels": torch.tensor([7]), "text_labels": ["cat"]}] * len(target_sizes)

    processor = Processor()
    processor.post_process_grounded_object_detection = processor.old if old else processor.new
    faked = type(grounding)(grounding.network, processor, grounding.folder)
    found = find_boxes(faked, frames[:2], TEXT, GroundingOptions(0.4, 0.3))
    assert seen == [(0.4, 0.3, [(60, 90), (60, 90)])]
    assert [one.labels for one in found] == [["cat"], ["cat"]] and found[0].boxes.tolist() == [[1, 2, 30, 40]]


def test_no_version_of_transformers_warns(grounding, frames):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        find_boxes(grounding, frames[:1], TEXT)


def test_some_frames_are_run_at_a_time(grounding, frames, monkeypatch):
    sizes, forward = [], grounding.network.forward
    monkeypatch.setattr(
        grounding.network, "forward", lambda **inputs: (sizes.append(len(inputs["pixel_values"])), forward(**inputs))[1]
    )
    find_boxes(grounding, frames, TEXT)
    assert sizes == [4, 2]
    assert find_boxes(grounding, [], TEXT) == []


def test_progress_moves_and_cancel_is_heard(comfy, grounding, frames):
    find_boxes(grounding, frames, TEXT)
    assert [(bar.total, bar.current) for bar in comfy.bars] == [(6, 6)]
    comfy.interrupted_after = 1
    with pytest.raises(Interrupted):
        find_boxes(grounding, frames, TEXT)
    assert comfy.bars[1].current == 4


@pytest.mark.parametrize("mode", ["AUTO", "Prefer GPU"])
def test_the_model_goes_through_comfyuis_memory_manager(comfy, folder, frames, mode, monkeypatch):
    grounding = load_grounding(folder)
    comfy.device = torch.device("meta")
    seen = []

    def detect(grounding, frames, caption, options, device):
        seen.append({device.type, *(tensor.device.type for tensor in grounding.network.parameters())})
        return [result_of([], [], [])] * len(frames)

    monkeypatch.setattr("samkit.sam.tasks.words._detect", detect)
    find_boxes(grounding, frames[:1], TEXT, device_mode=mode)
    find_boxes(grounding, frames[:1], TEXT, device_mode=mode)
    assert [entry.model for entry in comfy.loaded] == [resident_of(grounding.network).patcher]
    assert all(comfy.full_loads) and seen == [{"meta"}] * 2
    find_boxes(grounding, frames[:1], TEXT, device_mode="CPU")
    assert comfy.loaded == [] and seen[2] == {"cpu"}


def test_outside_comfyui_it_moves_in_and_back(grounding, frames, monkeypatch):
    moves = []
    monkeypatch.setattr("samkit.sam.placement.host.move", lambda model, device: moves.append((model, device.type)))
    find_boxes(grounding, frames[:1], TEXT, device_mode="CPU")
    assert moves == [(grounding.network, "cpu")]


def test_a_model_moves_with_its_buffers():
    network = random_network()
    move(network, torch.device("meta"))
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    only_a_buffer = torch.nn.Module()
    only_a_buffer.register_buffer("mean", torch.zeros(3))
    move(only_a_buffer, torch.device("meta"))
    assert only_a_buffer.mean.device.type == "meta"


def result_of(boxes, scores, labels):
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "scores": torch.tensor(scores), "words": labels}


OVERLAPPING = ([[0.0, 0, 40, 40], [0, 0, 40, 39], [50, 10, 80, 50]], [0.5, 0.9, 0.7], ["cat", "dog", "remote"])


def test_duplicates_go_and_the_best_come_first():
    found = _best(result_of(*OVERLAPPING), (60, 90), GroundingOptions(nms_threshold=0.7))
    assert found.labels == ["dog", "remote"] and np.allclose(found.scores, [0.9, 0.7])
    assert found.boxes.tolist() == [[0, 0, 40, 39], [50, 10, 80, 50]]
    assert _best(result_of(*OVERLAPPING), (60, 90), GroundingOptions(nms_threshold=1)).labels == ["dog", "remote", "cat"]


def test_max_boxes_keeps_the_best():
    for count, labels in ((0, ["dog", "remote", "cat"]), (1, ["dog"]), (2, ["dog", "remote"])):
        assert _best(result_of(*OVERLAPPING), (60, 90), GroundingOptions(nms_threshold=1, max_boxes=count)).labels == labels


def test_a_box_without_area_in_the_image_is_none():
    found = _best(
        result_of([[5.0, 5, 5, 20], [-9, -9, -1, -1], [-5, 2, 4, 9]], [0.9, 0.8, 0.7], ["a", "b", "c"]),
        (60, 90),
        GroundingOptions(),
    )
    assert found.labels == ["c"] and found.boxes.tolist() == [[-5, 2, 4, 9]]


def test_nothing_found_is_an_answer(grounding, frames, tiny_model):
    image = as_image(*frames[:2])
    bboxes, labels, overlay, _ = TextToBoxes().execute(grounding, image, TEXT, box_threshold=1.0)
    assert bboxes == [[], []] and labels == ["", ""] and overlay.shape == image.shape
    masks, _, scores, _ = Segment().execute(tiny_model, image, bboxes=bboxes)
    assert masks.shape == (2, 60, 90) and not masks.any() and scores == [0, 0]
    for individual in (True, False):
        masks, bboxes, scores, labels, overlay, cutout = SegmentText().execute(
            tiny_model, grounding, image, TEXT, box_threshold=1.0, individual_masks=individual
        )
        assert masks.shape == (2, 60, 90) and masks.dtype == torch.float32 and not masks.any()
        assert (bboxes, scores, labels) == ([[], []], [0, 0], ["", ""]) and overlay.shape == image.shape
        assert torch.equal(cutout[..., :3], image) and not cutout[..., 3].any()


def test_an_empty_batch_stays_one(grounding, tiny_model):
    image = torch.zeros(0, 60, 90, 3)
    bboxes, labels, overlay, _ = TextToBoxes().execute(grounding, image, TEXT)
    assert (bboxes, labels, overlay.shape) == ([], [], image.shape)
    masks, bboxes, scores, labels, overlay, cutout = SegmentText().execute(tiny_model, grounding, image, TEXT)
    assert (masks.shape, bboxes, scores, labels, overlay.shape) == ((0, 60, 90), [], [], [], image.shape)
    assert cutout.shape == (0, 60, 90, 4)


@pytest.mark.parametrize("individual", [True, False])
def test_segment_text_is_text_to_boxes_then_segment(grounding, frames, tiny_model, individual):
    image, words = as_image(*frames[:3]), (TEXT, middle_of(grounding, frames)[0], 0.1, 0.8, 3)
    bboxes, labels, *_ = TextToBoxes().execute(grounding, image, *words)
    wanted, _, wanted_scores, _ = Segment().execute(tiny_model, image, bboxes=bboxes, individual_masks=individual)
    masks, boxes, scores, names, overlay, cutout = SegmentText().execute(
        tiny_model, grounding, image, *words, individual_masks=individual
    )
    assert torch.equal(masks, wanted) and masks.any() and len(masks) == (len(labels) if individual else 3)
    assert (boxes, scores, names) == (bboxes, wanted_scores, labels) and len(scores) == len(labels)
    assert overlay.shape == image.shape and not torch.equal(overlay, image)
    assert torch.equal(cutout[..., :3], image)
    per_frame = masks.split([len(frame) or 1 for frame in boxes]) if individual else masks[:, None]
    assert torch.equal(cutout[..., 3], torch.stack([part.amax(0) for part in per_frame]))


def test_all_boxes_of_a_frame_are_one_decoder_call(grounding, frames, tiny_model, monkeypatch):
    from samkit.sam.tasks.predict import ImagePredictor

    calls, run = [], ImagePredictor.decode

    def counted(self, prompts, *rest, **options):
        calls.append(len(prompts))
        return run(self, prompts, *rest, **options)

    monkeypatch.setattr(ImagePredictor, "decode", counted)
    bboxes = SegmentText().execute(tiny_model, grounding, as_image(*frames[:2]), TEXT, 0.0, 0.0, 0.9)[1]
    assert calls == [len(boxes) for boxes in bboxes] and min(calls) > 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat. dog.", "cat. dog."),
        ("cat.dog", "cat. dog."),
        (" Cat ,a  Red\tdog, ", "cat. a red dog."),
        ("cat\r\n\ndog\n", "cat. dog."),
        ("remote control", "remote control."),
        ("cat. Cat, dog", "cat. dog."),
    ],
)
def test_text_in_every_form_is_what_the_model_wants(text, expected):
    assert normalise_text(text) == expected
    assert normalise_text(expected) == expected


@pytest.mark.parametrize("text", ["", " \n", ". , ."])
def test_a_text_without_words_is_refused(grounding, frames, text):
    with pytest.raises(SAMError, match="text is .*name at least one object"):
        find_boxes(grounding, frames, text)


def test_a_text_that_the_model_would_cut_is_refused(grounding, frames):
    find_boxes(grounding, frames[:1], "a cat a dog")
    with pytest.raises(SAMError, match="text has 43 tokens, but the limit of the model is 32"):
        find_boxes(grounding, frames, "a " * 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"box_threshold": 1.5}, "box_threshold is 1.5: it must be 0 to 1"), ({"max_boxes": -1}, "max_boxes is -1")],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(SAMError, match=message):
        GroundingOptions(**options)


def test_without_transformers_the_message_has_the_install_line(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SAMError, match=r"pip install \"transformers>=4\.50\""):
        load_grounding(folder)


def test_one_folder_is_one_model_until_a_file_changes_or_nobody_holds_it(folder, tmp_path):
    copy = folder_copy(folder, tmp_path / "copy")
    model = load_grounding(copy)
    assert load_grounding(copy) is model
    (copy / "tokenizer_config.json").write_text((copy / "tokenizer_config.json").read_text() + "\n")
    assert load_grounding(copy) is not model
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_weights_are_made_outside_inference_mode(folder, tmp_path):
    with torch.inference_mode():
        model = load_grounding(folder_copy(folder, tmp_path / "copy"))
    assert not any(parameter.is_inference() or parameter.requires_grad for parameter in model.network.parameters())
    assert not model.network.training


def break_config(copy):
    (copy / "config.json").write_text("{")


def another_kind(copy):
    (copy / "config.json").write_text('{"model_type": "bert"}')


def truncate(copy):
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-1000])


def drop_a_tensor(copy):
    from safetensors.torch import load_file, save_file

    state = load_file(copy / "model.safetensors")
    state.pop("model.query_position_embeddings.weight")
    save_file(state, copy / "model.safetensors", {"format": "pt"})


def pickle_only(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")


def drop_the_tokenizer(copy):
    for name in ("tokenizer.json", "vocab.txt"):
        (copy / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_config, "its config.json cannot be read"),
        (another_kind, "copy is a model of type 'bert': it must be 'grounding-dino'"),
        (truncate, "copy was not loaded"),
        (drop_a_tensor, r"missing from its weights \(1, the first is model.query_position_embeddings.weight"),
        (pickle_only, "copy is not complete: it needs config.json, .* and weights such as model.safetensors"),
        (drop_the_tokenizer, "copy is not complete: .*tokenizer.json or vocab.txt"),
    ],
)
def test_a_damaged_folder_is_refused(folder, tmp_path, damage, message):
    copy = folder_copy(folder, tmp_path / "copy")
    damage(copy)
    with pytest.raises(SAMError, match=message):
        load_grounding(copy)


def test_the_known_models_are_pinned():
    assert list(GROUNDING) == ["grounding-dino-tiny", "grounding-dino-base"]
    for known in GROUNDING.values():
        assert len(known.revision) == 40 and len(known.sha256) == 64
        assert {file.revision for file in known.files} == {known.revision}
        assert known.files[-1].filename == "model.safetensors" and known.files[-1].sha256 == known.sha256


def test_the_loader_lists_what_is_there_and_what_is_known(models, folder):
    assert GroundingLoader.INPUT_TYPES()["required"]["model_name"][0] == list(GROUNDING)
    folder_copy(folder, models / "mine")
    folder_copy(folder, models / "grounding-dino-base")
    folder_copy(folder, models / ".samkit-download")
    (models / "groundingdino_swint_ogc.pth").touch()
    assert GROUNDING_MODELS.names() == ["grounding-dino-base", "mine", "grounding-dino-tiny"]


def test_the_loader_takes_a_folder_before_the_hub(models, folder, server, frames):  # noqa: F811
    folder_copy(folder, models / "grounding-dino-tiny")
    (model,) = GroundingLoader().execute("grounding-dino-tiny")
    assert model.folder == models / "grounding-dino-tiny" and len(find_boxes(model, frames[:1], TEXT)) == 1
    assert GroundingLoader().execute("grounding-dino-tiny")[0] is model
    assert server.asked == []


def test_a_folder_that_transformers_5_saved_is_complete(models, folder, grounding):
    saved = models / "saved"
    grounding.processor.save_pretrained(saved)
    grounding.network.save_pretrained(saved)
    assert GROUNDING_MODELS.find("saved").path == saved
    assert load_grounding(saved).processor.image_processor.size == grounding.processor.image_processor.size


def test_folders_of_others_are_looked_in(comfy, folder, tmp_path):
    folder_copy(folder, tmp_path / "elsewhere" / "mine")
    comfy.folder_names_and_paths["grounding-dino"] = ([str(tmp_path / "elsewhere")], {".pth"})
    assert "mine" in GROUNDING_MODELS.names() and GROUNDING_MODELS.find("mine").path == tmp_path / "elsewhere" / "mine"
    paths, suffixes = comfy.folder_names_and_paths["grounding-dino"]
    assert paths == [str(tmp_path / "elsewhere"), str(tmp_path / "models" / "grounding-dino")] and suffixes == {".pth"}


@pytest.mark.parametrize("name", ["unknown", "..", ".samkit-download", "a/../unknown"])
def test_an_unknown_name_is_refused(models, folder, name):
    folder_copy(folder, models / ".samkit-download")
    with pytest.raises(SAMError, match="there is no complete model .* vocab.txt, and weights such as model.safetensors"):
        GROUNDING_MODELS.find(name).fetch()
    assert GroundingLoader.IS_CHANGED(name) == GroundingLoader.IS_CHANGED() == ""


def test_a_changed_file_is_loaded_anew(models, folder):
    copy = folder_copy(folder, models / "mine")
    before = GroundingLoader.IS_CHANGED("mine")
    assert before == GroundingLoader.IS_CHANGED("mine") != ""
    (copy / "model.safetensors").touch()
    assert GroundingLoader.IS_CHANGED("mine") != before


CUT = """
import subprocess
import sys
from pathlib import Path
sys.path.insert(0, {tools!r})
from load_pack import load_pack
load_pack()
from samkit.sam.models.in_transformers.grounding import load_grounding
network = load_grounding(Path(sys.argv[1])).network
with open(Path(sys.argv[1]) / "model.safetensors", "r+b") as file:
    file.truncate(100)
print(float(sum(value.double().sum() for value in network.parameters())))
"""


def test_a_file_that_is_cut_under_a_loaded_model_changes_nothing(folder, grounding, tmp_path):
    """In a process of its own: what used to come of it was the signal SIGBUS."""
    copy = folder_copy(folder, tmp_path / "copy")
    code = CUT.format(tools=str(ROOT / "tools"))
    ran = subprocess.run([sys.executable, "-c", code, str(copy)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) == pytest.approx(float(sum(value.double().sum() for value in grounding.network.parameters())))


@pytest.fixture
def published(folder, server, monkeypatch):  # noqa: F811
    """The small model on a hub on this machine, known as grounding-dino-tiny."""
    names = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
    server.files |= {name: (folder / name).read_bytes() for name in (*names, "model.safetensors")}
    server.files["special_tokens_map.json"] = b"{}"
    weights = server.files["model.safetensors"]
    known = KnownFolder("grounding-dino-tiny", REPO, COMMIT, len(weights), hashlib.sha256(weights).hexdigest())
    monkeypatch.setitem(GROUNDING, known.name, known)
    return server


def test_a_known_model_is_fetched_once(published, models, frames):
    (model,) = GroundingLoader().execute("grounding-dino-tiny")
    assert model.folder == models / "grounding-dino-tiny"
    assert {path.name for path in model.folder.iterdir()} == set(published.files)
    assert all((model.folder / name).read_bytes() == content for name, content in published.files.items())
    assert all(f"/resolve/{COMMIT}/" in path for _, path in published.asked)
    published.asked.clear()
    assert GroundingLoader().execute("grounding-dino-tiny")[0] is model and published.asked == []
    folders = [path.name for path in models.iterdir() if path.is_dir()]
    assert GROUNDING_MODELS.names()[0] == "grounding-dino-tiny" and folders == ["grounding-dino-tiny"]


def test_what_arrived_is_not_fetched_again_and_half_a_model_is_none(published, models):
    weights = published.files.pop("model.safetensors")
    with pytest.raises(SAMError, match="could not download grounding-dino-tiny/model.safetensors"):
        GroundingLoader().execute("grounding-dino-tiny")
    assert not (models / "grounding-dino-tiny" / "model.safetensors").exists()
    published.files["model.safetensors"] = weights
    published.asked.clear()
    GroundingLoader().execute("grounding-dino-tiny")
    assert {path.rpartition("/")[2] for _, path in published.asked} == {"model.safetensors"}


def test_changed_weights_get_no_name(published, models):
    content = published.files["model.safetensors"]
    published.files["model.safetensors"] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(SAMError, match="was expected"):
        GroundingLoader().execute("grounding-dino-tiny")
    assert not (models / "grounding-dino-tiny" / "model.safetensors").exists()


def test_offline_nothing_is_asked(published, models, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SAMError, match=r"HF_HUB_OFFLINE forbids .*into .*grounding-dino-tiny: .*vocab.txt.* model.safetensors"):
        GroundingLoader().execute("grounding-dino-tiny")
    assert published.asked == [] and not models.exists()


SEG = namedtuple("SEG", "cropped_image cropped_mask confidence crop_region bbox label control_net_wrapper")


def seg(bbox, confidence=0.75, label="face"):
    return SEG(None, np.zeros((4, 4), np.float32), confidence, (0, 0, 50, 50), bbox, label, None)


def test_impact_packs_segs_are_boxes():
    segs = ((60, 90), [seg((10, 12, 40, 50)), seg(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.5]), "hand")])
    for frames in (1, 3):
        assert [boxes.rows.tolist() for boxes in boxes_per_frame(segs, frames)] == [[[10, 12, 40, 50], [1, 2, 3, 4]]] * frames
    assert nested_boxes(segs)[0] == [
        {"x": 10, "y": 12, "width": 30, "height": 38, "score": 0.75, "label": "face"},
        {"x": 1, "y": 2, "width": 2, "height": 2, "score": 0.5, "label": "hand"},
    ]
    assert nested_boxes(((60, 90), [seg((1, 2, 3, 4), None, None)]))[0] == [{"x": 1, "y": 2, "width": 2, "height": 2}]


def test_segs_without_an_object_and_segs_per_frame():
    nothing, one = ((60, 90), []), ((60, 90), [seg((10, 12, 40, 50))])
    assert [boxes.rows.shape for boxes in boxes_per_frame(nothing, 2)] == [(0, 4)] * 2
    assert [boxes.rows.tolist() for boxes in boxes_per_frame([nothing, one], 2)] == [[], [[10, 12, 40, 50]]]
    with pytest.raises(SAMError, match=r"bboxes\[1\]\[0\].bbox is None"):
        boxes_per_frame(((60, 90), [seg(None)]), 1)


def test_boxes_of_every_detector_prompt_sam(tiny_model, photo):
    corners = [[10, 12, 40, 50], [30, 5, 70, 44]]
    core = [
        [{"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "label": "cat", "score": 0.9} for x1, y1, x2, y2 in corners]
    ]
    forms = [
        core,
        core[0],
        [tuple(box) for box in corners],
        torch.tensor(corners),
        ((60, 80), [seg(tuple(box)) for box in corners]),
    ]
    masks = [Segment().execute(tiny_model, as_image(photo), bboxes=form, individual_masks=True)[0] for form in forms]
    assert masks[0].shape == (2, 60, 80) and all(torch.equal(mask, masks[0]) for mask in masks)
    assert Segment.INPUT_TYPES()["optional"]["bboxes"][0].split(",") == ["BOUNDING_BOX", "BBOX", "SEGS"]


def test_captions_stay_in_the_image_and_the_original_stays():
    frame = np.zeros((60, 90, 3), np.uint8)
    painted = paint_boxes(frame, np.array([[-5.0, -5, 200, 200], [10, 10, 30, 30]]), ["cat 0.5", "dog 0.4"])
    assert painted.shape == frame.shape and painted.dtype == np.uint8 and not frame.any()
    assert len({tuple(pixel) for pixel in painted.reshape(-1, 3)}) > 3


def test_a_json_without_a_model_type_is_no_model(models):
    for content in ("[]", json.dumps({})):
        (models / "odd").mkdir(parents=True, exist_ok=True)
        (models / "odd" / "config.json").write_text(content)
        with pytest.raises(SAMError, match="config.json cannot be read|is a model of type None"):
            load_grounding(models / "odd")
