"""The SAM runtime, usable without ComfyUI: load a checkpoint, embed pictures once, prompt them as often as you like.

model = load_model("sam_vit_b_01ec64.pth")
embedding = encode(model, [picture])                      # uint8 [H, W, 3]
click = Prompt(points=np.array([[320.0, 240.0]]), labels=np.array([1]))
masks, scores, logits = decode(model, embedding, [[click]])  # one list entry per picture
"""

from .automask import AutoMaskOptions, FoundMask, segment_everything
from .decode import CANDIDATES, MULTIMASK, Candidate, Multimask, Prediction, decode
from .device import DEVICE_MODES, DeviceMode, free_result_bytes, result_device
from .embedding import SAMEmbedding
from .encode import as_embedding, encode
from .errors import SAMError
from .grounding import FoundBoxes, GroundingModel, GroundingOptions, find_boxes, load_grounding, normalise_text
from .loaded import load_shared, recall, remember
from .model import PRECISIONS, Precision, SAMModel, identity_of, load_model
from .personalize import Personalized, personalize
from .prompts import ABSENT_LOGIT, Prompt, Wired, group, objects_per_frame

__all__ = [
    "ABSENT_LOGIT",
    "CANDIDATES",
    "DEVICE_MODES",
    "MULTIMASK",
    "PRECISIONS",
    "AutoMaskOptions",
    "Candidate",
    "DeviceMode",
    "FoundBoxes",
    "FoundMask",
    "GroundingModel",
    "GroundingOptions",
    "Multimask",
    "Personalized",
    "Precision",
    "Prediction",
    "Prompt",
    "SAMEmbedding",
    "SAMError",
    "SAMModel",
    "Wired",
    "as_embedding",
    "decode",
    "encode",
    "find_boxes",
    "free_result_bytes",
    "group",
    "identity_of",
    "load_grounding",
    "load_model",
    "load_shared",
    "normalise_text",
    "objects_per_frame",
    "personalize",
    "recall",
    "remember",
    "result_device",
    "segment_everything",
]
