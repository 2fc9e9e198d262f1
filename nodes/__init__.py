"""Floor 4: ComfyUI's face of the runtime."""

from .automask import AutoMask
from .boxes import ConvertBoxes
from .crop import CropToMask, StitchCrop
from .door import guarded
from .editor.routes import register_routes
from .embedding import GetSAMEmbedding, SAMEmbeddingToImage
from .embedding_file import LoadEmbedding, SaveEmbedding
from .example import ExampleImage
from .grounding import GroundingLoader, SegmentText, TextToBoxes
from .load_masks import LoadMasks
from .masks import SelectMasks
from .matte import Matte, MatteLoader
from .model import FromSAM3, SAMHubLoader, SAMModelLoader
from .personalize import Personalize
from .predict import PredictMask, Segment
from .prompt_editor import PromptEditor
from .refine import RefineMask
from .save_masks import SaveMasks
from .segs import MasksToSEGS
from .startup import at_start
from .teach import LoadConcept, SaveConcept, SaveDecoder, Teach, TrainDecoder
from .track import TrackObjects

_NODES = {
    "AV_SAMLoader": (SAMModelLoader, "Load SAM Model"),
    "SAMKit_HubLoader": (SAMHubLoader, "Load SAM from Hub"),
    "SAMKit_FromSAM3": (FromSAM3, "SAM from SAM3 Model"),
    "GetSAMEmbedding": (GetSAMEmbedding, "Get SAM Embedding"),
    "SAMKit_SaveMasks": (SaveMasks, "SAM Save Masks"),
    "SAMKit_LoadMasks": (LoadMasks, "SAM Load Masks"),
    "SAMEmbeddingToImage": (SAMEmbeddingToImage, "SAM Embedding to Image"),
    "SAMKit_PredictMask": (PredictMask, "SAM Predict Mask"),
    "SAMKit_Segment": (Segment, "SAM Segment"),
    "SAMKit_Track": (TrackObjects, "SAM Track"),
    "SAMKit_PromptEditor": (PromptEditor, "SAM Prompt Editor"),
    "SAMKit_AutoMask": (AutoMask, "SAM Segment Everything"),
    "SAMKit_Personalize": (Personalize, "SAM Personalize"),
    "SAMKit_Teach": (Teach, "SAM Teach"),
    "SAMKit_SaveConcept": (SaveConcept, "Save SAM Concept"),
    "SAMKit_LoadConcept": (LoadConcept, "Load SAM Concept"),
    "SAMKit_TrainDecoder": (TrainDecoder, "SAM Train Decoder"),
    "SAMKit_SaveDecoder": (SaveDecoder, "Save SAM Decoder"),
    "SAMKit_SelectMasks": (SelectMasks, "SAM Select Masks"),
    "SAMKit_RefineMask": (RefineMask, "SAM Refine Mask"),
    "SAMKit_CropToMask": (CropToMask, "SAM Crop to Mask"),
    "SAMKit_StitchCrop": (StitchCrop, "SAM Stitch Crop"),
    "SAMKit_MasksToSEGS": (MasksToSEGS, "Masks to SEGS"),
    "SAMKit_ConvertBoxes": (ConvertBoxes, "Convert Boxes"),
    "SAMKit_MatteLoader": (MatteLoader, "Load ViTMatte"),
    "SAMKit_Matte": (Matte, "SAM Soft Edges"),
    "SAMKit_ExampleImage": (ExampleImage, "SAM Kit Example Image"),
    "SAMKit_GroundingLoader": (GroundingLoader, "Load Grounding DINO"),
    "SAMKit_TextToBoxes": (TextToBoxes, "Text to Boxes"),
    "SAMKit_SegmentText": (SegmentText, "SAM Segment Text"),
    "SAMKit_SaveEmbedding": (SaveEmbedding, "Save SAM Embedding"),
    "SAMKit_LoadEmbedding": (LoadEmbedding, "Load SAM Embedding"),
}

NODE_CLASS_MAPPINGS = {node_id: guarded(node) for node_id, (node, _) in _NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS = {node_id: name for node_id, (_, name) in _NODES.items()}

register_routes()
at_start(NODE_CLASS_MAPPINGS)
