"""The sources of other packs, where SAMKIT_PACKS says they are: a folder of clones, each under its repository's name.

What their imports need and ComfyUI's Python lacks may lie in its folder `site-packages` (`pip install --no-deps --target`):

    addict color-matcher contourpy cycler dill fonttools gitdb GitPython groundingdino-py imageio imageio-ffmpeg iopath
    kiwisolver lazy_loader matplotlib mss networkx opencv-python-headless piexif platformdirs portalocker pycocotools
    pyparsing python-dateutil scikit-image six smmap supervision tifffile timm yapf

The versions that the tests were written against:

    ComfyUI-Impact-Pack           7.10.6  727295b
    comfyui-art-venture           1.1.4   51ed4a0
    ComfyUI-KJNodes               1.5.0   3f20054
    ComfyUI-segment-anything-2    1.0.0   059815e
    ComfyUI-RMBG                  3.1.0   58f1947
    comfyui_segment_anything              ab63955
    was-node-suite-comfyui        1.0.2   ea935d1
    ComfyUI-VideoHelperSuite      1.7.9   4ee72c0
    ComfyUI-Florence2             1.0.6   00b6338
"""

import ast
import os
import shutil
from pathlib import Path

import pytest

IMPACT, ART_VENTURE, KJNODES, KIJAI_SAM2, RMBG = (
    "ComfyUI-Impact-Pack", "comfyui-art-venture", "ComfyUI-KJNodes", "ComfyUI-segment-anything-2", "ComfyUI-RMBG"
)  # fmt: skip
STORYICON, WAS = "comfyui_segment_anything", "was-node-suite-comfyui"
VIDEO, FLORENCE = "ComfyUI-VideoHelperSuite", "ComfyUI-Florence2"

EXAMPLES = {"points_editor": KJNODES, "florence_boxes": RMBG, "impact_detailer": IMPACT}
"""Our example workflows with nodes of another pack, and the pack."""

# Art Venture's other nodes need a dozen packages; those that this pack shares its ids with are loaded from their own file.
_ART_VENTURE = """
import importlib, sys, types
for name in ("modules", "modules.inpaint"):  # packages whose __init__ would import everything
    package = types.ModuleType(f"{__name__}.{name}")
    package.__path__ = [f"{__path__[0]}/{name.replace('.', '/')}"]
    sys.modules[package.__name__] = package
found = importlib.import_module(".modules.inpaint.sam.nodes", __name__)
NODE_CLASS_MAPPINGS = {
    "AV_SAMLoader": found.SAMLoader,
    "GetSAMEmbedding": found.GetSAMEmbedding,
    "SAMEmbeddingToImage": found.SAMEmbeddingToImage,
}
"""


def folder():
    """The folder of clones, or None."""
    named = os.environ.get("SAMKIT_PACKS")
    return Path(named) if named else None


def source(pack):
    """A pack's clone; skips the test where there is none."""
    if folder() is None:
        pytest.skip("SAMKIT_PACKS names no folder with other packs' sources")
    if not (folder() / pack).is_dir():
        pytest.skip(f"{pack} is not in SAMKIT_PACKS")
    return folder() / pack


def install(packs, custom_nodes):
    """Copy packs into a ComfyUI's custom_nodes, as some write into their own folder. Returns those that are there."""
    there = [pack for pack in packs if folder() and (folder() / pack).is_dir()]
    for pack in there:
        shutil.copytree(folder() / pack, custom_nodes / pack, ignore=shutil.ignore_patterns(".git"))
    if IMPACT in there:  # its subpack, which it would clone, only loads YOLO
        stub = custom_nodes / IMPACT / "impact_subpack" / "impact" / "subpack_nodes.py"
        stub.parent.mkdir(parents=True)
        stub.write_text("NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = {}, {}\n")
    if ART_VENTURE in there:
        (custom_nodes / ART_VENTURE / "__init__.py").write_text(_ART_VENTURE)
    return there


def site_packages():
    """What PYTHONPATH of the server should have in front."""
    return None if folder() is None else folder() / "site-packages"


def definitions(path, names, **known):
    """Some classes and functions of a file that cannot be imported whole, executed with `known` names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    assert {node.name for node in tree.body} == set(names), "this version of the pack is another one"
    exec(compile(tree, str(path), "exec"), known)
    return [known[name] for name in names]
