"""EdgeTAM beside transformers' `EdgeTamModel` and `EdgeTamVideoModel`: maps, logits, masks, films; files, nodes and tasks."""

import pytest
import torch
from conftest import as_image, make_image
from reference_edgetam import SMALL, random_edgetam, random_edgetam_video
from reference_track import EdgeReferenceFilm
from safetensors.torch import save_file
from samkit.nodes.predict import Segment
from samkit.nodes.track import TrackObjects
from samkit.sam import SAMError, load_model
from samkit.sam.models.sam2 import memory, repvit
from samkit.sam.tasks.everything import preset_options
from samkit.sam.weights.registry import KNOWN
from test_sam2 import CASES, SIZES, Pair, compare, encode
from test_teach import check_taught
from test_track import CASES as FILMS
from test_track import SMALL_WITHIN, film
from test_track import compare as compare_film
from test_train_decoder import check_trained

SIDE = 128


@pytest.fixture(scope="module", autouse=True)
def small_side():
    """No weight's shape tells the side of the input."""
    before, repvit._SIDE = repvit._SIDE, SIDE
    yield
    repvit._SIDE = before


class EdgePair(Pair):
    """The same weights in transformers' class and in the pack's, and transformers' answers."""

    def __init__(self, folder, side=1024, channels=256, **body):
        self.theirs, self.side = random_edgetam(side, channels, **body), side
        self.state = self.theirs.state_dict()
        self.path = folder / "model.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in self.state.items()}, self.path)
        self.ours = load_model(self.path, "fp32")


@pytest.fixture(scope="module")
def small(small_side, tmp_path_factory):
    return EdgePair(tmp_path_factory.mktemp("small"), SIDE, 64, **SMALL)


def in_metas_names(state, small):
    """transformers' state dict as Meta's file has it: the trunk's names, and all others as our model of it has them."""
    trunk = "vision_encoder.backbone.timm_model."
    others = {name: one for name, one in small.ours.state_dict().items() if not name.startswith("image_encoder.trunk.")}
    return others | {
        name.replace(trunk, "image_encoder.trunk.body."): one for name, one in state.items() if name.startswith(trunk)
    }


VIDEO = {"memory_attention.norm.weight": (64,), "maskmem_tpos_enc": (7, 1, 1, 64)}  # not whole: images do not need it


# Every kind of prompt on one size, and one on the others: only how the image is stretched differs.
SMALL_CASES = [(case, *SIZES[1]) for case in CASES] + [(CASES[0], *size) for size in (SIZES[0], SIZES[2])]


@pytest.mark.parametrize(("case", "height", "width"), SMALL_CASES)
def test_a_small_model_equals_transformers(small, case, height, width):
    assert small.ours.family == "EdgeTAM"
    compare(small, make_image(height, width), [case])


@pytest.mark.exhaustive
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_full_size_model_equals_transformers(height, width, tmp_path, monkeypatch):
    monkeypatch.setattr(repvit, "_SIDE", 1024)
    pair = EdgePair(tmp_path)
    assert sum(one.numel() for one in pair.theirs.vision_encoder.backbone.parameters()) > 4.5e6
    compare(pair, make_image(height, width))


def test_the_encoders_own_forward_is_the_reference_for_the_fast_one(small):
    pixels = small.ours._normalised(torch.from_numpy(make_image(SIDE, SIDE)).permute(2, 0, 1)[None])
    with torch.no_grad():
        fine, middle, image = small.ours.image_encoder(pixels)
        decoder = small.ours.sam_mask_decoder
        plain = decoder.conv_s0(fine), decoder.conv_s1(middle), image + small.ours.no_mem_embed.view(1, -1, 1, 1)
        fast = small.ours._encoder_plan(torch.float32)(pixels)
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_several_images_in_one_call_and_bfloat16(small):
    images = torch.stack([torch.from_numpy(make_image(SIDE, SIDE, seed)).permute(2, 0, 1) for seed in (0, 1, 2)])
    whole = small.ours.features(images, torch.float32)
    for index in range(3):
        alone = small.ours.features(images[index : index + 1], torch.float32)
        lower = small.ours.features(images[index : index + 1], torch.bfloat16)
        for name, values in whole.items():
            torch.testing.assert_close(values[index : index + 1], alone[name], atol=1e-4, rtol=0)
            assert (lower[name] - alone[name]).std() < 0.05 * alone[name].std()


@pytest.mark.parametrize("form", ["meta.pt", "flat", "with the video part", "transformers video", "prefixed"])
def test_all_layouts_load_to_equal_weights(small, tmp_path, form):
    meta = in_metas_names(small.state, small)
    video = {name: torch.zeros(shape) for name, shape in VIDEO.items()}
    contents = {
        "meta.pt": {"model": meta | video},
        "flat": meta,
        "with the video part": meta | video,
        "transformers video": small.state
        | {"spatial_perceiver.latents_1d": torch.zeros(4, 64), "no_object_pointer": torch.zeros(1, 64)},
        "prefixed": {"state_dict": {f"sam2_model.{name}": one for name, one in meta.items()}},
    }
    torch.save(contents[form], tmp_path / "edgetam.pt")
    model = load_model(tmp_path / "edgetam.pt", "fp32")
    assert model.family == "EdgeTAM" and model.state_dict().keys() == small.ours.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, small.ours.state_dict()[name]), name


