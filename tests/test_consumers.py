"""Hard images in each form, read by the tools that people read them with: exact, or as the table in docs/scale.md says.

Each tool is in an environment of its own, made here, since they need other versions than this pack. What is in the environment
of the tests already (torch, pycocotools) is found there, where the versions allow it.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig

import numpy as np
import pytest
from PIL import Image
from samkit.sam.datasets.formats import data_set
from samkit.sam.datasets.images import read_image, upright
from samkit.sam.datasets.objects import LabeledImage, LabeledMask
from samkit.sam.tasks.films import find_films, read_film_prompts, track_here
from samkit.sam.tasks.folders import FolderTask, segment_folder
from samkit.sam.tasks.track import TrackOptions
from samkit.utils.files import write_whole
from test_films import CLICKS, DEMO, frames_of

pytestmark = pytest.mark.exhaustive
SIZE = (48, 64)


def hard_images():
    """Masks by label, by the name of the image; every mask is of the upright image."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    apart = (rows - 24) ** 2 + (columns - 32) ** 2
    none = np.zeros(SIZE, bool)

    def box(top, left, bottom, right):
        mask = none.copy()
        mask[top:bottom, left:right] = True
        return mask

    disc = (rows - 20) ** 2 + (columns - 40) ** 2 < 150
    return {
        "hole.png": {"cat": (apart < 400) & (apart > 100), "dog": apart < 36},
        "parts.png": {"cat": box(5, 4, 40, 20) | box(8, 40, 30, 60)},
        "corner.png": {"cat": box(4, 4, 20, 20) | box(20, 20, 40, 44)},
        "border.png": {"cat": (rows < 6) | (columns < 6) | (rows > 41) | (columns > 57)},
        "whole.png": {"cat": ~none},
        "pixel.png": {"cat": box(30, 20, 31, 21), "dog": box(47, 63, 48, 64)},
        "row.png": {"cat": box(17, 3, 18, 60), "dog": box(3, 50, 40, 51)},
        "empty.png": {},
        "nested.png": {"cat": disc | box(30, 5, 45, 30), "dog": box(8, 10, 24, 30)},
        "day 1/cat.png": {"cat": disc},
        "images/inner.png": {"dog": disc},
        "gray.png": {"cat": box(10, 10, 30, 50)},
        "rgba.png": {"dog": apart < 300},
        "turned.jpg": {"cat": box(2, 4, 30, 20).T, "dog": disc.T},
    }


PARTS = {"parts.png|cat", "corner.png|cat", "nested.png|cat"}  # of several parts, which YOLO joins by lines


def write(name, folder, upright_copies=False):
    """The hard images in a form; the image folder, and the masks by `image|label`."""
    target = data_set(name, folder / "annotations.json" if name.startswith("COCO") else folder)
    images, records, truth = folder / "images", [], {}
    for number, (file_name, masks) in enumerate(hard_images().items()):
        pixels = np.random.default_rng(number).integers(60, 90, (*SIZE, 3), dtype=np.uint8)
        for mask in masks.values():
            pixels[np.rot90(mask) if file_name == "turned.jpg" else mask] += 100
        image, exif = Image.fromarray(pixels), Image.Exif()
        if file_name in ("gray.png", "rgba.png"):
            image = image.convert("L" if file_name == "gray.png" else "RGBA")
        if file_name == "turned.jpg":
            exif[0x0112] = 6  # to be turned clockwise
        path = images / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, exif=exif)
        if upright_copies:
            path.write_bytes(upright(path))
        size = read_image(path).shape[:2]
        listed = [LabeledMask(mask, label) for label, mask in masks.items()]
        record, files = target.entry(LabeledImage(file_name, size, listed))
        for one, content in files.items():
            write_whole(target.path / one, content)
        records.append(record)
        truth |= {f"{file_name}|{label}": mask for label, mask in masks.items()}
    target.write(records)
    return images, truth


