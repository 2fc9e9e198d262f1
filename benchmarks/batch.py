"""Part `batch`: the peak memory of long batches, each in a process of its own, over that of five frames."""

import os

FRAMES = int(os.environ.get("SAMKIT_BENCH_FRAMES", "500"))
FEW, SIDE = 5, 512
LIMIT = 300e6
_BYTES_OF_A_MASK = 4 * SIDE * SIDE
_BYTES_OF_A_FRAME = 16 * SIDE * SIDE  # Segment Everything's overlay and labels

PREPARE = """
import torch
from samkit.nodes.model import SAMModelLoader
from samkit.nodes import NODE_CLASS_MAPPINGS as nodes
frames, side, device_mode = {frames}, {side}, {device_mode!r}
model = SAMModelLoader().load_model("samkit_demo.safetensors")[0]
scenes = [torch.from_numpy(picture(side, side, seed)) for seed in range(8)]

def film(first, count):
    images = torch.empty(count, side, side, 3)
    for index, image in enumerate(images, start=first):
        image.copy_(scenes[index % 8].roll(index, 0)).div_(255)
    return images

def run(node, **inputs):
    return nodes[node]().execute(model, device_mode=device_mode, **inputs)

click = '[{{"x": 200, "y": 260}}]'
warm = film(1000, 1)
"""
PARTS = {
    "SAM Segment": (
        'image = film(0, frames)\nrun("SAMKit_Segment", image=warm, positive_coords=click)',
        'result = run("SAMKit_Segment", image=image, positive_coords=click)',
    ),
    "SAM Segment, logits not connected": (
        "from samkit.nodes import predict\npredict.logits_wanted = lambda: False\nimage = film(0, frames)\n"
        'run("SAMKit_Segment", image=warm, positive_coords=click)',
        'result = run("SAMKit_Segment", image=image, positive_coords=click)',
    ),
    "SAM Predict Mask": (
        'from samkit.sam.tasks.embed import cache\nembedding = nodes["GetSAMEmbedding"]().get_sam_embedding(film(0, frames), model)[0]\n'
        'cache.clear()\nrun("SAMKit_PredictMask", embedding=embedding[:1], positive_coords=click)',
        'result = run("SAMKit_PredictMask", embedding=embedding, positive_coords=click)',
    ),
    "SAM Segment Everything": (
        'image = film(0, frames)\nrun("SAMKit_AutoMask", image=warm, points_per_side=16)',
        'result = run("SAMKit_AutoMask", image=image, points_per_side=16)',
    ),
}
# What is not counted: the outputs, which are as large as they are, and the inputs, which are there before.
FINISH = "\nsys.stderr = sys.stdout\nprint('OUTPUT', sum(part.nbytes for part in result if isinstance(part, torch.Tensor)))"
