"""Checkpoints: the architecture told by the weights, and everything that is no checkpoint refused with its reason."""

import pickle
from pathlib import Path

import pytest
import torch
from reference import content_id, random_sam
from safetensors.torch import save_file
from samkit.sam import SAMError, SAMModel, load_model
from samkit.sam.models.architecture import read_architecture
from segment_anything.build_sam import build_sam_vit_b, build_sam_vit_h, build_sam_vit_l

TINY = {"embed_dim": 32, "depth": 3, "heads": 2, "grid": 8, "window": 3, "global_blocks": (1,), "out_chans": 32, "mlp_dim": 64}


@pytest.mark.parametrize("name", ["looks_like_vit_h.pth", "a.pt", "b.safetensors", "safetensors inside.pth"])
def test_both_formats_load_whatever_the_name(tiny_sam, tmp_path, name):
    path = tmp_path / name
    if "safetensors" in name:
        save_file(tiny_sam.state_dict(), path)
    else:
        torch.save(tiny_sam.state_dict(), path)
    model = load_model(path)
    assert isinstance(model, SAMModel) and model.checkpoint == path
    for key, value in tiny_sam.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert model.identity == content_id(tiny_sam)


def test_a_legacy_pickle_of_tensors_loads(tiny_sam, tmp_path):
    torch.save(tiny_sam.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_model(tmp_path / "old.pth").identity == content_id(tiny_sam)


def test_a_safetensors_file_whose_first_byte_is_a_pickles_loads(tiny_sam, tmp_path):
    for padding in range(256):
        save_file(tiny_sam.state_dict(), tmp_path / "sam.safetensors", metadata={"note": "x" * 8 * padding})
        if (tmp_path / "sam.safetensors").read_bytes()[0] == 0x80:
            break
    assert load_model(tmp_path / "sam.safetensors").identity == content_id(tiny_sam)
    assert (tmp_path / "sam.safetensors").read_bytes()[0] == 0x80


def test_half_precision_files_become_float32(tiny_sam, tmp_path):
    save_file({key: value.half() for key, value in tiny_sam.state_dict().items()}, tmp_path / "half.safetensors")
    model = load_model(tmp_path / "half.safetensors")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 5, "global_blocks": (1, 4)},
        {"embed_dim": 48, "heads": 3},
        {"embed_dim": 56, "heads": 4, "mlp_ratio": 115.5 / 56},
        {"grid": 12},
        {"grid": 6, "patch": 8},
        {"window": 4},
        {"window": 5, "grid": 9},
        {"global_blocks": ()},
        {"global_blocks": (0, 1, 2)},
        {"out_chans": 64},
        {"mlp_dim": 96},
        {"multimask": 4},
        {"multimask": 1},
    ],
    ids=str,
)
def test_any_architecture_is_told_by_its_shapes(tmp_path, change):
    sam = random_sam(**{**TINY, **change})
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    model = load_model(tmp_path / "sam.pth")
    side = sam.image_encoder.img_size
    image = torch.randn(1, 3, side, side)
    with torch.no_grad():
        assert model.image_encoder.img_size == side
        torch.testing.assert_close(model.image_encoder(image), sam.image_encoder(image))
        points = torch.rand(2, 3, 2) * side, torch.ones(2, 3)
        features = sam.image_encoder(image)
        for ours, theirs in zip(run_decoder(model, features, points), run_decoder(sam, features, points), strict=True):
            torch.testing.assert_close(ours, theirs)


def run_decoder(sam, features, points):
    sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=None)
    return sam.mask_decoder(features, sam.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=True)


@pytest.mark.parametrize(
    ("builder", "expected"),
    [
        (build_sam_vit_b, (768, 12, 12, (2, 5, 8, 11))),
        (build_sam_vit_l, (1024, 24, 16, (5, 11, 17, 23))),
        (build_sam_vit_h, (1280, 32, 16, (7, 15, 23, 31))),
    ],
)
def test_the_published_sizes_are_told_apart(builder, expected):
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in builder().state_dict().items()}
    found = read_architecture(shapes)
    encoder = found.encoder
    assert (encoder.embed_dim, encoder.depth, encoder.num_heads, encoder.global_attn_indexes) == expected
    assert (encoder.img_size, encoder.window_size, encoder.out_chans, found.num_mask_tokens) == (1024, 14, 256, 4)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SAMError, match="there is no file .*nowhere.pth"):
        load_model(tmp_path / "nowhere.pth")


