"""The editor's contract: the run refuses at the limits that the browser is told, and both see the same cases alike.

The browser's half is `tests/javascript/contract.test.mjs`, on the same table.
"""

import base64
import json

import pytest
from load_pack import ROOT
from samkit.nodes.editor import contract
from samkit.nodes.editor.contract import BOX_KEYS, KEYS, LIMITS, OBJECT_KEYS, POINT_KEYS, VERSIONS, for_browser
from samkit.nodes.editor.preview import text_of
from samkit.nodes.editor.text import parse_editor
from samkit.nodes.prompt_editor import PromptEditor
from samkit.sam import SAMError, objects_per_frame
from samkit.sam.geometry import Geometry
from samkit.utils.finish import Finish
from samkit.utils.patches import encode_runs, parse_patch

TABLE = json.loads((ROOT / "tests" / "javascript" / "contract.json").read_text(encoding="utf-8"))
POINT, PATCH = {"x": 5, "y": 6, "label": 1}, {"x": 0, "y": 0, "width": 1, "height": 1, "runs": "BA=="}


def objects(*listed):
    return {"version": 2, "objects": list(listed)}


def full(width, height, **others):
    """A patch that is painted all over."""
    numbers, number = [], 3 * width * height + 1
    while number > 127:
        numbers.append(number & 127 | 128)
        number >>= 7
    return {**PATCH, "width": width, "height": height, "runs": coded_bytes([*numbers, number]), **others}


def coded_bytes(numbers):
    return base64.b64encode(bytes(numbers)).decode()


