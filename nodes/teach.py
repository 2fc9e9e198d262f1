"""SAM Teach and SAM Train Decoder, and saving and loading what they learned."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..sam import (
    Concept,
    DecoderOptions,
    DeviceMode,
    Lesson,
    SAMError,
    Segmenter,
    TeachOptions,
    load_concept,
    save_concept,
    save_decoder,
    teach,
    train_decoder,
)
from ..sam.weights.checkpoint_reader import checkpoint_stamp
from ..utils.comfy_files import new_output
from ..utils.comfy_folders import CONCEPT_FOLDER, DECODER_FOLDER, model_names, model_path
from ..utils.text import counted
from .common import CATEGORY, DEVICE_MODE_INPUT, SAM_MODEL_INPUT, SAM_MODEL_TYPES, SavesFile, saving_inputs

_DEFAULTS, _DECODER_DEFAULTS = TeachOptions(), DecoderOptions()
EXAMPLE_INPUTS: dict[str, Any] = {
    "images": ("IMAGE", {"tooltip": "Images that show the object: a batch, or a list of images of different sizes."}),
    "masks": (
        "MASK",
        {
            "tooltip": "The object's mask in each image, in the same order. Paint the masks, or make them with SAM Prompt "
            "Editor."
        },
    ),
}
SEED_INPUT = (
    "INT",
    {
        "default": 0,
        "min": 0,
        "max": 2**32 - 1,
        "control_after_generate": False,
        "tooltip": "The same seed and inputs give the same result.",
    },
)
LOSSES = "The loss of each step, for Plot Loss Graph."


def _schedule(defaults: TeachOptions | DecoderOptions) -> dict[str, Any]:
    """How long and how fast, and the seed."""
    steps = {"default": defaults.steps, "min": 1, "max": 100_000}
    rate = {"default": defaults.rate, "min": 1e-6, "max": 1.0, "step": defaults.rate / 20, "round": False}
    return {
        "steps": ("INT", {**steps, "tooltip": "Maximum number of training steps, each with one image."}),
        "learning_rate": ("FLOAT", {**rate, "tooltip": "Lower it if the loss jumps up and down."}),
        "seed": SEED_INPUT,
    }


class Teach:
    """`SAMKit_Teach`."""

    DESCRIPTION = (
        "Teaches a SAM model an object from a few masks. The node learns eight prompt tokens and does not change the "
        "model. Connect the concept to any node that takes prompts: a click on such an object then gives the mask as "
        "taught."
    )
    SEARCH_ALIASES = [
        "sam",
        "segment anything",
        "train",
        "fine-tune",
        "finetune",
        "learn",
        "concept",
        "prompt tuning",
        "few shot",
    ]
    CATEGORY = CATEGORY
    INPUT_IS_LIST = True
    RETURN_TYPES = ("SAMKIT_CONCEPT", "LOSS_MAP", "STRING")
    RETURN_NAMES = ("concept", "loss_map", "report")
    OUTPUT_TOOLTIPS = (
        "The learned concept, for the concept input of other nodes and for Save SAM Concept. If teaching did not "
        "improve the masks, the concept is empty and has no effect.",
        LOSSES,
        "Mean IoU on held-out masks, each predicted from a click, before and after training.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        negative = "One mask per image, of areas that resemble the object but do not belong to it. Empty masks are ignored."
        return {
            "required": {
                "sam_model": SAM_MODEL_INPUT,
                **EXAMPLE_INPUTS,
                **_schedule(_DEFAULTS),
            },
            "optional": {"negative_masks": ("MASK", {"tooltip": negative}), "device_mode": DEVICE_MODE_INPUT},
        }

    def execute(
        self,
        sam_model: list[Segmenter],
        images: list[Tensor],
        masks: list[Tensor],
        steps: list[int] | int = _DEFAULTS.steps,
        learning_rate: list[float] | float = _DEFAULTS.rate,
        seed: list[int] | int = _DEFAULTS.seed,
        negative_masks: list[Tensor] | None = None,
        device_mode: list[DeviceMode] | DeviceMode = "AUTO",
    ) -> tuple[Concept, dict[str, list[float]], str]:
        options = TeachOptions(one(steps), one(learning_rate), one(seed))
        negatives = None if negative_masks is None else many(negative_masks)
        concept, lesson = teach(one(sam_model), many(images), many(masks), negatives, options, one(device_mode))
        return concept, {"loss": lesson.losses}, report(lesson, "The concept has no effect")


class TrainDecoder:
    """`SAMKit_TrainDecoder`."""

    DESCRIPTION = (
        "Trains a copy of a SAM model's mask decoder on 10 to 50 masks. The trained model works in every node and with "
        "existing embeddings: prompts on the object give its mask as taught, other prompts give that of the base model. "
        "Try SAM Teach first."
    )
    SEARCH_ALIASES = ["sam", "segment anything", "train", "fine-tune", "finetune", "mask decoder"]
    CATEGORY = CATEGORY
    INPUT_IS_LIST = True
    RETURN_TYPES = (SAM_MODEL_TYPES, "LOSS_MAP", "STRING")
    RETURN_NAMES = ("sam_model", "loss_map", "report")
    OUTPUT_TOOLTIPS = (
        "The model with the trained decoder, or the unchanged model if training did not improve the masks.",
        LOSSES,
        "Mean IoU on held-out masks, each predicted from a click, before and after training.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        other = (
            "Images of other objects, without masks. Training preserves the base model's masks on these images. Use "
            "ten or more."
        )
        return {
            "required": {"sam_model": SAM_MODEL_INPUT, **EXAMPLE_INPUTS, **_schedule(_DECODER_DEFAULTS)},
            "optional": {"other_images": ("IMAGE", {"tooltip": other}), "device_mode": DEVICE_MODE_INPUT},
        }

    def execute(
        self,
        sam_model: list[Segmenter],
        images: list[Tensor],
        masks: list[Tensor],
        steps: list[int] | int = _DECODER_DEFAULTS.steps,
        learning_rate: list[float] | float = _DECODER_DEFAULTS.rate,
        seed: list[int] | int = _DECODER_DEFAULTS.seed,
        other_images: list[Tensor] = (),
        device_mode: list[DeviceMode] | DeviceMode = "AUTO",
    ) -> tuple[Segmenter, dict[str, list[float]], str]:
        options = DecoderOptions(one(steps), one(learning_rate), one(seed))
        model, lesson = train_decoder(one(sam_model), many(images), many(masks), many(other_images), options, one(device_mode))
        return model.network, {"loss": lesson.losses}, report(lesson, "The model is unchanged")


class SaveDecoder(SavesFile):
    """`SAMKit_SaveDecoder`."""

    DESCRIPTION = (
        "Saves the decoder of a model from SAM Train Decoder as a .safetensors file in the output folder. Load SAM "
        "Model lists the file and applies it to the model that it was trained for."
    )
    SEARCH_ALIASES = ["sam", "segment anything", "export decoder", "save sam model", "save delta"]
    RETURN_NAMES = ("filename",)
    OUTPUT_TOOLTIPS = ("The name of the file.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return saving_inputs("sam_model", SAM_MODEL_TYPES, "A model from SAM Train Decoder.", f"{DECODER_FOLDER}/decoder")

    def execute(self, sam_model: Segmenter, filename_prefix: str = f"{DECODER_FOLDER}/decoder") -> tuple[str]:
        with new_output(filename_prefix, ".safetensors") as (path, _):
            save_decoder(sam_model, path)
        return (path.name,)


class SaveConcept(SavesFile):
    """`SAMKit_SaveConcept`."""

    DESCRIPTION = "Saves a concept from SAM Teach as a .safetensors file in the output folder, where Load SAM Concept lists it."
    SEARCH_ALIASES = ["sam", "segment anything", "export concept", "save concept"]
    RETURN_NAMES = ("filename",)
    OUTPUT_TOOLTIPS = ("The name of the file.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return saving_inputs("concept", "SAMKIT_CONCEPT", "A concept from SAM Teach.", f"{CONCEPT_FOLDER}/concept")

    def execute(self, concept: Concept, filename_prefix: str = f"{CONCEPT_FOLDER}/concept") -> tuple[str]:
        with new_output(filename_prefix, ".safetensors") as (path, _):
            save_concept(concept, path)
        return (path.name,)


class LoadConcept:
    """`SAMKit_LoadConcept`."""

    DESCRIPTION = "Loads a concept that SAM Teach learned. A concept works only with the model that it was made for."
    SEARCH_ALIASES = ["sam", "segment anything", "load concept"]
    CATEGORY = CATEGORY
    RETURN_TYPES = ("SAMKIT_CONCEPT",)
    RETURN_NAMES = ("concept",)
    OUTPUT_TOOLTIPS = ("The concept, for the concept input of other nodes.",)
    FUNCTION = "execute"
    LOOKED_UP = ("concept_name",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = f"A file in models/{CONCEPT_FOLDER} or output/{CONCEPT_FOLDER}."
        return {"required": {"concept_name": (sorted(model_names(CONCEPT_FOLDER)), {"tooltip": tooltip})}}

    @classmethod
    def IS_CHANGED(cls, concept_name: str | None = None) -> str:
        """A file that was replaced on disk is loaded anew. A linked input is None; nothing may raise here."""
        try:
            path = model_path(CONCEPT_FOLDER, concept_name) if concept_name else None
            return str(checkpoint_stamp(path)) if path else ""
        except (SAMError, OSError):
            return ""

    def execute(self, concept_name: str) -> tuple[Concept]:
        path = model_path(CONCEPT_FOLDER, concept_name)
        if path is None:
            raise SAMError(f"There is no concept {concept_name!r} in models/{CONCEPT_FOLDER} or output/{CONCEPT_FOLDER}.")
        return (load_concept(path),)


def one(value: Any) -> Any:
    """The value of an input that takes no list: with INPUT_IS_LIST all come in one."""
    return value[0] if isinstance(value, (list, tuple)) else value


def many(value: Any) -> list[Any]:
    """The values of an input that takes a list, or the one that a caller in Python gave."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def report(lesson: Lesson, otherwise: str) -> str:
    """A table of the held-out masks, and what it means; `otherwise` is what the result is where it did not help."""
    before, after = (sum(column) / len(lesson.rows) for column in list(zip(*lesson.rows, strict=True))[1:])
    lines = ["| image | IoU before | IoU after |", "|---|---|---|"]
    lines += [f"| {row.index} | {row.before:.3f} | {row.after:.3f} |" for row in lesson.rows]
    lines.append(f"| mean | {before:.3f} | {after:.3f} |")
    return "\n".join([*lines, "", *_remarks(lesson, otherwise)])


def _remarks(lesson: Lesson, otherwise: str) -> Iterable[str]:
    steps = counted(len(lesson.losses), "step")
    yield f"{steps} in all." if not lesson.stopped else f"{steps} in all. Training ended early: {lesson.stopped}."
    if not lesson.held_out:
        yield "There is only one mask, so the IoU was measured on the taught mask itself. Use two or more for a real test."
    if not lesson.helped:
        yield f"The IoU did not improve. {otherwise}. Add masks, or change the learning rate."