def test_an_unknown_precision_is_refused(tmp_path):
    with pytest.raises(SAMError, match="precision is 'int8': choose one of auto, fp32"):
        load_model(tmp_path / "any.pth", precision="int8")


def test_a_checkpoint_that_is_no_sam_is_refused(tmp_path):
    save_file({"conv.weight": torch.zeros(3, 3), "conv.bias": torch.zeros(3)}, tmp_path / "resnet.safetensors")
    with pytest.raises(SAMError, match=r"resnet.safetensors: this is not a SAM checkpoint: .* It holds conv.bias"):
        load_model(tmp_path / "resnet.safetensors")


@pytest.mark.parametrize("change", ["missing", "unknown", "reshaped", "without rel_pos"])
def test_weights_are_all_there_and_nothing_is_ignored(tiny_sam, tmp_path, change):
    state = dict(tiny_sam.state_dict())
    if change == "missing":
        del state["mask_decoder.iou_token.weight"], state["image_encoder.blocks.2.norm1.weight"]
    elif change == "unknown":
        state["mask_decoder.extra_token.weight"] = torch.zeros(1, 32)
    elif change == "reshaped":
        state["image_encoder.blocks.1.norm1.weight"] = torch.zeros(31)
    else:
        state = {name: value for name, value in state.items() if "rel_pos" not in name}
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(SAMError, match="odd.pth"):
        load_model(tmp_path / "odd.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(tiny_sam, tmp_path, suffix, share):
    path = tmp_path / f"half.{suffix}"
    if suffix == "pth":
        torch.save(tiny_sam.state_dict(), path)
    else:
        save_file(tiny_sam.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SAMError, match=r"half.*(truncated or damaged|is empty)"):
        load_model(path)


def test_any_other_file_is_refused(tmp_path):
    path = tmp_path / "notes.pth"
    path.write_bytes(bytes(range(255, 0, -1)))
    with pytest.raises(SAMError, match="neither a PyTorch nor a safetensors file"):
        load_model(path)


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])
def test_a_pickle_that_would_run_code_does_not(tmp_path, kind):
    path, target = tmp_path / "bomb.pth", tmp_path / "ran"
    content = {"image_encoder.patch_embed.proj.weight": Bomb(str(target))}
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(SAMError, match="would run code"):
        load_model(path)
    assert not target.exists()


def test_a_whole_pickled_module_is_refused(tiny_sam, tmp_path):
    torch.save(tiny_sam, tmp_path / "module.pth")
    with pytest.raises(SAMError, match="holds more than tensors|a pickled model that includes code"):
        load_model(tmp_path / "module.pth")


@pytest.mark.parametrize("content", [{}, {"a": 1}, [torch.zeros(2)], torch.zeros(2)], ids=str)
def test_only_a_dict_of_tensors_counts(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(SAMError, match="other.pth is not a SAM checkpoint: it does not hold a dict of tensors"):
        load_model(tmp_path / "other.pth")


def test_the_identity_is_of_the_content(tiny_sam, tiny_model):
    assert tiny_model.identity == content_id(tiny_sam)
    before = tiny_model.identity
    with torch.no_grad():
        tiny_model.mask_decoder.iou_token.weight[0, 0] += 1
    assert tiny_model.identity != before


def test_a_model_loaded_in_inference_mode_can_be_moved_and_used_outside_it(tiny_sam, tmp_path):
    """ComfyUI runs nodes in inference mode; the preview and other threads are outside it."""
    torch.save(tiny_sam.state_dict(), tmp_path / "tiny.pth")
    with torch.inference_mode():
        model = load_model(tmp_path / "tiny.pth")
    assert not any(parameter.is_inference() for parameter in model.parameters())
    assert model.identity == content_id(tiny_sam)
    with torch.no_grad():
        model.double().float().image_encoder(torch.zeros(1, 3, 128, 128))
