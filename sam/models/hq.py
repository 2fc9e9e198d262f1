"""SAM-HQ: SAM's mask decoder with one more output token, whose mask is made with early features of the image encoder.

"Segment Anything in High Quality" (arXiv 2306.01567), after sam-hq's `mask_decoder_hq.py`. The rest of the model is SAM's.
"""

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from ..kernels.decoder import FastDecoder, Rated, SharedImage
from ..kernels.linear import LinearKind

FINE = "fine"
"""The name of the map that HQ masks are made with, `[C/8, 4h, 4w]`."""


class HQMaskDecoder(MaskDecoder):
    """The weights of a SAM-HQ mask decoder under sam-hq's names; `FastHQDecoder` runs them.

    Args:
        vit_dim: width of the early features.
        transformer_dim, **decoder: see `MaskDecoder`.
    """

    def __init__(self, *, vit_dim: int, transformer_dim: int, **decoder: object) -> None:
        super().__init__(transformer_dim=transformer_dim, **decoder)
        narrow, fine = transformer_dim // 4, transformer_dim // 8
        self.hf_token = nn.Embedding(1, transformer_dim)
        self.hf_mlp = MLP(transformer_dim, transformer_dim, fine, 3)
        self.compress_vit_feat = _upscaling(vit_dim, transformer_dim, fine)
        self.embedding_encoder = _upscaling(transformer_dim, narrow, fine)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(fine, narrow, 3, 1, 1), LayerNorm2d(narrow), nn.GELU(), nn.Conv2d(narrow, fine, 3, 1, 1)
        )

    def fine_features(self, features: Tensor, early: Tensor) -> Tensor:
        """The `FINE` map of images, `[B, C/8, 4h, 4w]`.

        Args:
            features: image embeddings `[B, C, h, w]`.
            early: the first global block's output `[B, h, w, E]`.
        """
        return self.embedding_encoder(features) + self.compress_vit_feat(early.permute(0, 3, 1, 2).contiguous())


def _upscaling(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, hidden, kernel_size=2, stride=2),
        LayerNorm2d(hidden),
        nn.GELU(),
        nn.ConvTranspose2d(hidden, outputs, kernel_size=2, stride=2),
    )


class FastHQDecoder(FastDecoder):
    """`FastDecoder` for an `HQMaskDecoder`; the shared image's one finer map is `FINE`."""

    def __init__(self, decoder: HQMaskDecoder, prompts: nn.Module, linear: LinearKind) -> None:
        super().__init__(decoder, prompts, linear)
        self.own_tokens = torch.cat([self.own_tokens, decoder.hf_token.weight])
        self.refine, self.hq_network = decoder.embedding_maskfeature, decoder.hf_mlp

    def share(self, features: Tensor, finer: tuple[Tensor, ...] = ()) -> SharedImage:
        """Compute what the prompts of an image share, from its embedding `[C, h, w]` and its `FINE` map `[C/8, 4h, 4w]`."""
        return super().share(features, tuple(one[None] for one in finer))

    def masks(self, rated: Rated, wanted: slice, shared: SharedImage) -> Tensor:
        """SAM's masks, each with the HQ token's added."""
        upscaled = self.upscale(rated.image)
        masks = self.to_grid(self.hyper(rated, wanted) @ upscaled.transpose(1, 2))
        detailed = self.refine(self.to_grid(upscaled.transpose(1, 2))) + shared.finer[0]
        hyper = self.hq_network(rated.queries[:, 1 + self.mask_tokens])[:, None]
        return masks + (hyper @ detailed.flatten(2)).view(len(masks), 1, *masks.shape[2:])
