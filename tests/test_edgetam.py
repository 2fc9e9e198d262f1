"""EdgeTAM on images beside transformers' `EdgeTamModel`: maps, logits, scores, masks; files, nodes and tasks."""

import pytest
import torch
from conftest import as_image, make_image
from reference_edgetam import SMALL, random_edgetam
from safetensors.torch import save_file
from samkit.nodes.predict import Segment
from samkit.sam import SAMError, load_model
from samkit.sam.models.sam2 import repvit
from samkit.sam.tasks.everything import preset_options
from samkit.sam.weights.registry import KNOWN
from test_sam2 import CASES, SIZES, Pair, compare, encode
from test_teach import check_taught
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


VIDEO = {"spatial_perceiver.latents": (4, 64), "memory_attention.norm.weight": (64,), "maskmem_tpos_enc": (7, 1, 1, 64)}


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


def test_films_are_refused_by_name(small):
    assert not small.ours.tracks and small.ours.memory_fault == "this pack runs EdgeTAM on images alone"


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
