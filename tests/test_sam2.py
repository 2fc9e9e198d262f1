"""SAM 2 against transformers' `Sam2Model` with the same weights, on its own processor's pixels."""

import shutil

import numpy as np
import pytest
import reference_sam2_automask
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, install
from reference_sam2 import BASE_PLUS, SMALL, SMALL_SIDE, TINY, processor, random_sam2
from safetensors.torch import save_file
from samkit.nodes.model import SAMModelLoader
from samkit.nodes.predict import PredictMask, Segment
from samkit.sam import SAM_MODELS, Prompt, decode, encode, load_model
from samkit.sam.kernels.decoder import Guidance
from samkit.sam.models.base import Wanted
from samkit.sam.models.features import Features
from samkit.sam.models.sam2 import SAM2Model, hiera
from samkit.sam.models.sam2.mask_decoder import is_stable
from samkit.sam.models.sam2.model import HIGH_RES
from samkit.sam.prompts import to_model_input
from samkit.sam.tasks.embed import as_embedding
from samkit.sam.tasks.everything import AutoMaskOptions, preset_options, segment_everything
from samkit.sam.tasks.predict import PredictOptions
from samkit.utils.comfy_folders import model_folders
from test_teach import check_taught
from test_train_decoder import check_trained

SMALL_SIZE = hiera.HieraSize("small test", 1, (8, 4, 6, 3), (4,), SMALL_SIDE)
SIZES = [(480, 640), (333, 1000), (1024, 1024)]
NOTHING = np.zeros((0, 2)), np.zeros(0, np.int32)


@pytest.fixture(scope="module", autouse=True)
def small_size():
    """The small configuration joins the table of sizes, whose windows and global blocks are in no weight's shape."""
    hiera.SIZES[16, 8] = SMALL_SIZE
    yield
    del hiera.SIZES[16, 8]


class Pair:
    """The same weights in transformers' class and in the pack's, and transformers' answers."""

    def __init__(self, folder, config, side=1024, channels=256):
        self.theirs, self.side = random_sam2(config, side, channels), side
        self.state = self.theirs.state_dict()
        self.path = folder / "model.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in self.state.items()}, self.path)
        self.ours = load_model(self.path, "fp32")

    def maps(self, photo):
        pixels = processor(self.side)(photo, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            return self.theirs.get_image_embeddings(pixels)

    def answers(self, maps, prompts, multimask):
        """Logits [n, W, 4h, 4w] and scores [n, W] of prompts of one shape, given in pixels of the source."""
        scaled = {}
        scale = torch.tensor([self.side / prompts["size"][1], self.side / prompts["size"][0]])
        if "points" in prompts:
            scaled["input_points"] = (torch.tensor(prompts["points"]) * scale).float()[None]
            scaled["input_labels"] = torch.tensor(prompts["labels"])[None]
        if "boxes" in prompts:
            boxes = torch.tensor(prompts["boxes"]).view(-1, 2, 2) * scale
            scaled["input_boxes"] = boxes.view(1, -1, 4).float()
        if "masks" in prompts:
            scaled["input_masks"] = prompts["masks"]
        with torch.no_grad():
            found = self.theirs(image_embeddings=maps, multimask_output=multimask, **scaled)
        return found.pred_masks[0], found.iou_scores[0], found.object_score_logits[0, :, 0]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Pair(tmp_path_factory.mktemp("small"), SMALL, SMALL_SIDE, 64)


def points_of(height, width, count, per_object, seed=3):
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (count, per_object, 2)) * [width, height]
    return points, rng.integers(0, 2, (count, per_object)) if per_object > 1 else np.ones((count, 1), np.int64)


def cases(height, width):
    one, label = points_of(height, width, 1, 1)
    several, labels = points_of(height, width, 1, 4)
    many, ones = points_of(height, width, 64, 1)
    box = np.array([[0.2 * width, 0.1 * height, 0.7 * width, 0.9 * height]])
    size = {"size": (height, width)}
    return {
        "one point": {"points": one, "labels": label, **size},
        "points of both signs": {"points": several, "labels": labels, **size},
        "a box": {"boxes": box, **size},
        "a box and points": {"boxes": box, "points": several, "labels": labels, **size},
        "64 points": {"points": many, "labels": ones, **size},
    }


CASES = list(cases(10, 10))


