"""SAMEmbedding, the cache of embeddings, and embeddings as photos."""

import copy
import pickle

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from PIL import Image
from samkit.nodes.embedding import GetSAMEmbedding, SAMEmbeddingToImage
from samkit.nodes.predict import Segment
from samkit.sam import SAMEmbedding, SAMError, as_segmenter, encode
from samkit.sam.models.sam import run_encoder
from samkit.sam.store.keys import image_key
from samkit.sam.store.memory import ByteCache
from samkit.sam.tasks.embed import cache
from samkit.utils.threads import in_threads
from segment_anything import SamPredictor

CLICK = '[{"x": 30, "y": 25}]'


@pytest.fixture
def runs(monkeypatch):
    """Counts the image encoder's forward passes."""
    counted = []

    def counting(encoder, images, dtype, early):
        counted.append(len(images))
        return run_encoder(encoder, images, dtype, early)

    monkeypatch.setattr("samkit.sam.models.sam.run_encoder", counting)
    return counted


@pytest.fixture
def embedding(tiny_model):
    return encode(tiny_model, as_image(*(make_image(60, 80, seed) for seed in range(3))))


def test_it_is_what_the_socket_says(embedding, tiny_model):
    assert isinstance(embedding, np.ndarray) and embedding.dtype == np.float32 and embedding.flags.c_contiguous
    assert embedding.shape == (3, 32, 8, 8)
    assert (embedding.original_size, embedding.input_size) == ((60, 80), (96, 128))
    assert embedding.encoder_identity == tiny_model.encoder_identity
    assert embedding.image_keys == tuple(image_key(make_image(60, 80, seed)) for seed in range(3))


def test_an_image_that_comes_again_is_known_by_every_value(monkeypatch):
    photo = make_image(300, 400)
    key, hashed = image_key(photo), []
    monkeypatch.setattr("samkit.sam.store.keys.in_threads", lambda work, items: hashed.append(1) or in_threads(work, items))
    assert image_key(photo.copy()) == key and not hashed
    assert image_key(photo.reshape(400, 300, 3)) != key and len(hashed) == 1
    for place in (1, 200_000, photo.size - 1):  # none of them among the values that tell what a photo looks like
        assert image_key(photo) == key
        photo.reshape(-1)[place] ^= 1  # the caller's own array, changed in place
        assert image_key(photo) != key
        photo.reshape(-1)[place] ^= 1
        assert image_key(photo) == key


