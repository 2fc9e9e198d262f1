"""Run by ComfyUI's own Python: its own SAM 3 and 3.1 with random weights, their files, and what they answer.

python comfyui_sam3.py <the pack's root> <a folder to write to>

For each version, `<version>.safetensors` is a file as its loader takes it (SAM 3's in float32, with the names of Meta's file;
3.1's in float16, as Comfy-Org's), and `<version>_expected.pt` has pixels, the maps that clicks use, and logits and scores of
prompts. `shared` in it is what the pack makes of ComfyUI's model in ComfyUI's process. The trunk is small, since ComfyUI's
classes let it be; all else is of full size.
"""

import sys
from pathlib import Path

HOME, ROOT, FOLDER = Path.cwd(), Path(sys.argv[1]), Path(sys.argv[2])
sys.argv = [sys.argv[0], "--cpu"]
sys.path[:0] = [str(HOME), str(ROOT / "tools")]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import folder_paths  # noqa: E402, F401  so the pack knows that it is in ComfyUI
import torch  # noqa: E402
from comfy.ldm.sam3.detector import SAM3Model  # noqa: E402
from load_pack import load_pack  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

load_pack()

from samkit.sam import from_comfyui  # noqa: E402
from samkit.sam.models.sam2 import vit_det  # noqa: E402
from samkit.sam.placement.devices import placed  # noqa: E402

SIDE = 1008
TRUNK = {"embed_dim": 64, "depth": 4, "global_att_blocks": (1, 3)}
POINT = {"point_coords": torch.tensor([[[400.0, 300.0]]]), "point_labels": torch.tensor([[1]])}
BOX = torch.tensor([[[200.0, 100.0], [700.0, 900.0]]])


def small(kind):
    """ComfyUI's module with weights that make masks worth comparing."""
    torch.manual_seed(0)
    model = SAM3Model(device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init, image_model=kind, **TRUNK)
    for name, tensor in model.state_dict().items():
        token = any(part in name for part in ("token.weight", "tokens.weight", "embed.weight", "point_embeddings", "gaussian"))
        if token or "pos_embed" in name or "no_mem_embed" in name:
            tensor.normal_(0, 0.3 if "pos_embed" in name else 1)
        elif tensor.ndim < 2:
            tensor.copy_(0.02 * torch.randn_like(tensor) + (name.endswith("weight")))
        else:
            tensor.normal_(0, 1 / tensor[0].numel() ** 0.5)
        tensor.copy_(tensor.half())
    return model.eval()


def names_of_meta(state):
    """The names that Meta's files have where ComfyUI's module has others (`SAM3.process_unet_state_dict`, the other way)."""
    renamed = {}
    for name, tensor in state.items():
        if "sam_mask_decoder.transformer." in name:
            name = (
                name.replace(".mlp.0.", ".mlp.lin1.")
                .replace(".mlp.2.", ".mlp.lin2.")
                .replace(".norm_final.", ".norm_final_attn.")
            )
        renamed[name] = tensor.clone().contiguous()
    return renamed


def shared_with(model, pixels):
    """What the pack's model has of ComfyUI's, and the maps that it makes, as a node runs."""
    base = torch.nn.Module()
    base.diffusion_model = model
    patcher = comfy.model_patcher.ModelPatcher(base, management.get_torch_device(), management.unet_offload_device())
    with torch.inference_mode():
        ours = from_comfyui(patcher)
        theirs = {id(tensor) for tensor in model.parameters()}
        own = [name for name, tensor in ours.named_parameters() if id(tensor) not in theirs]
        with placed(ours, "AUTO"):
            maps = ours.features(255 * pixels, torch.float32)
    return {"own": own, "owner": ours.owner() is patcher, **maps}


@torch.no_grad()
def main():
    vit_det.SIZES[TRUNK["embed_dim"], TRUNK["depth"]] = vit_det.ViTDetSize(16, 24, TRUNK["global_att_blocks"], 72)
    for version, kind in (("sam3", "SAM3"), ("sam3.1", "SAM31")):
        model, is_3_1 = small(kind), kind == "SAM31"
        state = names_of_meta(model.state_dict())
        if is_3_1:
            state = {name.replace("tracker.", "tracker.model."): tensor.half() for name, tensor in state.items()}
        save_file(state, FOLDER / f"{version}.safetensors")
        pixels = torch.rand(1, 3, SIDE, SIDE)
        vision, tracker = model.detector.backbone["vision_backbone"], model.tracker
        mode = {"tracker_mode": "interactive"} if is_3_1 else {"need_tracker": True}
        fine, middle, image = vision(2 * pixels - 1, **mode)[2][:3]
        image = image + (tracker.interactivity_no_mem_embed if is_3_1 else tracker.no_mem_embed).view(1, -1, 1, 1)
        decoder = tracker.interactive_sam_mask_decoder if is_3_1 else tracker.sam_mask_decoder
        prompts = tracker.interactive_sam_prompt_encoder if is_3_1 else tracker.sam_prompt_encoder
        expected = {
            "pixels": pixels,
            "image": image,
            "high_res_0": decoder.conv_s0(fine),
            "high_res_1": decoder.conv_s1(middle),
        }
        padding = torch.zeros(1, 1, 2), -torch.ones(1, 1)
        for name, points, box in (("point", tuple(POINT.values()), None), ("box", padding, BOX)):
            sparse, dense = prompts(points=points, boxes=box)
            logits, scores = decoder(image, prompts.get_dense_pe(), sparse, dense, [fine, middle], multimask_output=True)
            expected |= {f"{name} logits": logits, f"{name} scores": scores.sigmoid()}  # ComfyUI only compares them
        expected["shared"] = shared_with(model, pixels)
        expected["segmented"] = model.forward_segment(2 * pixels - 1, point_inputs=POINT)
        torch.save(expected, FOLDER / f"{version}_expected.pt")


if __name__ == "__main__":
    main()