def as_prompts(case):
    count = len(case["points"] if "points" in case else case["boxes"])
    points = list(zip(case["points"], case["labels"].astype(np.int32), strict=True)) if "points" in case else [NOTHING] * count
    boxes = case.get("boxes", [None] * count)
    masks = case.get("masks", [None] * count)
    return [Prompt(*points[i], boxes[i], masks[i]) for i in range(count)]


def decoded(model, embedding, prompts, several, **wanted):
    """What `decode` is made of, without the choice among candidates."""
    maps = {"image": embedding.view(np.ndarray)[0]} | {name: values[0] for name, values in embedding.maps.items()}
    features = Features(maps, embedding.image_keys[0], torch.device("cpu"))
    frame = model.geometry(embedding.original_size)
    return model.decode(features, to_model_input(prompts, frame, torch.device("cpu")), Wanted(several, **wanted))


def compare(pair, photo, names=CASES):
    """Maps, logits, scores and masks of every kind of prompt, once with candidates and once with the single mask."""
    embedding = encode(pair.ours, [photo])
    maps = pair.maps(photo)
    fine, middle, image = (part[0].numpy() for part in maps)
    expected = {"high_res_0": fine, "high_res_1": middle}
    np.testing.assert_allclose(embedding[0], image, atol=1e-3, rtol=0)
    for name, values in expected.items():
        np.testing.assert_allclose(embedding.maps[name][0], values, atol=1e-3, rtol=0)
    for name in names:
        case = cases(*photo.shape[:2])[name]
        for multimask in (True, False):
            first = compare_case(pair, embedding, maps, case, multimask)
            if len(first) == 1:  # transformers takes one mask for all objects of an image
                again = {**case, "masks": first[:, :1]}
                compare_case(pair, embedding, maps, again, multimask)


def compare_case(pair, embedding, maps, case, multimask):
    logits, scores, objects = pair.answers(maps, case, multimask)
    prompts = as_prompts(case)
    found = decoded(pair.ours, embedding, prompts, multimask)
    torch.testing.assert_close(found.scores, scores, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.logits, logits, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.object_scores, objects, atol=1e-3, rtol=0)
    assert logits.std() > 0.1, "trivial logits compare nothing"
    compare_masks(pair, embedding, case, logits, scores, multimask)
    return logits


def compare_masks(pair, embedding, case, logits, scores, multimask):
    options = PredictOptions(candidate="all", multimask="on" if multimask else "off")
    masks = decode(pair.ours, embedding, [as_prompts(case)[:4]], options).masks[0]
    (full,) = processor(pair.side).post_process_masks([logits[:4]], [case["size"]], binarize=False)
    order = scores[:4].argsort(descending=True, stable=True)
    wanted = torch.cat([rows[ranks] for rows, ranks in zip(full, order, strict=True)])
    assert not multimask or 0.01 < (wanted > 0).float().mean() < 0.99, "trivial masks compare nothing"
    other = masks.bool() != (wanted > 0)
    # Rounding may turn a pixel whose logit is zero: one of a small image, one in 10,000 of a large one.
    assert other.sum() <= max(1, 1e-4 * other.numel()) and bool((wanted[other].abs() < 1e-3).all())


@pytest.mark.parametrize(("height", "width"), [(60, 80), (41, 125), (128, 128)])
@pytest.mark.parametrize("case", CASES)
def test_a_small_model_equals_transformers(small, case, height, width):
    compare(small, make_image(height, width), [case])


@pytest.mark.parametrize("case", CASES)
def test_masks_that_are_upscaled_in_pieces_equal_transformers(small, case, monkeypatch):
    """As those of full size are; the last of three pieces is a smaller one."""
    monkeypatch.setattr("samkit.sam.models.sam2.mask_decoder._TOKENS_AT_A_TIME", 24)
    compare(small, make_image(60, 80), [case])


@pytest.mark.slow
def test_a_full_size_model_equals_transformers(tmp_path):
    compare(Pair(tmp_path, TINY), make_image(*SIZES[0]))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("config", [TINY, BASE_PLUS], ids=["tiny", "base+"])
def test_every_full_size_model_equals_transformers_at_every_size(config, tmp_path):
    pair = Pair(tmp_path, config)
    for height, width in SIZES:
        compare(pair, make_image(height, width))


def test_half_of_them_stable_half_not():
    """The reference's rule at its threshold: 98 of 100 pixels stay where the threshold moves by 0.05."""
    logits = torch.full((3, 10, 10), 1.0)
    logits[0, 0, :2] = 0.01  # 98 stay
    logits[1, 0, :3] = 0.01  # 97 stay
    logits[2] = -1.0
    assert is_stable(logits).tolist() == [True, False, True]


