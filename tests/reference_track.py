"""The reference for films: transformers' `Sam2VideoModel` with seeded weights, driven in the order of Meta's predictor."""

import pytest
import torch
from reference_sam2 import _enliven

try:
    from transformers import (
        Sam2HieraDetConfig,
        Sam2ImageProcessor,
        Sam2VideoConfig,
        Sam2VideoModel,
        Sam2VideoProcessor,
        Sam2VideoVideoProcessor,
        Sam2VisionConfig,
    )
except ImportError:
    pytest.skip("transformers before 4.56 has no SAM 2 to compare with", allow_module_level=True)

from torch.nn import functional as F
from transformers.models.sam2_video import modeling_sam2_video

# transformers fixes the memories' channels at 64 in the keys of its attention; twice as many make pointers of two pieces.
SMALL_CHANNELS = 128
TIE = 5e-5  # of a mask's logits, which are of the order of 10


def random_video(hiera, side=1024, channels=256, seed=0, newer=True, presence=3.0):
    """A `Sam2VideoModel` with random weights that make masks worth comparing; `newer` is SAM 2.1, else 2.

    `presence` is added to all object scores, which random weights give at random.
    """
    torch.manual_seed(seed)
    grid, widths = side // 16, hiera.get("embed_dim_per_stage", [96, 192, 384, 768])
    vision = Sam2VisionConfig(
        backbone_config=Sam2HieraDetConfig(image_size=[side, side], **hiera),
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[4 * grid] * 2, [2 * grid] * 2, [grid] * 2],
        fpn_hidden_size=channels,
    )
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": channels, "image_size": side, "mask_input_channels": 16},
        mask_decoder_config={"hidden_size": channels, "mlp_dim": 8 * channels, "iou_head_hidden_dim": channels},
        image_size=side,
        memory_attention_hidden_size=channels,
        memory_attention_feed_forward_hidden_size=8 * channels,
        memory_attention_rope_feat_sizes=[grid, grid],
        memory_encoder_hidden_size=channels,
        mask_downsampler_embed_dim=channels,
        memory_fuser_embed_dim=channels,
        memory_fuser_intermediate_dim=4 * channels,
        enable_occlusion_spatial_embedding=newer,
        enable_temporal_pos_encoding_for_object_pointers=newer,
    )
    model = Sam2VideoModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".scale") or ("." not in name and name != "no_memory_embedding"):
                parameter.normal_(0, 0.5)
            else:
                _enliven(name, parameter)
        model.mask_decoder.pred_obj_score_head.proj_out.bias.add_(presence)
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(model.shared_image_embedding.positional_embedding)
    return model.eval().requires_grad_(False)


class _Torch:
    """The module torch for transformers' model, whose bfloat16 is float32."""

    bfloat16 = torch.float32

    def __getattr__(self, name):
        return getattr(torch, name)


def remember_in_float32(monkeypatch):
    """Let transformers' model store memories as it computes them."""
    monkeypatch.setattr(modeling_sam2_video, "torch", _Torch())


