"""Part `decoder`: prompts on one image, from 1 to 1,024 of them."""

import statistics

import torch
from harness import Plot, Report, Table, interleaved, ratio, sam, transformers_sam
from samkit.sam.models.sam import decoder_plan

PROMPTS = (1, 4, 16, 64, 256, 1024)
OTHERS_UP_TO = 256  # prompts: beyond, their time only grows in proportion, and takes minutes
STOCK_UP_TO = 64  # prompts that stock code decodes at once: SamAutomaticMaskGenerator's points_per_batch
CANDIDATES = slice(1, None)


@torch.no_grad()
def measure(models: list[str], device: torch.device) -> Report:
    """Ours, segment_anything's and transformers': three candidates for each of n clicks (all models share the decoder)."""
    report = Report("decoder")
    stock, theirs = sam(models[0]).to(device), transformers_sam(models[0]).to(device)
    head = ["prompts", "segment_anything", "transformers (sdpa)", "ours", "over segment_anything", "over transformers"]
    table = Table("Mask decoder, single clicks, three candidates each", [*head, "largest difference"])
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in ("segment_anything", "transformers", "ours")}
    for count in PROMPTS:
        table.rows.append(_compare(stock, theirs, count, device, curves, report))
    table.note = f"More than {STOCK_UP_TO} prompts go through the others in batches of {STOCK_UP_TO}."
    report.tables.append(table)
    report.plots.append(Plot("prompts", "Mask decoder", "prompts", "seconds", curves))
    return report


def _compare(
    stock: torch.nn.Module,
    theirs: torch.nn.Module,
    count: int,
    device: torch.device,
    curves: dict[str, list[tuple[float, float]]],
    report: Report,
) -> list[str]:
    features = torch.randn(1, 256, 64, 64, device=device)
    place = stock.prompt_encoder.get_dense_pe()
    points = torch.rand(count, 1, 2, device=device) * 1024, torch.ones(count, 1, device=device)
    sparse, dense = stock.prompt_encoder(points=points, boxes=None, masks=None)
    fast = decoder_plan(stock.mask_decoder, stock.prompt_encoder, device)
    shared = fast.share(features[0])

    def by_segment_anything() -> torch.Tensor:
        parts = zip(sparse.split(STOCK_UP_TO), dense.split(STOCK_UP_TO), strict=True)
        return torch.cat([stock.mask_decoder(features, place, *part, multimask_output=True)[0] for part in parts])

    def by_transformers() -> None:
        for part in sparse.split(STOCK_UP_TO):
            theirs.mask_decoder(
                image_embeddings=features,
                image_positional_embeddings=place,
                sparse_prompt_embeddings=part[None],
                dense_prompt_embeddings=dense[:1],
                multimask_output=True,
            )

    candidates = {
        "segment_anything": by_segment_anything,
        "transformers": by_transformers,
        "ours": lambda: fast(shared, sparse, None, CANDIDATES),
    }
    if count > OTHERS_UP_TO:
        (own,) = interleaved({"ours": candidates["ours"]}, device, 1)["ours"]
        curves["ours"].append((count, own))
        report.numbers[str(count)] = {"seconds": {"ours": own}}
        return [str(count), "", "", f"{1000 * own:.1f} ms", "", "", ""]
    error = float((candidates["ours"]()[0][:64] - by_segment_anything()[:64]).abs().max())
    rounds, warm_up = (15, 1) if count < 16 else (3, 1) if count < OTHERS_UP_TO else (1, 0)
    seconds = interleaved(candidates, device, rounds, warm_up)
    median = {key: statistics.median(values) for key, values in seconds.items()}
    ratios = {key: ratio(seconds[key], seconds["ours"]) for key in ("segment_anything", "transformers")}
    for key, value in median.items():
        curves[key].append((count, value))
    report.numbers[str(count)] = {"seconds": median, "ratios": ratios, "max_abs_error": error}
    line = [str(count), *(f"{1000 * value:.1f} ms" for value in median.values())]
    return [*line, *(f"**{value:.2f}x**" for value in ratios.values()), f"{error:.1e}"]