def python_of(minor):
    """A Python 3 of this minor version that runs, or None."""
    if sys.version_info[1] == minor:
        return sys.executable
    for folder in os.environ["PATH"].split(os.pathsep):
        found = shutil.which(f"python3.{minor}", path=folder)
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    return None


def python_with(tmp_path_factory, packages, beside=False, own=sys.executable):
    """The Python of an environment with these packages, made by `own`; `beside`: it finds those of the tests, too."""
    place = tmp_path_factory.mktemp("venv")
    subprocess.run([own, "-m", "venv", place], check=True)
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    options = []
    if beside:
        subprocess.run(
            [python, "-c", "import sys, sysconfig, pathlib; pathlib.Path(sysconfig.get_path('purelib'), 'tests.pth')"
             ".write_text(sys.argv[1])", sysconfig.get_path("purelib")], check=True,
        )  # fmt: skip
        options = ["--no-deps"]
    if subprocess.run([python, "-m", "pip", "install", "--quiet", *options, *packages], check=False).returncode:
        pytest.skip(f"{', '.join(packages)} cannot be installed here")
    return python


def read(python, script, *arguments, place):
    """What a script says about masks by `image|label`: it writes them as npz to its last argument."""
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(place), "QT_QPA_PLATFORM": "offscreen", "YOLO_OFFLINE": "true"}
    command = [python, "-c", script, *map(str, arguments), str(place / "found.npz")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=place, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(place / "found.npz") as found:
        return {name: found[name].astype(bool) for name in found.files}


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def check_exact(found, truth, but=()):
    assert found.keys() == truth.keys()
    ious = {name: float(iou(found[name], mask)) for name, mask in truth.items()}
    wrong = {name: value for name, value in ious.items() if value < 1 and name not in but}
    assert len(truth) > 10 and not wrong, wrong


COCO_READER = """
import sys, numpy as np
from pycocotools.coco import COCO
coco = COCO(sys.argv[1])
np.savez(sys.argv[-1], **{
    coco.imgs[one["image_id"]]["file_name"] + "|" + coco.cats[one["category_id"]]["name"]: coco.annToMask(one)
    for one in coco.anns.values()
})
"""


@pytest.mark.parametrize("form", ["COCO RLE", "COCO polygons"])
def test_pycocotools(form, tmp_path):
    pytest.importorskip("pycocotools")
    _, truth = write(form, tmp_path / "set")
    check_exact(read(sys.executable, COCO_READER, tmp_path / "set" / "annotations.json", place=tmp_path), truth)


TORCHVISION = """
import sys, numpy as np
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
plain = CocoDetection(sys.argv[1], sys.argv[2])
data = wrap_dataset_for_transforms_v2(plain, target_keys=["image_id", "boxes", "labels", "masks"])
found = {}
for image, target in data:
    if "masks" not in target:
        continue
    info = plain.coco.imgs[target["image_id"]]
    for box, label, mask in zip(target["boxes"], target["labels"], target["masks"]):
        mask = mask.numpy().astype(bool)
        assert image.size == mask.shape[::-1], (info["file_name"], image.size, mask.shape)
        x, y = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        assert box.tolist() == [x[0], y[0], x[-1] + 1, y[-1] + 1], info["file_name"]
        found[info["file_name"] + "|" + plain.coco.cats[int(label)]["name"]] = mask
np.savez(sys.argv[-1], **found)
"""


@pytest.mark.parametrize("form", ["COCO RLE", "COCO polygons"])
def test_torchvision_with_upright_copies(form, tmp_path):
    """The image beside each mask has its size, also of the photograph that EXIF turns."""
    pytest.importorskip("torchvision")
    images, truth = write(form, tmp_path / "set", upright_copies=True)
    check_exact(read(sys.executable, TORCHVISION, images, images.parent / "annotations.json", place=tmp_path), truth)


SUPERVISION = """
import sys, numpy as np, supervision
images, kind = sys.argv[1:3]
if kind == "YOLO":
    data = supervision.DetectionDataset.from_yolo(images, images + "/../labels", images + "/../data.yaml", True)
else:
    data = supervision.DetectionDataset.from_coco(images, images + "/../annotations.json", force_masks=True)
np.savez(sys.argv[-1], **{
    path.split("/set/images/")[-1] + "|" + data.classes[number]: mask
    for path, _, objects in data for number, mask in zip(objects.class_id, objects.mask if len(objects) else [])
})
"""


@pytest.mark.parametrize("form", ["COCO RLE", "COCO polygons", "YOLO"])
def test_supervision(form, tmp_path):
    """A pixel more at right and bottom edges of polygons, and with YOLO no images in subfolders, as the table says."""
    pytest.importorskip("supervision")
    images, truth = write(form, tmp_path / "set")
    found = read(sys.executable, SUPERVISION, images, form.split()[0], place=tmp_path)
    if form == "COCO RLE":
        check_exact(found, truth)
        return
    if form == "YOLO":
        truth = {name: mask for name, mask in truth.items() if "/" not in name}
    assert found.keys() == truth.keys()
    for name, mask in truth.items():
        wider = np.pad(mask, ((1, 0), (1, 0)))
        wider = wider[1:, 1:] | wider[:-1, 1:] | wider[1:, :-1] | wider[:-1, :-1]
        assert (found[name] >= mask).all(), name
        assert (found[name] <= wider).all() or (form == "YOLO" and name in PARTS and iou(found[name], mask) > 0.88), name


ULTRALYTICS = """
import sys, numpy as np, torch, yaml
from pathlib import Path
from ultralytics import YOLO
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import polygon2mask
images = Path(sys.argv[1])
names = yaml.safe_load((images.parent / "data.yaml").read_text())["names"]
data = YOLODataset(img_path=str(images), data={"names": dict(enumerate(names)), "channels": 3}, task="segment")
found = {}
for label in data.labels:
    name = Path(label["im_file"]).relative_to(images).as_posix()
    height, width = label["shape"]
    for number, segment, box in zip(label["cls"][:, 0], label["segments"], label["bboxes"]):
        mask = polygon2mask((height, width), [(segment * [width, height]).reshape(-1)])
        x, y = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        wanted = np.array([x[0] + x[-1] + 1, y[0] + y[-1] + 1, 2 * (x[-1] + 1 - x[0]), 2 * (y[-1] + 1 - y[0])]) / 2
        assert np.abs(box * [width, height, width, height] - wanted).max() < 0.05, (name, box, wanted)
        found[f"{name}|{names[int(number)]}"] = mask
seen = []
def count(trainer):
    seen.append(sum(len(batch["cls"]) for batch in trainer.train_loader))
model = YOLO("yolo11n-seg.yaml")
model.add_callback("on_train_start", count)
torch.set_num_threads(1)
off = dict.fromkeys("mosaic degrees translate scale shear perspective flipud fliplr mixup copy_paste erasing".split(), 0.0)
model.train(data=str(images.parent / "data.yaml"), epochs=1, imgsz=256, batch=7, device="cpu", workers=0, plots=False,
            amp=False, save=False, val=False, project=str(images.parent), pretrained=False, verbose=False,
            overlap_mask=False, **off)
assert seen == [len(found)], (seen, len(found))
np.savez(sys.argv[-1], **found)
"""


def test_ultralytics_trains_on_every_object(tmp_path, tmp_path_factory):
    """The masks that it makes of the polygons, its boxes, and the objects of all batches of one epoch.

    At its default size, 640, or 256 as here. It leaves out what is below two pixels at the size of training.
    """
    pytest.importorskip("cv2")
    packages = ["ultralytics==8.4.190", "ultralytics-thop", "polars", "polars-runtime-32", "py-cpuinfo", "psutil"]
    python = python_with(tmp_path_factory, packages, beside=True)
    images, truth = write("YOLO", tmp_path / "set")
    found = read(python, ULTRALYTICS, images, place=tmp_path)
    check_exact(found, truth, PARTS)
    assert all(iou(found[name], truth[name]) > 0.9 for name in PARTS), "parts are joined by a line"


DATUMARO = """
import sys, numpy as np
from datumaro import Dataset
found = Dataset.import_from(sys.argv[1], sys.argv[2])
names = [one.name for one in found.categories()[next(iter(found.categories()))].items]
masks = {}
for item in found:
    for one in item.annotations:
        if one.type.name == "mask":
            masks[f"{item.id}|{names[one.label]}"] = one.image.astype(bool)
np.savez(sys.argv[-1], **masks)
"""


@pytest.fixture(scope="module")
def datumaro(tmp_path_factory):
    return python_with(tmp_path_factory, ["datumaro==1.13.12"])


@pytest.mark.parametrize(("form", "kind"), [("CVAT", "cvat"), ("COCO RLE", "coco")])
def test_datumaro(form, kind, datumaro, tmp_path):
    """COCO in its layout, which is that of `annotations/instances_default.json`; ids lack the ending."""
    _, truth = write(form, tmp_path / "set")
    if kind == "coco":
        (tmp_path / "set" / "annotations").mkdir()
        (tmp_path / "set" / "annotations.json").rename(tmp_path / "set" / "annotations" / "instances_default.json")
    found = read(datumaro, DATUMARO, tmp_path / "set", kind, place=tmp_path)
    check_exact(found, {name.replace(".png|", "|").replace(".jpg|", "|"): mask for name, mask in truth.items()})


POLYGONS = """
from pycocotools import mask as coding
def drawn(one, item):
    return coding.decode(coding.merge(coding.frPyObjects([list(one.points)], *map(int, item.media.size)))).astype(bool)
"""


@pytest.mark.parametrize(("form", "kind"), [("COCO RLE", "coco"), ("COCO polygons", "coco"), ("YOLO", "yolov8_segmentation")])
def test_the_datumaro_of_cvat(form, kind, tmp_path, tmp_path_factory):
    """Its sources, of commit 8970bb7, are in the folder CVAT_DATUMARO: it is on GitHub only.

    In a set of YOLO it takes a folder for the beginning of a name, and finds no labels of images in a folder `images`.
    """
    sources = os.environ.get("CVAT_DATUMARO")
    if not sources:
        pytest.skip("CVAT_DATUMARO does not name a folder with the sources of cvat-ai/datumaro")
    python = python_with(tmp_path_factory, ["numpy<2", "opencv-python-headless", sources])
    _, truth = write(form, tmp_path / "set")
    if kind == "coco":
        (tmp_path / "set" / "annotations").mkdir()
        (tmp_path / "set" / "annotations.json").rename(tmp_path / "set" / "annotations" / "instances_default.json")
    script = DATUMARO.replace("from datumaro import", "from datumaro.components.dataset import")
    if form != "COCO RLE":
        mask = 'masks.get(f"{item.id}|{names[one.label]}", False) | drawn(one, item)'
        script = POLYGONS + script.replace('"mask"', '"polygon"').replace("one.image.astype(bool)", mask)
    found = read(python, script, tmp_path / "set", kind, place=tmp_path)
    truth = {name.replace(".png|", "|").replace(".jpg|", "|"): mask for name, mask in truth.items()}
    if form == "YOLO":
        found = {name.split("/")[-1]: mask for name, mask in found.items()}
        truth = {name.split("/")[-1]: mask for name, mask in truth.items() if name != "images/inner|dog"}
        check_exact(found, truth, PARTS)
    else:
        check_exact(found, truth)


LABEL_STUDIO = """
import json, sys, numpy as np
from urllib.parse import unquote
from label_studio_sdk.converter.brush import decode_rle
masks = {}
for task in json.load(open(sys.argv[1] + "/tasks.json")):
    name = unquote(task["data"]["image"]).split("?d=images/")[1]
    for result in task["annotations"][0]["result"]:
        size = result["original_height"], result["original_width"], 4
        mask = decode_rle(result["value"]["rle"]).reshape(size)[..., 3] > 0
        masks[name + "|" + result["value"]["brushlabels"][0]] = mask
np.savez(sys.argv[-1], **masks)
"""


def test_label_studio(tmp_path, tmp_path_factory):
    python = python_with(tmp_path_factory, ["label-studio-sdk==2.1.2"])
    _, truth = write("Label Studio", tmp_path / "set")
    check_exact(read(python, LABEL_STUDIO, tmp_path / "set", place=tmp_path), truth)


LABELME = """
import json, sys, numpy as np
from pathlib import Path
try:
    from labelme._label_file import read_label_file
    read = lambda path: read_label_file(filename=str(path))
except ImportError:
    from labelme.label_file import LabelFile
    read = lambda path: LabelFile(str(path))
images, masks = Path(sys.argv[1]) / "images", {}
for path in sorted(images.rglob("*.json")):
    file = read(path)
    name = (path.parent / (file.image_path if hasattr(file, "image_path") else file.imagePath)).relative_to(images).as_posix()
    for shape in file.shapes:
        (left, top), (right, bottom) = np.array(shape["points"]).astype(int)
        content = json.loads(path.read_text())
        mask = np.zeros((content["imageHeight"], content["imageWidth"]), bool)
        mask[top : bottom + 1, left : right + 1] = shape["mask"]
        masks[name + "|" + shape["label"]] = mask
np.savez(sys.argv[-1], **masks)
"""


@pytest.mark.parametrize(("version", "least"), [("6.3.1", 11), ("7.9.1", 12)])
def test_labelme(version, least, tmp_path, tmp_path_factory):
    """From 7 on it needs Python 3.12, which may be another one than that of the tests."""
    own = next((python for minor in range(least, 15) if (python := python_of(minor))), None)
    if own is None:
        pytest.skip(f"there is no Python 3.{least} or newer on the PATH")
    python = python_with(tmp_path_factory, [f"labelme=={version}"], own=own)
    _, truth = write("labelme", tmp_path / "set")
    check_exact(read(python, LABELME, tmp_path / "set", place=tmp_path), truth)


FIFTYONE = """
import sys, numpy as np
import fiftyone.utils.coco as reader
info, classes, _, images, annotations = reader.load_coco_detection_annotations(sys.argv[1])
masks = {}
for number, image in images.items():
    height, width = image["height"], image["width"]
    for one in annotations.get(number, []):
        found = one.to_detection((width, height), classes_map=classes if isinstance(classes, dict) else None,
                                 load_segmentation=True)
        x, y, across, down = np.array(found.bounding_box) * [width, height, width, height]
        left, top = round(x), round(y)
        mask = np.zeros((height, width), bool)
        mask[top : top + found.mask.shape[0], left : left + found.mask.shape[1]] = found.mask
        masks[image["file_name"] + "|" + found.label] = mask
np.savez(sys.argv[-1], **masks)
"""


@pytest.mark.parametrize("form", ["COCO RLE", "COCO polygons"])
def test_fiftyone(form, tmp_path, tmp_path_factory):
    """Its reader of COCO alone: a data set of it needs a MongoDB."""
    python = python_with(tmp_path_factory, ["fiftyone==1.22.1", "pycocotools==2.0.11"])
    _, truth = write(form, tmp_path / "set")
    check_exact(read(python, FIFTYONE, tmp_path / "set" / "annotations.json", place=tmp_path), truth)


def test_every_image_is_in_every_form(tmp_path):
    """The set itself: fourteen images, of which one has no object, and all of them are listed."""
    for form in ("COCO RLE", "CVAT"):
        write(form, tmp_path / form)
    listed = json.loads((tmp_path / "COCO RLE" / "annotations.json").read_bytes())["images"]
    assert len(listed) == len(hard_images()) == 14


TRACKS = """
import json, sys, numpy as np, supervision
place = sys.argv[1]
data = supervision.DetectionDataset.from_coco(place + "/frames", place + "/tracked.json", force_masks=True)
masks = {}
for path, _, objects in data:
    assert objects.tracker_id is None, "it has no numbers of objects"
    for number, mask in zip(objects.class_id, objects.mask if len(objects) else []):
        masks[path.split("/frames/")[-1] + "|" + data.classes[number]] = mask
seen = [frame.shape for frame in supervision.get_video_frames_generator(sys.argv[2])]
about = supervision.VideoInfo.from_video_path(sys.argv[2])
assert seen == [(about.height, about.width, 3)] * about.total_frames, (seen, about)
np.savez(sys.argv[-1], total=np.array(about.total_frames), **masks)
"""


@pytest.fixture
def tracked(tmp_path):
    """A film of two objects of which one comes later, as `--track` writes it: COCO, palette PNGs and a video; its masks.

    The masks by `frame|label` are those of the palette PNGs, which Pillow reads.
    """
    folder, clicks = tmp_path / "films" / "one", tmp_path / "clicks.json"
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames_of("red blue")):
        Image.fromarray(frame).save(folder / f"{number:05}.png")
    listed = [{**CLICKS["one"][0], "label": "red"}, {**CLICKS["one"][1], "label": "blue"}]
    clicks.write_text(json.dumps({"one": listed}))
    for form, output in (("index PNG", tmp_path / "pngs"), ("COCO RLE", tmp_path / "tracked.json")):
        task = FolderTask("prompts", form, DEMO, track=TrackOptions(), overlays=tmp_path / "seen")
        prompts = read_film_prompts(clicks, find_films([tmp_path / "films"])[1])[0]
        assert segment_folder(task, prompts, output, track_here)[0] == 1
    truth = {}
    for path in sorted((tmp_path / "pngs" / "masks" / "one").glob("*.png")):
        values = np.array(Image.open(path))
        each = ((values == value, name) for value, name in ((1, "red"), (2, "blue")))
        truth |= {f"one/{path.name}|{name}": mask for mask, name in each if mask.any()}
    assert len(truth) == 6
    (tmp_path / "films").rename(tmp_path / "frames")
    return tmp_path, truth