def processor(side):
    """transformers' processor for films, for a square of `side` pixels."""
    size = {"height": side, "width": side}
    image = Sam2ImageProcessor(size=size, mask_size={"height": side // 4, "width": side // 4})
    return Sam2VideoProcessor(image, Sam2VideoVideoProcessor(size=size), target_size=side)


class ReferenceFilm:
    """One object in one film, by transformers' own steps.

    The order of the steps, and what transformers leaves out, are those of Meta's `SAM2VideoPredictor` with
    `add_all_frames_to_correct_as_cond`: a correction also gets the logits of the mask that it corrects, clipped to +-32, and
    stays a prompted frame; the pointer of a given mask is that of the single mask; and the memory of a given mask is made of
    its low-resolution logits. (transformers: no logits, a tracked frame, the best of three, the mask itself.)

    A prompted frame's mask is remembered as on or off, so where rounding decides between them, two implementations remember
    different pixels. `near` has another one's masks `[1, 1, side, side]` of prompted frames: a pixel whose logits are both
    within `TIE` of 0 takes the side of the nearest of these masks, and `settled` counts them.
    """

    near, settled = (), 0

    def __init__(self, model, side, frames):
        self.model, self.processor = model, processor(side)
        self.session = self.processor.init_video_session(
            video=frames, inference_device="cpu", dtype=torch.float32, max_vision_features_cache_size=1
        )
        pixels = Sam2ImageProcessor(size={"height": side, "width": side})(list(frames), return_tensors="pt")["pixel_values"]
        self.session.processed_frames = dict(enumerate(pixels))  # the resize of the images' own processor, as SAM 2 was trained
        self.side, self.results, self.size = side, {}, frames[0].shape[:2]

    def prompt(self, frame, reverse=False, **prompts):
        """Prompts on a frame: the first ones begin, any later ones correct."""
        names = {"points": "input_points", "labels": "input_labels", "boxes": "input_boxes", "masks": "input_masks"}
        given = {names[name]: value for name, value in prompts.items()}
        self.processor.add_inputs_to_inference_session(self.session, frame_idx=frame, obj_ids=1, **given)
        points = self.session.point_inputs_per_obj[0].get(frame)
        masks = self.session.mask_inputs_per_obj[0].get(frame)
        self.session.obj_with_new_inputs = []
        first = not self.session.output_dict_per_obj[0]["cond_frame_outputs"]
        before = None if first or masks is not None else self.track(frame, reverse)[0].clamp(-32, 32)[None, None]
        with torch.inference_mode():
            out = self._given(frame, masks) if masks is not None else self._prompted(frame, first, points, reverse, before)
            self.session.store_output(0, frame, output_value=out, is_conditioning_frame=True)
            self.session.output_dict_per_obj[0]["non_cond_frame_outputs"].pop(frame, None)
            self._remember(frame, out)
        return self._result(frame, out["pred_masks"], out["object_score_logits"])

    def _prompted(self, frame, first, points, reverse, before):
        run = self.model._run_single_frame_inference
        return run(self.session, frame, 0, 1, first, points, None, reverse, prev_sam_mask_logits=before)

    def _remember(self, frame, out):
        full = out["high_res_masks"]
        if self.near:
            other = min(self.near, key=lambda one: float((one - full).abs().max()))
            is_tie = (full.abs() < TIE) & (other.abs() < TIE) & ((full > 0) != (other > 0))
            full, self.settled = torch.where(is_tie, other, full), self.settled + int(is_tie.sum())
        self.model._batch_encode_memories(self.session, frame, [0], [full], [out["object_score_logits"]], [True])

    def _given(self, frame, masks):
        forward = type(self.model)._single_frame_forward
        single = lambda *args, **kwargs: forward(self.model, *args, multimask_output=False, **kwargs)  # noqa: E731
        self.model._single_frame_forward = single
        try:
            out = self._run_given(frame, masks)
        finally:
            del self.model._single_frame_forward
        full = F.interpolate(out["pred_masks"].view(1, 1, *out["pred_masks"].shape[-2:]), (self.side,) * 2, mode="bilinear")
        return {**out, "high_res_masks": full}

    def _run_given(self, frame, masks):
        return self.model._run_single_frame_inference(self.session, frame, 0, 1, True, None, masks, False)

    def track(self, frame, reverse=False):
        """A frame without prompts."""
        found = self.model(self.session, frame_idx=frame, reverse=reverse)
        return self._result(frame, found.pred_masks, found.object_score_logits)

    def _result(self, frame, logits, score):
        logits = logits.reshape(logits.shape[-2:]).clone()
        self.results[frame] = logits, score.reshape(()).clone()
        return self.results[frame]

    def stored_types(self):
        """The types of the maps that it remembers."""
        outputs = self.session.output_dict_per_obj[0]
        each = [*outputs["cond_frame_outputs"].values(), *outputs["non_cond_frame_outputs"].values()]
        return {output["maskmem_features"].dtype for output in each}

    def masks(self):
        """Of each frame so far, at the film's size."""
        full = {
            index: F.interpolate(logits[None, None], self.size, mode="bilinear", align_corners=False)[0, 0]
            for index, (logits, _) in self.results.items()
        }
        return {index: values > 0 for index, values in full.items()}


class EdgeReferenceFilm(ReferenceFilm):
    """The same with transformers' `EdgeTamVideoModel`, which encodes a memory as it makes the mask."""

    def _prompted(self, frame, first, points, reverse, before):
        run = self.model._run_single_frame_inference
        return run(self.session, frame, 0, 1, first, points, None, reverse, True, prev_sam_mask_logits=before)

    def _run_given(self, frame, masks):
        return self.model._run_single_frame_inference(self.session, frame, 0, 1, True, None, masks, False, False)

    def _remember(self, frame, out):
        """Of a given mask it is made anew, of the mask's low-resolution logits."""
        if out["maskmem_features"] is not None:
            return
        (*_, features), _ = self.model._prepare_vision_features(self.session, frame, 1)
        found = self.model._encode_new_memory(features, out["high_res_masks"], out["object_score_logits"], True)
        stored = self.session.output_dict_per_obj[0]["cond_frame_outputs"][frame]
        stored["maskmem_features"], stored["maskmem_pos_enc"] = found