def test_an_unstable_mask_gives_way_to_the_best_candidate(small):
    photo = make_image(60, 80)
    embedding, maps = encode(small.ours, [photo]), small.maps(photo)
    case = {**cases(60, 80)["64 points"]}
    (single, scores, _), (several, ranked, _) = (small.answers(maps, case, multimask) for multimask in (False, True))
    best = several[torch.arange(64), ranked.argmax(1)]
    gave_way = (single[:, 0] == best).flatten(1).all(1)
    assert 0 < gave_way.sum() < 64, "the reference has both"
    found = decoded(small.ours, embedding, as_prompts(case), False)
    torch.testing.assert_close(found.logits, single, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.scores, scores, atol=1e-3, rtol=0)


@pytest.mark.parametrize("several", [True, False])
def test_rejected_prompts_are_left_out(small, several):
    photo = make_image(60, 80)
    embedding, prompts = encode(small.ours, [photo]), as_prompts(cases(60, 80)["64 points"])
    everything = decoded(small.ours, embedding, prompts, several)
    above = float(everything.scores.amax(1).median())
    kept = (everything.scores > above).any(1).nonzero()[:, 0]
    some = decoded(small.ours, embedding, prompts, several, above=above)
    assert 0 < len(kept) < 64 and torch.equal(some.rows, kept)
    torch.testing.assert_close(some.logits, everything.logits[kept], atol=1e-4, rtol=0)
    torch.testing.assert_close(some.object_scores, everything.object_scores[kept], atol=1e-4, rtol=0)
    none = decoded(small.ours, embedding, prompts, several, above=2.0)
    assert [len(part) for part in (*none, none.object_scores)] == [0] * 4


def test_guidance_equals_transformers(small):
    """PerSAM's attention and target, which transformers' Sam2Model takes as its SamModel does."""
    photo = make_image(60, 80)
    embedding, maps = encode(small.ours, [photo]), small.maps(photo)
    numbers = torch.Generator().manual_seed(1)
    attention, target = torch.randn(1, 64, generator=numbers), torch.randn(1, 64, generator=numbers)
    point = torch.tensor([[[[50.0, 40.0]]]])
    with torch.no_grad():
        theirs = small.theirs(
            image_embeddings=maps,
            input_points=point,
            input_labels=torch.ones(1, 1, 1, dtype=torch.int),
            attention_similarity=attention[:, None, None],
            target_embedding=target[:, None, None],
        )
    prompt = Prompt(np.array([[50.0 * 80 / 128, 40.0 * 60 / 128]]), np.array([1], np.int32))
    ours = decoded(small.ours, embedding, [prompt], True, guidance=Guidance(attention, target))
    torch.testing.assert_close(ours.logits, theirs.pred_masks[0], atol=1e-3, rtol=0)
    assert (ours.logits - decoded(small.ours, embedding, [prompt], True).logits).abs().max() > 0.1


@pytest.mark.parametrize("name", HIGH_RES)
def test_a_map_of_another_size_is_refused(small, name):
    """Its values would be taken for others: the fast sum of two arrays repeats a smaller one."""
    embedding = encode(small.ours, [make_image(60, 80)])
    embedding.maps[name] = embedding.maps[name][:, :, ::2, ::2]
    with pytest.raises(ValueError, match=f"map {name} is .*Run Get SAM Embedding again"):
        as_embedding(embedding, small.ours)