def test_what_supervision_gets_of_a_film(tracked, tmp_path):
    """Exact masks and the whole video; not which masks are one object."""
    pytest.importorskip("supervision")
    place, truth = tracked
    found = read(sys.executable, TRACKS, place, next((place / "seen").rglob("*.mp4")), place=tmp_path)
    assert found.pop("total") and found.keys() == truth.keys()
    assert all(np.array_equal(found[name], mask) for name, mask in truth.items())


def test_what_the_datumaro_of_cvat_gets_of_a_film(tracked, tmp_path, tmp_path_factory):
    """Exact masks, and no track: CVAT makes one of annotations with the attributes `track_id` and `keyframe` alone."""
    sources = os.environ.get("CVAT_DATUMARO")
    if not sources:
        pytest.skip("CVAT_DATUMARO does not name a folder with the sources of cvat-ai/datumaro")
    place, truth = tracked
    python = python_with(tmp_path_factory, ["numpy<2", "opencv-python-headless", sources])
    (place / "set" / "annotations").mkdir(parents=True)
    (place / "frames").rename(place / "set" / "images")
    (place / "tracked.json").rename(place / "set" / "annotations" / "instances_default.json")
    script = DATUMARO.replace("from datumaro import", "from datumaro.components.dataset import")
    names = "{name for item in found for one in item.annotations for name in one.attributes}"
    script += f"assert {names} == {{'score', 'is_crowd'}}\n"
    found = read(python, script, place / "set", "coco", place=tmp_path)
    assert found.keys() == {name.replace(".png|", "|") for name in truth}
    assert all(np.array_equal(found[name.replace(".png|", "|")], mask) for name, mask in truth.items())
