"""The check before every node: what its own declaration does not allow is refused by name, and all else arrives as declared."""

import inspect
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from load_pack import inputs_of
from samkit import NODE_CLASS_MAPPINGS
from samkit.nodes import door
from samkit.nodes.automask import AutoMask
from samkit.nodes.door import guarded
from samkit.nodes.embedding import GetSAMEmbedding, SAMEmbeddingToImage
from samkit.nodes.embedding_file import SaveEmbedding
from samkit.nodes.masks import SelectMasks
from samkit.nodes.model import SAMModelLoader
from samkit.nodes.predict import PredictMask, Segment
from samkit.nodes.refine import RefineMask
from samkit.nodes.save_masks import SaveMasks
from samkit.nodes.teach import SaveConcept, Teach, TrainDecoder
from samkit.sam import SAMError

CLICK = '[{"x": 30, "y": 25}]'
IMAGE = as_image(make_image(60, 80))
MASKS = torch.ones(2, 8, 8)
INPUTS = [(node_id, name) for node_id, node in NODE_CLASS_MAPPINGS.items() for name in inputs_of(node)]
NO_NUMBERS = [None, True, "3", "", [3], {}, math.nan, math.inf, -math.inf, 10**400, 10**5000, 1j, torch.tensor(3), object()]
NO_TEXT = [None, 3, 0.5, True, ["a"], b"a", {}, object(), torch.zeros(3)]


class Plain:
    """A node as somebody might add it: it checks nothing itself."""

    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": ("IMAGE",),
                "count": ("INT", {"default": 3, "min": 1, "max": 9}),
                "share": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0}),
                "choice": (["one", "two"], {"default": "one"}),
                "on": ("BOOLEAN", {"default": False}),
                "name": ("STRING", {"default": "name"}),
            },
            "optional": {"mask": ("MASK",), "text": ("STRING", {"forceInput": True}), "other": ("SOMETHING",)},
        }

    def execute(
        self, image, count=3, share=0.5, choice="one", on=False, name="name", mask=None, text=None, other=None
    ):  # fmt: skip
        return image, count, share, choice, on, name, mask, text, other


guarded(Plain)


@pytest.mark.parametrize(("node_id", "name"), INPUTS)
def test_every_input_of_every_node_refuses_what_its_declaration_does_not_allow(node_id, name):
    node = NODE_CLASS_MAPPINGS[node_id]
    kind, *options = inputs_of(node)[name]
    more = options[0] if options else {}
    check = door._inputs(node)[name].check
    if isinstance(kind, list) or kind == "STRING":
        wrong = [*NO_TEXT, *(["x" * 5000] if not more.get("multiline") and not more.get("forceInput") else [])]
        wrong = wrong[:-1] if more.get("widgetType") else wrong  # the editor's text may be long
        wrong += [] if kind == "STRING" or name in getattr(node, "LOOKED_UP", ()) else ["nothing of the kind"]
    elif kind in ("INT", "FLOAT"):
        wrong = [*NO_NUMBERS, *([more["min"] - 1, more["max"] + 1] if "min" in more else [])]
        wrong += [2.5, Fraction(1, 3)] if kind == "INT" else []
    elif kind == "BOOLEAN":
        wrong = [None, "true", "", 2, 0.5, [True], math.nan, torch.tensor(True)]
    elif set(kind.split(",")) & set(door._SOCKETS):
        wrong = [None, 5, "text", [], {}, object(), torch.nn.Linear(2, 2), torch.zeros(3, device="meta"), np.zeros(3)]
    else:
        pytest.skip("boxes and what other packs make: their readers say what is wrong")
    for value in wrong:
        with pytest.raises(SAMError, match=f"^{name}") as seen:
            check(value, name)
        assert len(str(seen.value)) < 500, "the value is shortened"


