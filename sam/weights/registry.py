"""Known checkpoints, as data: what the loader lists before a file is there, and how its arrival is verified."""

from dataclasses import dataclass
from pathlib import Path

_BUNDLED_FOLDER = Path(__file__).resolve().parent / "bundled"
_META = "https://dl.fbaipublicfiles.com/segment_anything/"


@dataclass(frozen=True)
class KnownCheckpoint:
    """A published checkpoint.

    Attributes:
        name: file name, the loader's value before and after the download.
        repo_id, filename: where the Hugging Face hub has it.
        url: the publisher's own address, the second source.
        size: bytes.
        sha256: of the whole file, in hex.
    """

    name: str
    repo_id: str
    filename: str
    url: str
    size: int
    sha256: str


def _meta(name: str, size: int, sha256: str) -> KnownCheckpoint:
    return KnownCheckpoint(name, "ybelkada/segment-anything", f"checkpoints/{name}", _META + name, size, sha256)


KNOWN: dict[str, KnownCheckpoint] = {
    known.name: known
    for known in (
        _meta("sam_vit_b_01ec64.pth", 375_042_383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
        _meta("sam_vit_l_0b3195.pth", 1_249_524_607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
        _meta("sam_vit_h_4b8939.pth", 2_564_550_879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    )
}

BUNDLED: dict[str, Path] = {"samkit_demo.safetensors": _BUNDLED_FOLDER / "samkit_demo.safetensors"}
"""Checkpoints that ship in the pack, by the name that the loader lists."""
