"""A Sam that knows its checkpoint, its identity and its precision; and how one is loaded."""

import hashlib
import logging
import weakref
from pathlib import Path
from typing import Literal, get_args

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from .errors import SAMError
from .linear import bfloat16_pays
from .plans import weights_of
from .tiny_vit import fold_checkpoint
from .weights.architecture import build, read_architecture
from .weights.files import read_checkpoint
from .weights.formats import to_sam_names

log = logging.getLogger("samkit")

Precision = Literal["auto", "fp32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class SAMModel(Sam):
    """segment_anything's `Sam`, which every pack that takes one accepts, with what a plain one does not know.

    Attributes:
        checkpoint: the file that it was loaded from.
        precision: what the image encoder computes in; prompt encoder and mask decoder stay float32.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        prompt_encoder: nn.Module,
        mask_decoder: nn.Module,
        checkpoint: Path,
        precision: Precision = "auto",
    ) -> None:
        super().__init__(image_encoder, prompt_encoder, mask_decoder)
        self.checkpoint = checkpoint
        self.precision = precision

    @property
    def identity(self) -> str:
        """Content hash of the weights (see `identity_of`)."""
        return identity_of(self)


def load_model(path: str | Path, precision: Precision = "auto") -> SAMModel:
    """Load a SAM checkpoint on the CPU; its architecture is told by its weights.

    Args:
        path: a `.pth` or `.safetensors` file in Meta's or Hugging Face's layout, wrapped or prefixed or not.
        precision: of the image encoder: `auto` (fp16 on a CUDA GPU, else fp32), `fp32`, `bf16` or `fp16`.

    Raises:
        SAMError: the file is missing, damaged, would run code, or is no SAM's; `precision` is unknown.
    """
    if precision not in PRECISIONS:
        raise SAMError(f"precision is {precision!r}: choose one of {', '.join(PRECISIONS)}.")
    # ComfyUI runs nodes in inference mode; weights made there could not be moved or used outside it.
    with torch.inference_mode(False), torch.no_grad():
        return _load(Path(path), precision)


def _load(path: Path, precision: Precision) -> SAMModel:
    state = to_sam_names(read_checkpoint(path), path.name)
    try:
        state = fold_checkpoint(state)
        parts = build(read_architecture({name: tensor.shape for name, tensor in state.items()}))
    except SAMError as error:
        raise SAMError(f"{path.name}: {error}") from error
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise SAMError(f"{path.name} was not loaded: the shapes of its weights do not fit together. ({error})") from error
    model = SAMModel(*parts, checkpoint=path, precision=precision)
    _fill(model, state)
    return model.eval().requires_grad_(False)


def _fill(model: SAMModel, state: dict[str, Tensor]) -> None:
    """Give the model its weights: all of them, and nothing left over."""
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    if missing or unknown or wrong:
        examples = ", ".join((missing + unknown + wrong)[:3])
        raise SAMError(
            f"{model.checkpoint.name} is a SAM of a kind that is not supported: {len(missing)} tensors are missing, "
            f"{len(unknown)} unknown and {len(wrong)} of another shape ({examples}, ...)."
        )
    model.load_state_dict(state, strict=True, assign=True)


def encoder_dtype(model: Sam, device: torch.device) -> torch.dtype:
    """What the image encoder computes in on `device`; a plain `Sam` has no say and gets float32.

    fp16 on a CPU is ten times slower than fp32 and no more exact than it is fast, so a CPU never gets it; and bf16 only where
    it is faster there.
    """
    precision = getattr(model, "precision", "fp32")
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    if device.type == "cpu" and (precision == "fp16" or (precision == "bf16" and not bfloat16_pays())):
        precision = "fp32"
    return _DTYPES[precision]


_identities: weakref.WeakKeyDictionary[nn.Module, tuple[int, str]] = weakref.WeakKeyDictionary()


def identity_of(model: Sam) -> str:
    """Content hash of a model's weights, the same wherever they lie and whatever file they came from.

    It is computed once, and again when the weights have been changed in place since.
    """
    version = sum(0 if p.is_inference() else p._version for p in weights_of(model))
    known = _identities.get(model)
    if known is None or known[0] != version:
        known = version, _hash(model.state_dict())
        _identities[model] = known
    return known[1]


def _hash(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