def test_every_frame_is_the_predictors(embedding, tiny_sam):
    for seed in range(3):
        predictor = SamPredictor(tiny_sam)
        predictor.set_image(make_image(60, 80, seed))
        np.testing.assert_allclose(embedding[seed], predictor.features[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("remake", [copy.copy, copy.deepcopy, lambda e: e.copy(), lambda e: e[:]])
def test_copies_keep_what_it_knows(embedding, remake):
    again = remake(embedding)
    assert type(again) is SAMEmbedding and np.array_equal(again, embedding)
    assert vars(again) == vars(embedding)


def test_pickles_keep_what_it_knows(embedding):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(embedding, protocol))
        assert type(again) is SAMEmbedding and np.array_equal(again, embedding) and vars(again) == vars(embedding)


@pytest.mark.parametrize(
    "index", [slice(1, 3), slice(None, None, 2), [2, 0], np.array([True, False, True]), (slice(0, 1),), np.array([1])], ids=str
)
def test_slices_along_the_batch_keep_their_images(embedding, index):
    part = embedding[index]
    frames = np.arange(3)[index]
    assert type(part) is SAMEmbedding and part.original_size == (60, 80) and part.flags.c_contiguous
    assert part.image_keys == tuple(embedding.image_keys[i] for i in frames)
    assert np.array_equal(part, np.array(embedding)[frames])


def test_what_is_no_embedding_any_more_is_a_plain_array(embedding):
    for other in (embedding * 2, embedding[0], embedding[:, :4], np.sqrt(abs(embedding)), embedding[0, 0, 0, 0]):
        assert not isinstance(other, SAMEmbedding)
    assert np.array_equal(embedding + 0, np.array(embedding))


def test_a_slice_is_decoded_like_the_whole(embedding, tiny_model):
    from samkit.nodes.predict import PredictMask

    whole, *_ = PredictMask().execute(tiny_model, embedding, positive_coords=CLICK)
    part, *_ = PredictMask().execute(tiny_model, embedding[1:], positive_coords=CLICK)
    assert torch.equal(whole[1:], part)


def test_moving_a_point_never_encodes_again(tiny_model, runs):
    image = as_image(make_image(60, 80))
    first = Segment().execute(tiny_model, image, positive_coords=CLICK)
    assert runs == [1]
    moved = Segment().execute(tiny_model, image.clone(), positive_coords='[{"x": 31, "y": 25}]')
    Segment().execute(tiny_model, image, bboxes=(3, 3, 40, 40), candidate="all")
    GetSAMEmbedding().get_sam_embedding(image, tiny_model)
    assert runs == [1]
    assert not torch.equal(first[3], moved[3])


def test_only_new_images_of_a_batch_are_encoded(tiny_model, runs):
    photos = [make_image(60, 80, seed) for seed in range(4)]
    encode(tiny_model, photos[:2])
    again = encode(tiny_model, [photos[3], photos[0], photos[3], photos[1], photos[2]])
    assert runs == [1] * 4
    fresh = encode(tiny_model, photos)
    assert np.array_equal(again, np.array(fresh)[[3, 0, 3, 1, 2]])


def test_the_cache_knows_weights_from_each_other(tiny_sam, tiny_model, runs):
    photo = make_image(60, 80)
    encode(tiny_model, [photo])
    encode(as_segmenter(tiny_sam), [photo])
    assert runs == [1], "the same weights in two objects are one model"
    with torch.no_grad():
        tiny_model.image_encoder.neck[0].weight[0] += 1
    encode(tiny_model, [photo])
    assert runs == [1, 1]


def test_precisions_do_not_share_embeddings(tiny_model, runs, monkeypatch):
    monkeypatch.setattr("samkit.sam.placement.precision.bfloat16_pays", lambda: True)
    photo = make_image(60, 80)
    exact = encode(tiny_model, [photo])
    tiny_model.precision = "bf16"
    rounded = encode(tiny_model, [photo])
    assert runs == [1, 1] and not np.array_equal(exact, rounded)
    assert np.abs(exact - rounded).max() < 0.2 and rounded.dtype == np.float32
    tiny_model.precision = "fp16"
    assert np.array_equal(encode(tiny_model, [photo]), exact), "a CPU never computes in fp16"
    tiny_model.precision = "bf16"
    monkeypatch.setattr("samkit.sam.placement.precision.bfloat16_pays", lambda: False)
    assert np.array_equal(encode(tiny_model, [photo]), exact), "nor in bf16 where that is slower"
    assert runs == [1, 1]


def test_a_cached_embedding_cannot_be_changed_from_outside(tiny_model):
    photo = make_image(60, 80)
    one = encode(tiny_model, [photo])
    before = np.array(one)
    with pytest.raises(ValueError, match="read-only"):
        one *= 0
    (writable,) = GetSAMEmbedding().get_sam_embedding(as_image(photo), tiny_model)
    writable *= 0
    assert np.array_equal(encode(tiny_model, [photo]), before)


def test_the_cache_is_bounded_in_bytes_and_drops_the_least_recently_used():
    held = ByteCache(limit=1000)
    for key in "abc":
        held.put((key,), np.zeros(80, np.float32))
    held.get(("a",))
    held.put(("d",), np.zeros(80, np.float32))
    assert [held.get((key,)) is not None for key in "abcd"] == [True, False, True, True]
    assert held.nbytes == 960
    held.put(("huge",), np.zeros(500, np.float32))
    assert held.get(("huge",)) is None and held.nbytes <= 1000


def test_the_shared_cache_starts_bounded():
    assert 0 < cache.limit <= 1 << 30


def test_different_sizes_need_calls_of_their_own(tiny_model):
    with pytest.raises(SAMError, match="The images have 2 different sizes"):
        encode(tiny_model, [make_image(60, 80), make_image(60, 81)])
    with pytest.raises(SAMError, match=r"uint8 array \[H, W, 3\], but this one is float32"):
        encode(tiny_model, [np.zeros((4, 4, 3), np.float32)])
    with pytest.raises(SAMError, match="no images"):
        encode(tiny_model, [])


def to_image(embedding, **mode):
    return SAMEmbeddingToImage().sam_embedding_to_noise_image(embedding, **mode)[0]


def test_bytes_are_the_art_venture_image(tiny_model):
    """Their node: `Image.frombytes("RGBA", (C * 4, h * w / 4), float32 bytes)`, then pixels / 255."""
    embedding = encode(tiny_model, [make_image(60, 80)])
    expected = Image.frombytes("RGBA", (32 * 4, 8 * 8 // 4), np.array(embedding).tobytes())
    image = to_image(embedding)
    assert torch.equal(image, torch.from_numpy(np.array(expected).astype(np.float32) / 255.0)[None])


def test_stock_sams_bytes_are_1024_square():
    assert to_image(np.zeros((1, 256, 64, 64), np.float32)).shape == (1, 1024, 1024, 4)


@pytest.mark.parametrize("shape", [(2, 32, 8, 8), (1, 16, 3, 3)])
def test_bytes_survive_saveimage_and_png(tmp_path, shape):
    """ComfyUI's SaveImage truncates `255 * x` to uint8."""
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for index, frame in enumerate(to_image(values)):
        pixels = np.clip(255.0 * frame.numpy(), 0, 255).astype(np.uint8)
        Image.fromarray(pixels, "RGBA").save(tmp_path / "embedding.png")
        back = np.frombuffer(np.array(Image.open(tmp_path / "embedding.png")).tobytes(), "<f4").reshape(shape[1:])
        assert np.array_equal(back, values[index])


def test_pca_has_the_images_proportions(embedding):
    image = to_image(embedding, mode="pca")
    assert image.shape == (3, 60, 80, 3) and image.std() > 0.05
    assert to_image(np.array(embedding), mode="pca").shape == (3, 128, 128, 3)


def test_images_of_no_embedding_are_refused():
    with pytest.raises(SAMError, match="The embedding has no frames"):
        to_image(np.zeros((0, 256, 64, 64), np.float32))
    with pytest.raises(SAMError, match="mode is 'jpeg'"):
        to_image(np.zeros((1, 4, 4, 4), np.float32), mode="jpeg")