BLOCK = "vision_encoder.backbone.timm_model.stages_0.blocks.0."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop(BLOCK + "channel_mixer.conv1.bn.weight"), "channel_mixer.conv1"),
        (lambda s: s.pop(BLOCK + "channel_mixer.conv1.bn.running_var"), "bn does not fit the convolution before it"),
        (lambda s: s.update({BLOCK + "token_mixer.conv.bn.bias": torch.ones(3)}), "bn does not fit the convolution before it"),
        (lambda s: s.pop(BLOCK + "token_mixer.conv1.c.weight"), "token_mixer is not a block of RepViT"),
        (lambda s: s.pop(BLOCK + "se.fc1.weight"), "se.fc1.weight"),
        (lambda s: s.update({BLOCK + "new.weight": torch.ones(3)}), "new.weight"),
        (lambda s: s.pop("mask_decoder.iou_token.weight"), "iou_token.weight"),
    ],
)
def test_what_is_not_whole_is_refused_by_name(small, change, said, tmp_path):
    state = dict(small.state)
    change(state)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(SAMError, match=rf"x.pt.*{said}"):
        load_model(tmp_path / "x.pt")


class EdgeFilmPair:
    """The same weights in transformers' class for films and in the pack's."""

    reference = EdgeReferenceFilm

    def __init__(self, folder, side=1024, channels=256, **options):
        self.theirs, self.side = random_edgetam_video(side, channels, **options), side
        self.state = {name: tensor.contiguous().clone() for name, tensor in self.theirs.state_dict().items()}
        self.path = folder / "model.safetensors"
        save_file(self.state, self.path)
        self.ours = load_model(self.path, "fp32")


@pytest.fixture(scope="module")
def films(small_side, tmp_path_factory):
    return EdgeFilmPair(tmp_path_factory.mktemp("films"), SIDE, 128, **SMALL)


FEW = ("one click", "a box and clicks", "a given mask", "a correction", "three objects", "both ways")


@pytest.mark.parametrize("case", FEW)
def test_films_equal_transformers(films, case, monkeypatch):
    monkeypatch.setattr(memory, "STORED_TYPE", torch.float32)  # as transformers stores EdgeTAM's, unlike SAM 2's
    count, prompts, direction = FILMS[case]
    compare_film(films, film(count), prompts, direction, within=SMALL_WITHIN)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", FILMS)
def test_films_of_full_size_equal_transformers(tmp_path, case, monkeypatch):
    monkeypatch.setattr(repvit, "_SIDE", 1024)
    monkeypatch.setattr(memory, "STORED_TYPE", torch.float32)
    count, prompts, direction = FILMS[case]
    pair = EdgeFilmPair(tmp_path)
    compare_film(pair, film(count), prompts, direction)
    assert pair.ours.memory.shape.perceiver.anywhere == 256


def test_memories_are_a_few_tokens(films):
    assert films.ours.tracks and films.ours.family == "EdgeTAM"
    features, logits = torch.randn(128, 8, 8), torch.randn(32, 32)
    kept = films.ours.memory.remembered(features, logits, torch.randn(128), torch.tensor(1.0), prompted=True)
    assert kept.map.shape == (8, 64) and kept.map.dtype == torch.bfloat16


def in_metas_video_names(films):
    """Our names of the whole model, whose trunk is folded, as Meta's file has them."""
    whole = films.ours.state_dict()
    part = {name.removeprefix("memory."): one for name, one in whole.items() if name.startswith("memory.")}
    return in_metas_names(films.state, films) | part


def test_metas_names_load_to_the_same_memory(films, tmp_path):
    meta = in_metas_video_names(films)
    assert {"spatial_perceiver.layers.1.self_attn.to_kv.weight", "spatial_perceiver.layers.0.ff.3.weight"} <= set(meta)
    torch.save({"model": {name: one for name, one in meta.items() if not name.startswith("memory.")}}, tmp_path / "edgetam.pt")
    model = load_model(tmp_path / "edgetam.pt", "fp32")
    assert model.tracks and model.memory_identity == films.ours.memory_identity


def test_the_node_follows_an_object(films):
    frames = as_image(*film(4))
    masks = TrackObjects().execute(films.ours, frames, '[{"x": 30, "y": 25}]', method="memory")[0]
    assert masks.shape == (4, 60, 80)


def test_a_memory_that_is_not_whole_is_said(small, films, tmp_path):
    state = dict(films.state)
    del state["spatial_perceiver.layers.1.self_mlp.up_proj.weight"]
    torch.save(state, tmp_path / "x.pt")
    model = load_model(tmp_path / "x.pt", "fp32")
    assert not model.tracks and "self_ff.1.weight" in model.memory_fault
    assert small.ours.memory_fault == "the file holds an image model alone"


def test_a_node_an_everything_preset_and_identities(small):
    masks, _, scores, _ = Segment().execute(small.ours, as_image(make_image(60, 80)), '[{"x": 30, "y": 25}]')
    assert masks.shape == (1, 60, 80) and len(scores) == 1
    assert preset_options("balanced", small.ours).pred_iou_thresh == 0.8
    assert encode(small.ours, [make_image(60, 80)]).encoder_identity == small.ours.encoder_identity
    assert KNOWN["EdgeTAM-hf.safetensors"].licence == "Apache-2.0"


def test_it_can_be_taught(small):
    check_taught(small.ours)


def test_a_trained_decoder_answers_what_it_knows(small, tmp_path):
    check_trained(small.ours, tmp_path)