def striped(characters):
    """A patch whose runs take so many characters: one pixel a run."""
    pixels, width = characters // 4 * 3, 1 << 14
    return {**PATCH, "width": width, "height": pixels // width, "runs": coded_bytes([4, 5] * (pixels // 2))}


# For each limit: a text with as much as a run takes, and one with more.
TEXTS = {
    "objects": lambda count: objects(*[{"marks": [POINT]}] * count),
    "marks": lambda count: objects({"marks": [POINT] * (count - 1)}, {"marks": [POINT]}),
    "name": lambda count: objects({"name": "😀" * count, "marks": [POINT]}),
    "patches": lambda count: objects({"paint": [{**PATCH, "frame": frame} for frame in range(count)]}),
    "side": lambda count: objects({"paint": [{**PATCH, "x": count}]}),
    "far": lambda count: objects({"marks": [{**POINT, "x": count - 1}]}),
}


def test_the_table_is_the_contract_and_each_limit_of_a_text_is_tried():
    assert TABLE["contract"] == for_browser() and set(TEXTS) | {"runs", "pixels", "painted", "words"} == set(LIMITS._fields)
    assert PromptEditor.INPUT_TYPES()["required"]["prompts"][1]["samkit_contract"] == for_browser()


@pytest.mark.parametrize("limit", TEXTS)
def test_a_text_at_its_limit_is_read_and_one_more_is_refused(limit):
    most = getattr(LIMITS, limit)
    assert parse_editor(TEXTS[limit](most)).objects
    with pytest.raises(SAMError, match=str(most)):
        parse_editor(TEXTS[limit](most + 1))


def test_paint_at_its_limits_is_read_and_more_is_refused():
    wide = LIMITS.side
    tall = LIMITS.pixels // wide
    assert parse_editor(objects({"paint": [full(wide, tall)]})).objects
    with pytest.raises(SAMError, match=f"larger than {LIMITS.pixels} pixels"):
        parse_editor(objects({"paint": [full(wide, tall + 1)]}))
    whole = [{"paint": [full(wide, tall)]}] * (LIMITS.painted // LIMITS.pixels)
    assert len(parse_editor(objects(*whole)).objects) == 4
    with pytest.raises(SAMError, match=f"it may have at most {LIMITS.painted}"):
        parse_editor(objects(*whole, {"paint": [PATCH]}))
    detailed = striped(LIMITS.runs)
    assert len(detailed["runs"]) == LIMITS.runs and parse_editor(objects({"paint": [detailed]})).objects
    with pytest.raises(SAMError, match=f"at most {LIMITS.runs} characters"):
        parse_editor(objects({"paint": [striped(LIMITS.runs + 4)]}))


def test_a_request_has_room_for_the_most_detailed_paint_of_an_object():
    body = objects({"paint": [striped(LIMITS.runs), {**striped(LIMITS.runs), "frame": 1}], "marks": [POINT] * LIMITS.marks})
    assert len(json.dumps(body)) < contract.MOST_BYTES


def test_words_and_names_of_requests_have_their_limit():
    assert text_of({"text": "x" * LIMITS.words}, "text")
    with pytest.raises(SAMError, match=f"1 to {LIMITS.words} characters"):
        text_of({"text": "x" * (LIMITS.words + 1)}, "text")


@pytest.mark.parametrize("name", TABLE["contract"]["finish"])
def test_finishing_has_its_limits(name):
    low, high = TABLE["contract"]["finish"][name]
    assert getattr(Finish(**{name: low}), name) == low and getattr(Finish(**{name: high}), name) == high
    for beyond in (low - 1, high + 1):
        with pytest.raises(SAMError, match=f"it must be {low} to {high}"):
            Finish(**{name: beyond})


def test_the_browser_writes_the_keys_that_the_node_reads():
    """Of `web/editor/text.js`, which has to have them by name."""
    text = (ROOT / "web" / "editor" / "text.js").read_text(encoding="utf-8")
    for key in (*KEYS[VERSIONS[-1]], *OBJECT_KEYS, *POINT_KEYS, *BOX_KEYS, "frame"):
        assert key in text, key
    assert f"VERSION = {VERSIONS[-1]};" in text


# What both sides see alike.


@pytest.mark.parametrize(("mark", "size", "expected"), TABLE["cases"]["outside"], ids=str)
def test_a_mark_is_outside_where_the_browser_says_so(mark, size, expected):
    width, height = size
    parsed = parse_editor(objects({"marks": [mark]}))
    assert parsed.outside((height, width)) == expected


@pytest.mark.parametrize(("runs", "width", "height", "kinds"), TABLE["cases"]["runs"], ids=str)
def test_runs_are_read_as_the_browser_reads_them(runs, width, height, kinds):
    value = {**PATCH, "width": width, "height": height, "runs": runs}
    if kinds is None:
        with pytest.raises(SAMError, match="runs"):
            parse_patch(value)
        return
    found = parse_patch(value).kinds()
    assert found.ravel().tolist() == kinds
    assert parse_patch({**value, "runs": encode_runs(found)}).kinds().ravel().tolist() == kinds


@pytest.mark.parametrize(("marks", "groups"), TABLE["cases"]["groups"], ids=str)
def test_marks_of_version_1_make_the_objects_that_the_browser_makes(marks, groups):
    """A run groups what goes out of the node by SAM Predict Mask's rule; the browser does it when it loads such a text."""
    parsed = parse_editor({"version": 1, "marks": marks})
    (prompts,) = objects_per_frame(parsed.given([0], (60, 80)), 1, Geometry((60, 80), (60, 80), 80, (20, 20), True))
    assert sorted(sorted(places(one, marks)) for one in prompts) == sorted(map(sorted, groups))


def places(prompt, marks):
    """Which of the marks an object has, the first of equal ones."""
    seen = [[m["x"], m["y"], m["label"]] if "label" in m else corners_of(m) for m in marks]
    points = [[*point, label] for point, label in zip(prompt.points.tolist(), prompt.labels.tolist(), strict=True)]
    return [seen.index(one) for one in [*points, *([] if prompt.box is None else [prompt.box.tolist()])]]


def corners_of(mark):
    return [mark["x"], mark["y"], mark["x"] + mark["width"], mark["y"] + mark["height"]]