def test_a_mask_alone_equals_transformers(small):
    photo = make_image(60, 80)
    embedding, maps = encode(small.ours, [photo]), small.maps(photo)
    logits = small.answers(maps, cases(60, 80)["one point"], True)[0][:, :1]
    with torch.no_grad():
        theirs = small.theirs(image_embeddings=maps, input_masks=logits)
    ours = decoded(small.ours, embedding, [Prompt(*NOTHING, None, logits[0])], True)
    torch.testing.assert_close(ours.logits, theirs.pred_masks[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("count", [1, 3])
def test_several_images_in_one_call(small, count):
    """A GPU encodes several at a time: each is what it is alone."""
    photos = [make_image(128, 128, seed) for seed in range(count)]
    pixels = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2)
    together = small.ours.features(pixels, torch.float32)
    for index, photo in enumerate(photos):
        for name, wanted in zip(("high_res_0", "high_res_1", "image"), small.maps(photo), strict=True):
            torch.testing.assert_close(together[name][index], wanted[0], atol=1e-3, rtol=0)


def test_bfloat16_is_near(small):
    pixels = torch.from_numpy(make_image(128, 128)).permute(2, 0, 1)[None]
    exact, half = (small.ours.features(pixels, dtype)["image"] for dtype in (torch.float32, torch.bfloat16))
    assert half.dtype == torch.float32 and 1e-4 < (exact - half).abs().max() / exact.std() < 0.3


def test_the_encoders_own_forward_is_the_reference_for_the_fast_one(small):
    pixels = torch.randn(1, 3, SMALL_SIDE, SMALL_SIDE)
    *_, coarse = small.ours.image_encoder(pixels)
    with torch.no_grad():
        wanted = small.theirs.get_image_embeddings(pixels)[-1]
    torch.testing.assert_close(coarse + small.ours.no_mem_embed.view(1, -1, 1, 1), wanted, atol=1e-4, rtol=0)


class TestNodes:
    def test_another_prompt_encodes_nothing(self, small, monkeypatch):
        calls = []
        features = SAM2Model.features
        monkeypatch.setattr(SAM2Model, "features", lambda *args: calls.append(1) or features(*args))
        image = as_image(make_image(60, 80), make_image(60, 80, 1))
        for x in (20, 30, 40):
            masks = Segment().execute(small.ours, image, positive_coords=f'[{{"x": {x}, "y": 25}}]')[0]
        assert masks.shape == (2, 60, 80) and len(calls) == 2, "two images, three prompts"

    def test_logits_feed_back_through_the_nodes(self, small):
        embedding = encode(small.ours, [make_image(60, 80)])
        point = '[{"x": 30, "y": 25}]'
        first = PredictMask().execute(small.ours, embedding, positive_coords=point, candidate="best", multimask="on")
        logits = first[3]
        assert logits.shape == (1, 1, 32, 32)
        again = PredictMask().execute(small.ours, embedding, positive_coords=point, logits=logits)[0]
        assert again.shape == (1, 60, 80)

    def test_a_bare_array_lacks_the_finer_maps(self, small):
        image = as_image(make_image(60, 80))
        bare = np.array(encode(small.ours, image))
        with pytest.raises(ValueError, match="lacks the high-resolution maps that SAM 2 needs"):
            PredictMask().execute(small.ours, bare, positive_coords='[{"x": 30, "y": 25}]', image=image)


META_NAMES = (  # of facebookresearch/sam2's own modules, one of each kind
    "image_encoder.trunk.pos_embed",
    "image_encoder.trunk.patch_embed.proj.weight",
    "image_encoder.trunk.blocks.1.norm1.bias",
    "image_encoder.trunk.blocks.1.attn.qkv.weight",
    "image_encoder.trunk.blocks.1.mlp.layers.1.weight",
    "image_encoder.trunk.blocks.1.proj.weight",
    "image_encoder.neck.convs.3.conv.bias",
    "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    "sam_prompt_encoder.point_embeddings.3.weight",
    "sam_prompt_encoder.mask_downscaling.6.weight",
    "sam_mask_decoder.transformer.layers.1.cross_attn_image_to_token.out_proj.weight",
    "sam_mask_decoder.transformer.layers.0.mlp.layers.0.bias",
    "sam_mask_decoder.transformer.norm_final_attn.weight",
    "sam_mask_decoder.output_upscaling.3.bias",
    "sam_mask_decoder.output_hypernetworks_mlps.3.layers.2.weight",
    "sam_mask_decoder.iou_prediction_head.layers.2.bias",
    "sam_mask_decoder.pred_obj_score_head.layers.1.weight",
    "sam_mask_decoder.obj_score_token.weight",
    "sam_mask_decoder.conv_s1.weight",
    "no_mem_embed",
)
VIDEO = {
    "maskmem_tpos_enc": torch.zeros(7, 1, 1, 8),
    "memory_attention.layers.0.norm1.weight": torch.ones(8),
    "obj_ptr_tpos_proj.weight": torch.ones(8, 8),
    "no_obj_embed_spatial": torch.zeros(1, 8),
    "mask_downsample.weight": torch.ones(1, 1, 4, 4),
}
HUGGING_FACE_VIDEO = {
    "memory_temporal_positional_encoding": torch.zeros(7, 1, 1, 8),
    "memory_encoder.projection.weight": torch.ones(8, 8, 1, 1),
    "occlusion_spatial_embedding_parameter": torch.zeros(1, 8),
    "temporal_positional_encoding_projection_layer.weight": torch.ones(8, 8),
}


class TestFiles:
    def meta(self, small):
        state = small.ours.state_dict()
        assert not set(META_NAMES) - set(state)
        return state

    @pytest.mark.parametrize("layout", ["meta.pt", "no wrapper", "kijai", "kijai fp16", "transformers video", "prefixed"])
    def test_all_layouts_load_to_equal_weights(self, small, tmp_path, layout):
        meta, path = self.meta(small), tmp_path / ("x.safetensors" if "kijai" in layout else "x.pt")
        if "kijai" in layout:
            kept = {name: tensor.half() if "fp16" in layout else tensor.clone() for name, tensor in (meta | VIDEO).items()}
            save_file(kept, path)
        else:
            wrapped = {"model": meta | VIDEO}
            contents = {
                "meta.pt": wrapped,
                "no wrapper": meta | VIDEO,
                "transformers video": small.state | HUGGING_FACE_VIDEO,
                "prefixed": {"state_dict": {f"sam2_model.{name}": tensor for name, tensor in meta.items()}},
            }
            torch.save(contents[layout], path)
        model = load_model(path, "fp32")
        assert model.family == ("SAM 2" if layout == "prefixed" else "SAM 2.1")
        assert model.state_dict().keys() == meta.keys()
        for name, tensor in model.state_dict().items():
            wanted = meta[name].half().float() if "fp16" in layout else meta[name]
            assert tensor.dtype == torch.float32 and torch.equal(tensor, wanted), name

    def test_one_of_the_two_positions_is_enough(self, small, tmp_path):
        state = {name: tensor for name, tensor in small.state.items() if not name.startswith("shared_image_embedding")}
        save_file(state, tmp_path / "x.safetensors")
        assert load_model(tmp_path / "x.safetensors").encoder_identity == small.ours.encoder_identity

    def changed(self, small, change):
        state = {name: tensor.clone() for name, tensor in small.ours.state_dict().items()}
        change(state)
        return state

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("image_encoder.trunk.blocks.2.norm1.weight"), "is missing or has an unknown shape"),
            (lambda s: s.pop("sam_mask_decoder.conv_s0.weight"), "not a whole SAM 2 checkpoint of size small test: 1 tensor"),
            (lambda s: s.pop("sam_mask_decoder.iou_token.weight"), "iou_token.* is missing"),
            (lambda s: s.update({"sam_prompt_encoder.surplus": torch.zeros(2)}), "1 tensor .*surplus"),
            (
                lambda s: s.update({"image_encoder.trunk.blocks.8.norm1.weight": torch.zeros(2)}),
                r"9 blocks of width 16: .*tiny.*\)\.$",
            ),
            (
                lambda s: s.update({"sam_mask_decoder.hf_token.weight": torch.zeros(1, 8)}),
                "SAM-HQ variant of SAM 2, .*use sam2.1_",
            ),
            (
                lambda s: s.update({"detector.backbone.x": torch.zeros(2)}),
                "part of SAM 3 without the tracker, .*use the whole file",
            ),
        ],
        ids=["no norm", "no conv_s0", "no iou token", "surplus", "depth", "HQ", "mixed with SAM 3"],
    )
    def test_what_is_not_whole_is_refused_in_a_sentence(self, small, tmp_path, change, message):
        save_file(self.changed(small, change), tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match=f"x.safetensors.*{message}") as error:
            load_model(tmp_path / "x.safetensors")
        assert str(error.value).count(". ") <= 1

    def test_two_different_positions_are_refused(self, small, tmp_path):
        state = {**small.state, "shared_image_embedding.positional_embedding": torch.zeros(2, 32)}
        save_file(state, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match="two different tensors"):
            load_model(tmp_path / "x.safetensors")

    def test_relatives_of_transformers_are_named(self, tmp_path):
        import transformers

        with torch.device("meta"):
            model = transformers.Sam3Model(transformers.Sam3Config())
        save_file({name: torch.zeros(1) for name in model.state_dict()}, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match="part of SAM 3 without the tracker"):
            load_model(tmp_path / "x.safetensors")

    def test_a_truncated_file_is_refused(self, small, tmp_path):
        whole = small.path.read_bytes()
        (tmp_path / "x.safetensors").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="x.safetensors"):
            load_model(tmp_path / "x.safetensors")

    def test_weights_that_are_half_sam_1_are_refused(self, small, tiny_sam, tmp_path):
        mixed = {**tiny_sam.state_dict(), **small.ours.state_dict()}
        save_file({name: tensor.clone() for name, tensor in mixed.items()}, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match="tensors missing, unknown or of a different shape"):
            load_model(tmp_path / "x.safetensors")


