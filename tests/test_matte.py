"""Soft edges: alpha is transformers' own for a ViTMatte with random weights; large images in tiles, within bounds."""

import shutil
import sys
import tracemalloc

import numpy as np
import pytest
import torch
import transformers
from conftest import as_image, make_image
from fakes import FakeComfyUI, install
from samkit.nodes.matte import Matte, MatteLoader
from samkit.sam import MatteOptions, SAMError, load_matte, soft_edges
from samkit.sam.tasks import soft_edges as module
from samkit.sam.tasks.soft_edges import BACKGROUND, FOREGROUND, UNKNOWN, trimap_of
from samkit.sam.weights.registry import MATTING, KnownFolder
from scipy import ndimage
from test_finish import blobs, disk
from test_hub import COMMIT, REPO, server  # noqa: F401  a fixture

WITHIN = 1e-3


def random_network(backbone=None, **others):
    torch.manual_seed(5)
    network = transformers.VitMatteForImageMatting(transformers.VitMatteConfig(backbone_config=backbone, **others)).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():  # lively: as made, every pixel gives the same
            if parameter.ndim > 1:
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
            else:
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.2)
    return network


def backbone(**others):
    small = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64, "window_size": 2}
    blocks = {"window_block_indices": [0, 2], "residual_block_indices": [1, 3], "use_relative_position_embeddings": True}
    return transformers.VitDetConfig(**{**small, **blocks, **others}, num_channels=4, out_features=["stage4"])


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A small model in the form that the hub has them."""
    folder = tmp_path_factory.mktemp("matte") / "small"
    random_network(
        backbone(), hidden_size=32, convstream_hidden_sizes=[4, 8, 8], fusion_hidden_sizes=[16, 8, 8, 4]
    ).save_pretrained(folder)
    transformers.VitMatteImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(folder):
    return load_matte(folder)


def reference(folder, frame, trimap):
    """transformers alone."""
    network = transformers.VitMatteForImageMatting.from_pretrained(folder)
    processor = transformers.VitMatteImageProcessor.from_pretrained(folder)
    inputs = processor(images=frame, trimaps=trimap, return_tensors="pt", input_data_format="channels_last")
    with torch.no_grad():
        alphas = network(**inputs).alphas
    return alphas[0, 0, : trimap.shape[0], : trimap.shape[1]].numpy()


def check(folder, model, size, seed=0, options=None):
    frame, mask = make_image(*size, seed), blobs(seed, size, 0.4)
    (alpha,) = soft_edges(model, [frame], [mask], options or MatteOptions(3, 2))
    trimap = trimap_of(mask, options or MatteOptions(3, 2))
    unknown = trimap == UNKNOWN
    expected = reference(folder, frame, trimap)
    assert alpha.dtype == np.float32 and alpha.shape == size
    assert np.abs(alpha - expected)[unknown].max(initial=0) < WITHIN
    assert (alpha[~unknown] == (trimap == FOREGROUND)[~unknown]).all()
    return expected[unknown]


@pytest.mark.parametrize("size", [(64, 64), (37, 53), (3, 90), (200, 4), (1, 1), (96, 161), (33, 400)])
def test_alpha_is_transformers_own_at_any_size(folder, model, size):
    found = check(folder, model, size)
    assert np.prod(size) < 100 or found.std() > 0.02, "the weights are lively"


def test_alpha_is_transformers_own_with_weights_of_full_size(tmp_path):
    random_network(
        transformers.VitDetConfig(
            hidden_size=384, num_attention_heads=6, num_channels=4, image_size=512, out_features=["stage12"],
            window_size=14, window_block_indices=[0, 1, 3, 4, 6, 7, 9, 10], residual_block_indices=[2, 5, 8, 11],
            use_relative_position_embeddings=True,
        ),
        convstream_hidden_sizes=[48, 96, 192], fusion_hidden_sizes=[256, 128, 64, 32],
    ).save_pretrained(tmp_path)  # fmt: skip
    transformers.VitMatteImageProcessor().save_pretrained(tmp_path)
    assert check(tmp_path, load_matte(tmp_path), (210, 283), options=MatteOptions(16, 8)).std() > 1e-3


def test_the_trimap_is_the_grown_and_the_shrunk_mask():
    mask = blobs(4, (80, 90), 0.4)
    trimap = trimap_of(mask.astype(np.float32) * 0.8, MatteOptions(5, 3))
    inner, outer = ndimage.binary_erosion(mask, disk(3), border_value=1), ndimage.binary_dilation(mask, disk(5))
    assert (trimap == np.where(inner, FOREGROUND, np.where(outer, UNKNOWN, BACKGROUND))).all()
    assert (trimap_of(mask, MatteOptions(0, 0)) == np.where(mask, FOREGROUND, BACKGROUND)).all()


def test_tiles_cover_the_image_and_join_without_seams(folder, model, monkeypatch):
    """Where the network says the same whatever is around a pixel, tiles give what the whole image gives."""
    monkeypatch.setattr(module, "_SIDE", 96)
    monkeypatch.setattr(module, "_OVERLAP", 32)
    monkeypatch.setattr(module, "_predict", lambda model, frame, trimap, device: frame[..., 0] / np.float32(255))
    frame = make_image(250, 333)
    (alpha,) = soft_edges(model, [frame], [blobs(1, (250, 333), 0.3)], MatteOptions(256, 256))
    assert np.abs(alpha - frame[..., 0] / 255).max() < 1e-6


def test_tiles_without_an_unknown_pixel_are_left_out_and_all_are_of_bounded_size(model, monkeypatch):
    sizes, real = [], module._predict
    monkeypatch.setattr(module, "_SIDE", 128)
    monkeypatch.setattr(module, "_OVERLAP", 32)
    monkeypatch.setattr(module, "_predict", lambda *given: (sizes.append(given[2].shape), real(*given))[1])
    mask = np.zeros((300, 700), bool)
    mask[10:40, 20:60] = True
    (alpha,) = soft_edges(model, [make_image(300, 700)], [mask], MatteOptions(6, 4))
    assert sizes == [(128, 128)] and alpha[15:35, 25:55].all() and not alpha[60:].any()
    empty = soft_edges(model, [make_image(300, 700)], [np.zeros((300, 700), bool)])[0]
    assert not empty.any() and len(sizes) == 1, "where nothing is unknown, nothing is computed"


@pytest.mark.parametrize(("size", "count"), [((1024, 1024), 1), ((20, 30_000), 1), ((20, 50_000), 56), ((1, 3_000_000), 3349)])
def test_no_part_that_is_computed_at_once_has_more_pixels_than_a_tile(size, count):
    parts = list(module._tiles(size))
    padded = [
        np.prod([-(-len(range(*span.indices(length))) // 32) for span, length in zip(part, size, strict=True)])
        for part in parts
    ]
    assert len(parts) == count and max(padded) <= 32 * 32


def test_a_large_image_needs_bounded_memory(model, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        module, "_predict", lambda _, frame, trimap, __: (sizes.append(trimap.size), np.ones(trimap.shape, np.float32))[1]
    )
    frame, mask = np.zeros((3000, 4000, 3), np.uint8), np.zeros((3000, 4000), bool)
    mask[200:2800, 300:3700] = True
    tracemalloc.start()
    (alpha,) = soft_edges(model, [frame], [mask])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(sizes) == 1024 * 1024 and 10 < len(sizes) < 20 and peak < 20 * mask.size and alpha[1000, 2000] == 1


@pytest.mark.parametrize(("frames", "masks", "apart"), [(1, 1, 1), (3, 3, 1), (2, 4, 2), (1, 3, 3)])
def test_the_node_gives_each_mask_its_image(model, frames, masks, apart):
    images = [make_image(40, 50, seed) for seed in range(frames)]
    given = [blobs(seed, (40, 50), 0.4) for seed in range(masks)]
    (out,) = Matte().execute(model, as_image(*images), torch.from_numpy(np.stack(given)).float(), 4, 3)
    expected = [soft_edges(model, [images[index // apart]], [mask], MatteOptions(4, 3))[0] for index, mask in enumerate(given)]
    assert out.dtype == torch.float32 and (out.numpy() == np.stack(expected)).all()


@pytest.mark.parametrize(
    ("image", "mask", "options", "message"),
    [
        ((2, 8, 8, 3), (3, 8, 8), (), "masks: 3, images: 2"),
        ((1, 8, 8, 3), (1, 8, 9), (), "The image has 8 x 8 pixels, but the mask has 9 x 8"),
        ((1, 8, 8, 3), (1, 8, 8), (-1, 0), "grow is -1: it must be a whole number from 0 to 256"),
        ((1, 8, 8, 3), (1, 8, 8), (1, 999), "shrink is 999"),
        ((0, 8, 8, 3), (1, 8, 8), (), "masks: 1, images: 0"),
    ],
)
def test_what_does_not_fit_is_named(model, image, mask, options, message):
    with pytest.raises(SAMError, match=message):
        Matte().execute(model, torch.zeros(image), torch.zeros(mask), *options)


# --- the loader


@pytest.fixture
def models(monkeypatch, tmp_path):
    """Where models are looked for: below the pack, as outside ComfyUI."""
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    return tmp_path / "models" / "vitmatte"


def test_without_transformers_one_sentence_says_what_to_do(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SAMError, match=r'^SAM Soft Edges needs transformers, .*: pip install "transformers>=4\.50"'):
        load_matte(folder)


def test_without_weights_one_sentence_says_what_to_do(models, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        SAMError, match="vitmatte-small-composition-1k is not complete .*put these files from hustvl/vitmatte-small"
    ) as said:
        MatteLoader().execute("vitmatte-small-composition-1k")
    assert "preprocessor_config.json, config.json, model.safetensors" in str(said.value) and not models.exists()
    with pytest.raises(SAMError, match="there is no complete model 'mine'"):
        MatteLoader().execute("mine")


def test_a_known_model_is_fetched_once(folder, models, server, monkeypatch):  # noqa: F811
    names = ("config.json", "preprocessor_config.json", "model.safetensors")
    if not (folder / names[1]).is_file():
        shutil.copy(folder / "processor_config.json", folder / names[1])
    server.files |= {name: (folder / name).read_bytes() for name in names}
    known = MATTING["vitmatte-small-composition-1k"]
    monkeypatch.setitem(MATTING, known.name, KnownFolder(known.name, REPO, COMMIT, small=known.small))
    assert MatteLoader.INPUT_TYPES()["required"]["model_name"][0] == [known.name]
    (model,) = MatteLoader().execute(known.name)
    assert {path.name for path in model.folder.iterdir()} == set(names) and model.folder == models / known.name
    server.asked.clear()
    assert MatteLoader().execute(known.name)[0] is model and server.asked == []
    assert MatteLoader.IS_CHANGED(known.name) == MatteLoader.IS_CHANGED(known.name) != "" == MatteLoader.IS_CHANGED(None)


def test_the_folder_is_registered_in_comfyui(monkeypatch, tmp_path, folder):
    comfy = install(monkeypatch, FakeComfyUI(tmp_path))
    shutil.copytree(folder, tmp_path / "models" / "vitmatte" / "mine")
    assert MatteLoader.INPUT_TYPES()["required"]["model_name"][0] == ["mine", *MATTING]
    assert "vitmatte" in comfy.folder_names_and_paths


def test_a_model_of_another_kind_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "config.json").write_text('{"model_type": "grounding-dino"}')
    with pytest.raises(SAMError, match="copy is a model of type 'grounding-dino': it must be 'vitmatte'"):
        load_matte(copy)