@pytest.mark.parametrize("node_id", NODE_CLASS_MAPPINGS)
def test_every_node_is_checked_and_looks_to_comfyui_as_before(node_id):
    node = NODE_CLASS_MAPPINGS[node_id]
    for name in {node.FUNCTION, "execute"}:
        if hasattr(node, name):
            method = getattr(node, name)
            original = inspect.unwrap(method)
            assert method is not original and inspect.signature(method) == inspect.signature(original)
            assert (method.__name__, method.__doc__) == (original.__name__, original.__doc__)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"count": None}, "count is None: it must be a whole number from 1 to 9"),
        ({"count": 2.5}, "count is 2.5: it must be a whole number"),
        ({"count": 10}, "count is 10: it must be a whole number from 1 to 9"),
        ({"count": True}, "count is True"),
        ({"share": "0.5"}, "share is '0.5': it must be a number from 0 to 1"),
        ({"share": math.nan}, "share is nan"),
        ({"choice": ["one"]}, r"choice is \['one'\]: choose one of one, two"),
        ({"choice": "three"}, "choice is 'three': choose one of one, two"),
        ({"on": "yes"}, "on is 'yes': it must be true or false"),
        ({"name": "x" * 5000}, r"name has 5000 characters \('x+\.\.\.x+'\): the limit is 1000"),
        ({"name": "a\ud800"}, "name is .*: character 1 is half of a surrogate pair"),
        ({"text": 3}, "text is 3: it must be text"),
        ({"mask": "all"}, r"mask is 'all': it must be a MASK tensor \[N, H, W\]"),
        ({"mask": torch.zeros(2, 2).to_sparse()}, "mask is a sparse tensor"),
        ({"mask": torch.zeros(1, 2, 2, device="meta")}, "mask is a meta tensor"),
        ({"mask": torch.zeros(1, 2, 2, dtype=torch.complex64)}, "mask is a tensor of torch.complex64"),
        ({"image": None}, r"image is None: it must be an IMAGE tensor \[B, H, W, C\]"),
        ({"image": np.zeros((1, 4, 4, 3))}, r"image is of type ndarray, float64, shape \(1, 4, 4, 3\)"),
        ({"image": torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(3, 3)])}, "image is a nested tensor"),
        ({"image": torch.zeros(1, 4, 4, 3).to(torch.float8_e4m3fn)}, "image is a tensor of torch.float8_e4m3fn"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_new_node_needs_no_line_for_it(given, words):
    given = {"image": IMAGE, **given}
    with pytest.raises(SAMError, match=words):
        Plain().execute(**given)
    with pytest.raises(SAMError, match=words):
        names = list(inspect.signature(Plain.execute).parameters)[1:]
        defaults = inspect.signature(Plain.execute).parameters
        Plain().execute(*(given.get(name, defaults[name].default) for name in names))


def test_values_arrive_as_the_declaration_has_them():
    outputs = Plain().execute(IMAGE, np.int64(4), np.float32(0.25), np.str_("two"), np.bool_(True), "a", None, None, "anything")
    assert outputs[1:6] == (4, 0.25, "two", True, "a") and outputs[8] == "anything" and outputs[0] is IMAGE
    assert [type(value) for value in outputs[1:3]] == [int, float] and outputs[4] is True
    assert Plain().execute(IMAGE, 4.0, 1)[1:3] == (4, 1.0) and type(Plain().execute(IMAGE, 4.0)[1]) is int
    learned = IMAGE.clone().requires_grad_()
    assert not Plain().execute(learned)[0].requires_grad and learned.requires_grad


def test_the_check_is_made_once_however_often_a_node_is_registered():
    before = inspect.unwrap(Plain.execute)
    guarded(guarded(Plain))
    assert Plain.execute.__wrapped__ is before


def test_what_a_node_has_no_value_for_is_what_it_was(tiny_model):
    empty = Segment().execute(tiny_model, IMAGE, bboxes=None)
    assert empty[0].shape == (1, 60, 80) and not empty[0].any(), "a detector found nothing"
    clicked = Segment().execute(tiny_model, IMAGE, CLICK)
    unconnected = Segment().execute(
        tiny_model, IMAGE, CLICK, None, mask_prompt=None, logits=None, concept=None, meta_batch=None
    )
    assert torch.equal(clicked[0], unconnected[0]) and clicked[0].any()
    with pytest.raises(SAMError, match="No prompt connected"):
        Segment().execute(tiny_model, IMAGE, positive_coords=None)


def test_comfyuis_own_way_into_a_node_is_checked_too(tiny_model):
    for value in (None, "true", 5):
        with pytest.raises(SAMError, match="show_result is"):
            Segment().run(show_result=value, sam_model=tiny_model, image=IMAGE, positive_coords=CLICK)
    with pytest.raises(SAMError, match="candidate is 'worst'"):
        Segment().run(sam_model=tiny_model, image=IMAGE, positive_coords=CLICK, candidate="worst")


def test_names_of_files_are_looked_up_by_the_node_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    for name in ("nowhere.pth", "ViT-nowhere"):
        with pytest.raises(SAMError, match="there is no checkpoint"):
            SAMModelLoader().load_model(name)
    with pytest.raises(SAMError, match="model_name is 5"):
        SAMModelLoader().load_model(5)
    asked = []
    monkeypatch.setattr(
        "samkit.sam.weights.catalog.fetch", lambda file, folders: asked.append(file) or (_ for _ in ()).throw(SAMError("x"))
    )
    with pytest.raises(SAMError):
        SAMModelLoader().load_model("ViT-B")
    assert [file.name for file in asked] == ["sam_vit_b_01ec64.pth"], (
        "an alias of a replaced node is not in the list, and is taken"
    )


@pytest.mark.parametrize("name", [5, ["a"], {}, math.nan, "x" * 5000])
def test_comfyuis_own_check_of_a_list_with_aliases_takes_anything(name):
    checked = [node for node in NODE_CLASS_MAPPINGS.values() if hasattr(node, "VALIDATE_INPUTS")]
    assert len(checked) >= 2
    for node in checked:
        assert "is not in the list" in node.VALIDATE_INPUTS(**{node.LOOKED_UP[0]: name})


def test_lists_of_values_are_checked_one_by_one(tmp_path, monkeypatch, tiny_model):
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    image, mask = torch.full((1, 8, 8, 3), 0.5), torch.ones(1, 8, 8)
    save = SaveMasks().execute
    for given, words in (
        ({"labels": [["cat"]]}, r"labels is \['cat'\]: it must be text"),
        ({"labels": ["cat", 3]}, r"labels\[1\] is 3: it must be text"),
        ({"scores": [math.nan]}, "scores is nan: it must be a finite number"),
        ({"format": ["GIF"]}, "format is 'GIF': choose one of"),
        ({"format": []}, "format is an empty list"),
        ({"masks": []}, "masks is an empty list"),
        ({"masks": [mask, None]}, r"masks\[1\] is None: it must be a MASK"),
        ({"bboxes": ["box"]}, "bboxes is 'box'"),
    ):
        with pytest.raises(SAMError, match=words):
            save(**{"images": [image], "masks": [mask], "filename_prefix": ["x"], "format": ["PNG"], **given})
    assert not (tmp_path / "output").exists()
    save([image], [mask], ["x"], ["PNG"], labels=[], scores=[None], bboxes=[None])
    assert (tmp_path / "output" / "x").is_dir(), "no labels, no scores, no boxes"
    with pytest.raises(SAMError, match="steps is 0"):
        Teach().execute([tiny_model], [image], [mask], [0])
    with pytest.raises(SAMError, match=r"other_images\[1\] is None"):
        TrainDecoder().execute([tiny_model], [image], [mask], other_images=[image, None])


@pytest.mark.parametrize(
    "change",
    [
        {"maps": None},
        {"maps": {"fine": None}},
        {"maps": {"fine": np.zeros((3, 2, 2, 2), np.float32)}},
        {"image_keys": ()},
        {"image_keys": None},
        {"original_size": None},
        {"original_size": (0, 5)},
        {"encoder_identity": 5},
        {"input_size": "ab"},
    ],
    ids=str,
)
def test_a_damaged_embedding_is_refused(tmp_path, monkeypatch, tiny_model, change):
    monkeypatch.setattr("samkit.utils.comfy_folders.PACK", tmp_path)
    (embedding,) = GetSAMEmbedding().get_sam_embedding(IMAGE, tiny_model)
    for name, value in change.items():
        setattr(embedding, name, value)
    for call in (
        lambda: PredictMask().execute(tiny_model, embedding, CLICK),
        lambda: SAMEmbeddingToImage().sam_embedding_to_noise_image(embedding),
        lambda: SaveEmbedding().execute(embedding),
    ):
        with pytest.raises(SAMError, match="embedding is damaged: .* Run Get SAM Embedding again"):
            call()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_sockets_say_what_to_connect(tiny_model):
    for call, words in (
        (
            lambda: AutoMask().execute(tiny_model, IMAGE, concept="cat"),
            "concept is 'cat': connect SAM Teach or Load SAM Concept",
        ),
        (lambda: SaveConcept().execute(None), "concept is None: connect SAM Teach"),
        (lambda: SelectMasks().execute(MASKS, "index", -1), "start is -1: it must be a whole number from 0 to 1000000"),
        (lambda: RefineMask().execute(MASKS, grow=None), "grow is None: it must be a whole number from -256 to 256"),
        (lambda: AutoMask().execute(tiny_model, IMAGE, points_per_side=math.nan), "points_per_side is nan"),
        (lambda: Segment().execute(tiny_model, IMAGE, [{"x": 1, "y": 2}]), "positive_coords is .*: it must be text"),
    ):
        with pytest.raises(SAMError, match=words):
            call()