def test_identities_follow_the_weights(small, tmp_path):
    again = load_model(small.path)
    assert (again.encoder_identity, again.decoder_identity) == (small.ours.encoder_identity, small.ours.decoder_identity)
    with torch.no_grad():
        again.no_mem_embed.add_(1)
    assert again.encoder_identity != small.ours.encoder_identity
    assert again.decoder_identity == small.ours.decoder_identity
    pixels = torch.from_numpy(make_image(128, 128)).permute(2, 0, 1)[None]
    before, after = (model.features(pixels, torch.float32)["image"] for model in (small.ours, again))
    torch.testing.assert_close(after, before + 1, atol=1e-4, rtol=0)


@pytest.mark.parametrize("place", ["trunk", "conv_s0", "decoder"])
def test_changed_weights_are_seen(small, place):
    model = load_model(small.path)
    pixels = torch.from_numpy(make_image(128, 128)).permute(2, 0, 1)[None]
    model.features(pixels, torch.float32)
    weight = {
        "trunk": model.image_encoder.trunk.blocks[3].attn.qkv.weight,
        "conv_s0": model.sam_mask_decoder.conv_s0.weight,
        "decoder": model.sam_mask_decoder.iou_token.weight,
    }[place]
    encoder, decoder = model.encoder_identity, model.decoder_identity
    with torch.no_grad():
        weight.mul_(2)
    assert (model.encoder_identity != encoder) == (place != "decoder")
    assert (model.decoder_identity != decoder) == (place != "trunk")
    changed = model.features(pixels, torch.float32)["high_res_0"] - small.ours.features(pixels, torch.float32)["high_res_0"]
    assert (changed.abs().max() > 1e-3) == (place == "conv_s0")


