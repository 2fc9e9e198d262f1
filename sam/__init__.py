"""The SAM runtime, usable without ComfyUI: load a checkpoint, embed images once, prompt them as often as you like.

model = load_model("sam_vit_b_01ec64.pth")
embedding = encode(model, [image])                        # uint8 [H, W, 3]
click = Prompt(points=np.array([[320.0, 240.0]]), labels=np.array([1]))
masks, scores, logits = decode(model, embedding, [[click]])  # one list entry per image
"""

from .errors import BusyError, SAMError
from .models.base import PRECISIONS, Precision, Segmenter, identity_of
from .models.checkpoints import SAM_MODELS
from .models.concept import Concept
from .models.families import as_segmenter, load_model
from .models.in_transformers.grounding import GROUNDING_MODELS, GroundingModel, load_grounding
from .models.in_transformers.matte import MATTE_MODELS, MatteModel, load_matte
from .models.loaded import load_shared, recall, remember
from .models.retrained import Retrained, retrained_from, with_decoder
from .models.sam import SAMModel
from .models.shared import from_comfyui
from .models.taught_files import load_concept, load_decoder, save_concept, save_decoder
from .placement.devices import DEVICE_MODES, DeviceMode, free_result_bytes, result_device
from .prompts import ABSENT_LOGIT, Prompt, PromptInputs, clip_region, group, named_objects, objects_per_frame
from .store.embedding import SAMEmbedding, checked_embedding, knows_its_image
from .store.weights import weights_changed
from .tasks.alike import Cutout, Example, example_of, resemblances
from .tasks.detail import DETAILS, Detail, Looked, SecondLook
from .tasks.embed import as_embedding, encode, stay_loaded
from .tasks.embedding_file import load_embedding, save_embedding
from .tasks.everything import (
    PRESETS,
    AutoMaskOptions,
    FoundMask,
    as_dicts,
    everything_each,
    preset_options,
    segment_every_image,
    segment_everything,
)
from .tasks.personalize import METHODS, FoundObjects, Method, Personalized, PersonalizeOptions, personalize, personalize_each
from .tasks.predict import (
    CANDIDATES,
    MULTIMASK,
    Candidate,
    FramePrediction,
    ImagePredictor,
    Multimask,
    Prediction,
    PredictOptions,
    ReadyImage,
    decode,
    decode_each,
    has_regions,
)
from .tasks.regions import predict_in_region
from .tasks.soft_edges import MatteOptions, soft_edges
from .tasks.stream import prompt_each, segment_each
from .tasks.tiles import TILES
from .tasks.track import (
    DIRECTIONS,
    MOST_STEADIED,
    TRACK_METHODS,
    Direction,
    FilmPrompt,
    Track,
    TrackedFrame,
    TrackMethod,
    TrackOptions,
    track,
)
from .tasks.words import FoundBoxes, GroundingOptions, find_boxes, normalise_text
from .tasks.wrapper import SAMWrapper
from .training.decoder_training import DecoderOptions, train_decoder
from .training.teach import Lesson, TeachOptions, teach

__all__ = [
    "ABSENT_LOGIT",
    "CANDIDATES",
    "DETAILS",
    "DEVICE_MODES",
    "DIRECTIONS",
    "GROUNDING_MODELS",
    "MATTE_MODELS",
    "METHODS",
    "MOST_STEADIED",
    "MULTIMASK",
    "PRECISIONS",
    "PRESETS",
    "SAM_MODELS",
    "TILES",
    "TRACK_METHODS",
    "AutoMaskOptions",
    "BusyError",
    "Candidate",
    "Concept",
    "Cutout",
    "DecoderOptions",
    "Detail",
    "DeviceMode",
    "Direction",
    "Example",
    "FilmPrompt",
    "FoundBoxes",
    "FoundMask",
    "FoundObjects",
    "FramePrediction",
    "GroundingModel",
    "GroundingOptions",
    "ImagePredictor",
    "Lesson",
    "Looked",
    "MatteModel",
    "MatteOptions",
    "Method",
    "Multimask",
    "PersonalizeOptions",
    "Personalized",
    "Precision",
    "PredictOptions",
    "Prediction",
    "Prompt",
    "PromptInputs",
    "ReadyImage",
    "Retrained",
    "SAMEmbedding",
    "SAMError",
    "SAMModel",
    "SAMWrapper",
    "SecondLook",
    "Segmenter",
    "TeachOptions",
    "Track",
    "TrackMethod",
    "TrackOptions",
    "TrackedFrame",
    "as_dicts",
    "as_embedding",
    "as_segmenter",
    "checked_embedding",
    "clip_region",
    "decode",
    "decode_each",
    "encode",
    "everything_each",
    "example_of",
    "find_boxes",
    "free_result_bytes",
    "from_comfyui",
    "group",
    "has_regions",
    "identity_of",
    "knows_its_image",
    "load_concept",
    "load_decoder",
    "load_embedding",
    "load_grounding",
    "load_matte",
    "load_model",
    "load_shared",
    "named_objects",
    "normalise_text",
    "objects_per_frame",
    "personalize",
    "personalize_each",
    "predict_in_region",
    "preset_options",
    "prompt_each",
    "recall",
    "remember",
    "resemblances",
    "result_device",
    "retrained_from",
    "save_concept",
    "save_decoder",
    "save_embedding",
    "segment_each",
    "segment_every_image",
    "segment_everything",
    "soft_edges",
    "stay_loaded",
    "teach",
    "track",
    "train_decoder",
    "weights_changed",
    "with_decoder",
]
