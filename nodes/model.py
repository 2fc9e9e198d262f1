"""Load SAM Model, Load SAM Model (Hugging Face), and what all loaders of models share."""

from typing import Any, ClassVar

from ..sam import PRECISIONS, SAM_MODELS, Precision, Segmenter, from_comfyui, load_shared
from ..sam.weights.catalog import Catalog, is_adapter_name
from ..sam.weights.hub import fetch_from_hub
from ..utils.comfy_folders import model_folders
from .common import CATEGORY, SAM_MODEL_TYPES

PRECISION_INPUT: tuple[Any, ...] = (
    list(PRECISIONS),
    {
        "default": "auto",
        "tooltip": "Precision of the image encoder. auto: what ComfyUI uses itself, mostly fp16 on a GPU, and fp32 on a CPU. "
        "The prompt encoder and the mask decoder always run in fp32.",
    },
)


NAMED = "auto"
"""The value of base_model that leaves the choice to the adapter's own configuration."""


def chosen_base(base_model: str | None) -> str:
    """The model of a value of base_model, empty for the one that the adapter names; a linked input has no value yet."""
    return "" if base_model in (None, NAMED) else base_model


class ModelLoader:
    """What loaders share: the list of a catalog, and what becomes of a name from it.

    Attributes:
        MODELS: the catalog.
        TOOLTIP: of the list.
    """

    MODELS: ClassVar[Catalog[Any]]
    TOOLTIP: ClassVar[str]
    CATEGORY = CATEGORY
    FUNCTION = "execute"
    LOOKED_UP = ("model_name",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = cls.MODELS.names()
        labels = {name: cls.MODELS.find(name).label for name in names}
        ready = {"names": cls.MODELS.ready(), "bundled": list(cls.MODELS.bundled)}
        return {"required": {"model_name": (names, {"samkit_labels": labels, "samkit_ready": ready, "tooltip": cls.TOOLTIP})}}

    @classmethod
    def IS_CHANGED(cls, model_name: str | None = None, **_: Any) -> str:
        """Files that were replaced on disk are loaded anew. Linked inputs are None; nothing may raise here."""
        return cls.MODELS.find(model_name).stamp if model_name else ""

    @classmethod
    def VALIDATE_INPUTS(cls, model_name: str | None = None) -> bool | str:
        """The list, and whatever else the catalog finds."""
        return cls.MODELS.is_listed(model_name)

    def execute(self, model_name: str) -> tuple[Any]:
        return (self.MODELS.find(model_name).load(),)


class SAMModelLoader(ModelLoader):
    """`AV_SAMLoader`: a checkpoint by name, from the `sams` folders, the pack itself, or its publisher."""

    MODELS = SAM_MODELS
    LOOKED_UP = ("model_name", "base_model")
    TOOLTIP = (
        "A file in models/sams, or a known checkpoint, which is downloaded on first use. samkit_demo.safetensors is bundled: a "
        "small model for demonstrations, not a substitute for SAM."
    )

    DESCRIPTION = (
        "Loads a SAM checkpoint from models/sams. The model type is detected from the weights, not from the file name. "
        "Known checkpoints are downloaded and verified on first use. A LoRA adapter of peft is merged into the model that it "
        "was trained on."
    )
    SEARCH_ALIASES = [
        "sam",
        "sam2",
        "sam 2",
        "sam3",
        "sam 3",
        "sam-hq",
        "mobilesam",
        "segment anything",
        "segment anything 2",
        "sam model loader",
        "sam loader",
        "load sam",
        "segmentation model",
        "lora",
        "adapter",
        "peft",
    ]
    RETURN_TYPES = (SAM_MODEL_TYPES,)
    RETURN_NAMES = ("sam_model",)
    OUTPUT_TOOLTIPS = ("The SAM model, for every node with a SAM model input: those of this pack, of Impact Pack and others.",)
    FUNCTION = "load_model"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        declared = super().INPUT_TYPES()
        names = [name for name in declared["required"]["model_name"][0] if not is_adapter_name(name)]
        base = (
            [NAMED, *names],
            {
                "default": NAMED,
                "tooltip": "The model that a LoRA adapter was trained on. auto: the one that its adapter_config.json names. "
                "Ignored when model_name is not an adapter.",
            },
        )
        return {**declared, "optional": {"precision": PRECISION_INPUT, "base_model": base}}

    @classmethod
    def IS_CHANGED(cls, model_name: str | None = None, base_model: str | None = NAMED, **_: Any) -> str:
        return cls.MODELS.find(model_name, chosen_base(base_model)).stamp if model_name else ""

    @classmethod
    def VALIDATE_INPUTS(cls, model_name: str | None = None, base_model: str | None = NAMED) -> bool | str:
        """The list, and whatever else the catalog finds; a base that has gone is only missed by an adapter."""
        found = cls.MODELS.is_listed(model_name)
        needs_base = found is True and isinstance(model_name, str) and cls.MODELS.find(model_name).base is not None
        return cls.MODELS.is_listed(base_model) if needs_base and base_model != NAMED else found

    def load_model(self, model_name: str, precision: Precision = "auto", base_model: str = NAMED) -> tuple[Segmenter]:
        return (self.MODELS.find(model_name, chosen_base(base_model)).load(precision),)


class SAMHubLoader:
    """`SAMKit_HubLoader`: a SAM from any repository of the Hugging Face hub."""

    DESCRIPTION = (
        "Loads a SAM model from a Hugging Face Hub repository: Meta's format or transformers' format, SlimSAM, SAM-HQ, "
        "MobileSAM, or a fine-tune. The file is downloaded once to models/sams and verified. The model type is detected from "
        "the weights."
    )
    SEARCH_ALIASES = ["sam", "sam2", "segment anything", "hugging face", "sam hub loader", "keras sam"]
    CATEGORY = CATEGORY
    RETURN_TYPES = (SAM_MODEL_TYPES,)
    RETURN_NAMES = ("sam_model",)
    OUTPUT_TOOLTIPS = ("The SAM model, for every node with a SAM model input: those of this pack, of Impact Pack and others.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        repo = "owner/name, hf://owner/name, or keras-hub's sam_base_sa1b, sam_large_sa1b or sam_huge_sa1b (Meta's weights)."
        return {
            "required": {"repo_id": ("STRING", {"default": "facebook/sam-vit-base", "tooltip": repo})},
            "optional": {
                "revision": ("STRING", {"default": "", "tooltip": "Branch, tag or commit. Leave empty for the latest."}),
                "filename": (
                    "STRING",
                    {"default": "", "tooltip": "A file in the repository. Leave empty to detect the weights."},
                ),
                "precision": PRECISION_INPUT,
            },
        }

    def execute(
        self,
        repo_id: str = "facebook/sam-vit-base",
        revision: str = "",
        filename: str = "",
        precision: Precision = "auto",
    ) -> tuple[Segmenter]:
        path = fetch_from_hub(repo_id, revision.strip(), filename.strip(), model_folders(SAM_MODELS.kind))
        return (load_shared(path, precision),)


class FromSAM3:
    """`SAMKit_FromSAM3`: the SAM 3 that ComfyUI's own loader made, for clicks."""

    DESCRIPTION = (
        "Uses the SAM 3 or SAM 3.1 that Load Checkpoint loaded for clicks: points, boxes, masks, and everything else that this "
        "pack does with a SAM model. The weights are shared, not copied: words by SAM3 Detect and clicks by this pack need one "
        "model in memory. Each image is encoded once for all prompts. The weights are under Meta's SAM License."
    )
    SEARCH_ALIASES = ["sam3", "sam 3", "sam 3.1", "segment anything 3", "sam3 clicks", "model to sam"]
    CATEGORY = CATEGORY
    RETURN_TYPES = (SAM_MODEL_TYPES,)
    RETURN_NAMES = ("sam_model",)
    OUTPUT_TOOLTIPS = ("The SAM model, for every node with a SAM model input.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL", {"tooltip": "The MODEL of Load Checkpoint, with a file of SAM 3 or SAM 3.1."})}}

    def execute(self, model: Any) -> tuple[Segmenter]:
        return (from_comfyui(model),)