@pytest.mark.parametrize("layers", [0, 1])
def test_segment_everything_equals_sam_2s_generator(small, layers):
    photo = make_image(90, 120)
    options = {"points_per_side": 4, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.6, "crop_n_layers": layers}
    options |= {"box_nms_thresh": 1.0, "crop_nms_thresh": 1.0}  # random masks span the image: by their boxes all are one
    theirs = reference_sam2_automask.generate(small.theirs, SMALL_SIDE, photo, **options)
    ours = segment_everything(small.ours, photo, AutoMaskOptions(**options))
    assert len(ours) == len(theirs) >= 3
    left = [mask.full((90, 120)) for mask in ours]
    for wanted in theirs:
        ious = [(mask & wanted["mask"]).sum() / (mask | wanted["mask"]).sum() for mask in left]
        match = ours[best := int(np.argmax(ious))]
        assert ious[best] >= 0.999
        assert np.abs(np.array(match.box) - wanted["box"]).max() <= 1
        assert (match.score, match.stability) == pytest.approx((wanted["score"], wanted["stability"]), abs=1e-3)


def test_the_balanced_preset_is_the_familys_own(small, tiny_model):
    """`pred_iou_thresh` in the signatures of SAM2AutomaticMaskGenerator and SamAutomaticMaskGenerator."""
    assert preset_options("balanced", small.ours) == AutoMaskOptions(pred_iou_thresh=0.8)
    assert preset_options("balanced", tiny_model) == AutoMaskOptions()
    assert preset_options("few and large", small.ours) == preset_options("few and large", tiny_model)


class TestFolders:
    """Packs for SAM 2 put their files into `models/sam2`, Impact Pack into `models/sams`: both are listed."""

    def test_both_are_listed_and_found(self, small, monkeypatch, tmp_path):
        comfy = FakeComfyUI(tmp_path)
        install(monkeypatch, comfy)
        for kind in ("sams", "sam2"):
            (tmp_path / "models" / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(small.path, tmp_path / "models" / kind / f"in_{kind}.safetensors")
        assert {"in_sams.safetensors", "in_sam2.safetensors"} <= set(SAM_MODELS.names())
        for kind in ("sams", "sam2"):
            (model,) = SAMModelLoader().load_model(f"in_{kind}.safetensors")
            assert model.encoder_identity == small.ours.encoder_identity
        assert model_folders(SAM_MODELS.kind) == [tmp_path / "models" / "sams"], "downloads go there"


def test_it_can_be_taught(small):
    check_taught(small.ours)


def test_a_trained_decoder_answers_what_it_knows(small, tmp_path):
    check_trained(small.ours, tmp_path)
