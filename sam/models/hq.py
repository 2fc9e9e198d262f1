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

    def predict_fine_masks(
        self, features: Tensor, places: Tensor, sparse: Tensor, dense: Tensor, fine: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`predict_masks` with the HQ token's mask added to each, as sam-hq's `predict_masks` and `forward` compute them.

        Args:
            features: `[1, C, h, w]`.
            places: `[1, C, h, w]`, the position encoding of the image's tokens.
            sparse, dense: embedded prompts `[n, K, C]` and `[n or 1, C, h, w]`.
            fine: `[C/8, 4h, 4w]`, see `fine_features`.

        Returns:
            Logits `[n, M, 4h, 4w]` and predicted IoUs `[n, M]`.
        """
        count, (_, channels, height, width) = len(sparse), features.shape
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight, self.hf_token.weight])
        image = (features + dense).expand(count, -1, -1, -1)
        queries, image = self.transformer(
            image, places.expand(count, -1, -1, -1), torch.cat([own.expand(count, -1, -1), sparse], 1)
        )
        upscaled = self.output_upscaling(image.transpose(1, 2).reshape(count, channels, height, width))
        masks = [mlp(queries[:, 1 + index]) for index, mlp in enumerate(self.output_hypernetworks_mlps)]
        logits = torch.einsum("nmc,nchw->nmhw", torch.stack(masks, 1), upscaled)
        detailed = self.embedding_maskfeature(upscaled) + fine
        more = torch.einsum("nc,nchw->nhw", self.hf_mlp(queries[:, 1 + self.num_mask_tokens]), detailed)
        return logits + more[:, None], self.iou_prediction_head(queries[:, 0])


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
        detailed = self.refine(self.to_maps(upscaled)) + shared.finer[0]
        hyper = self.hq_network(rated.queries[:, 1 + self.mask_tokens])[:, None]
        return masks + (hyper @ detailed.flatten(2)).view(len(masks), 1, *masks.shape[2:])
