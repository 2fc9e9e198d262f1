"""Known checkpoints, as data: what the loader lists before a file is there, and how its arrival is verified."""

from dataclasses import dataclass
from pathlib import Path

_BUNDLED_FOLDER = Path(__file__).resolve().parent / "bundled"
WEIGHTS = "model.safetensors"
_META = "https://dl.fbaipublicfiles.com/segment_anything/"
_META_2_1 = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"


@dataclass(frozen=True)
class RemoteFile:
    """One file: where it can be fetched, where it goes, and how its arrival is verified.

    Attributes:
        name: path inside a models folder such as `sams`, with `/`.
        repo_id, filename, revision: where the Hugging Face hub has it; revision None is the newest.
        url: the publisher's own address, the second source; None where the hub is the publisher's own.
        size: bytes; None where it is not known before.
        sha256: of the whole file, in hex; None where only the hub's own record has it.
        reported_sha256: what copies of the hub's pages say, where it could not be checked against the publisher; the file is
            verified by its size and by the hub's own record at download, not by this.
    """

    name: str
    repo_id: str
    filename: str
    revision: str | None = None
    url: str | None = None
    size: int | None = None
    sha256: str | None = None
    reported_sha256: str | None = None


@dataclass(frozen=True)
class KnownCheckpoint:
    """A published checkpoint.

    Attributes:
        file: where to get it; its name is the loader's value before and after the download.
        family: which model it is, for people.
        licence: of the weights.
    """

    file: RemoteFile
    family: str
    licence: str = "Apache-2.0"

    @property
    def name(self) -> str:
        """Path inside a `sams` folder."""
        return self.file.name

    @property
    def size(self) -> int | None:
        """Bytes; None where they are not known before."""
        return self.file.size


def _meta(name: str, family: str, size: int, sha256: str) -> KnownCheckpoint:
    file = RemoteFile(name, "ybelkada/segment-anything", f"checkpoints/{name}", url=_META + name, size=size, sha256=sha256)
    return KnownCheckpoint(file, family)


def _hub(repo_id: str, family: str, sha256: str | None = None) -> KnownCheckpoint:
    """A repository of transformers' form, named after itself: its file is `model.safetensors` as everyone's is."""
    return KnownCheckpoint(RemoteFile(repo_id.split("/")[1] + ".safetensors", repo_id, WEIGHTS, sha256=sha256), family)


def _hq(name: str, family: str) -> KnownCheckpoint:
    return KnownCheckpoint(RemoteFile(name, "lkeab/hq-sam", name), family)


def _meta_2_1(size_name: str, family: str, size: int, sha256: str) -> KnownCheckpoint:
    """Meta's own file; sizes and sums are those by which other projects verify downloads from Meta's address."""
    name = f"sam2.1_hiera_{size_name}.pt"
    repo_id = f"facebook/sam2.1-hiera-{size_name.replace('_', '-')}"
    return KnownCheckpoint(RemoteFile(name, repo_id, name, url=_META_2_1 + name, size=size, sha256=sha256), family)


def _kijai(name: str, family: str, size: int | None = None, reported: str | None = None) -> KnownCheckpoint:
    """Meta's tensors as safetensors; the file name that ComfyUI's SAM 2 packs use."""
    file = RemoteFile(name, "Kijai/sam2-safetensors", name, size=size, reported_sha256=reported)
    return KnownCheckpoint(file, family)


# fmt: off
KNOWN: dict[str, KnownCheckpoint] = {
    known.name: known
    for known in (
        _meta(
            "sam_vit_b_01ec64.pth", "SAM ViT-B", 375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        _meta(
            "sam_vit_l_0b3195.pth", "SAM ViT-L", 1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        _meta(
            "sam_vit_h_4b8939.pth", "SAM ViT-H", 2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        _hub("facebook/sam-vit-base", "SAM ViT-B"),
        _hub("facebook/sam-vit-large", "SAM ViT-L"),
        _hub("facebook/sam-vit-huge", "SAM ViT-H"),
        _hub("Zigeng/SlimSAM-uniform-50", "SlimSAM"),
        _hub(
            "Zigeng/SlimSAM-uniform-77", "SlimSAM",
            "b0ee221e3d33935807a820c157fec81a537b3b9979edc88b148a8dae8bbdd5d2",
        ),
        KnownCheckpoint(
            RemoteFile(
                "mobile_sam.pt", "dhkim2810/MobileSAM", "mobile_sam.pt",
                url="https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/master/weights/mobile_sam.pt", size=40_728_226,
                sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            ),
            "MobileSAM",
        ),
        _hq("sam_hq_vit_b.pth", "SAM-HQ ViT-B"),
        _hq("sam_hq_vit_l.pth", "SAM-HQ ViT-L"),
        _hq("sam_hq_vit_h.pth", "SAM-HQ ViT-H"),
        _hq("sam_hq_vit_tiny.pth", "Light HQ-SAM"),
        # The authors' EfficientSAM-S lies zipped in their git repository, which is nothing to download from here.
        KnownCheckpoint(RemoteFile("efficient_sam_vitt.pt", "merve/EfficientSAM", "efficient_sam_vitt.pt"), "EfficientSAM-Ti"),
        _hub("yonigozlan/EdgeTAM-hf", "EdgeTAM"),
        _hub("wanglab/medsam-vit-base", "MedSAM ViT-B"),
        _meta_2_1(
            "tiny", "SAM 2.1 tiny", 156_008_466,
            "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
        ),
        _meta_2_1(
            "small", "SAM 2.1 small", 184_416_285,
            "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
        ),
        _meta_2_1(
            "base_plus", "SAM 2.1 base+", 323_606_802,
            "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
        ),
        _meta_2_1(
            "large", "SAM 2.1 large", 898_083_611,
            "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
        ),
        _kijai("sam2.1_hiera_tiny.safetensors", "SAM 2.1 tiny"),
        _kijai("sam2.1_hiera_small.safetensors", "SAM 2.1 small"),
        _kijai("sam2.1_hiera_base_plus.safetensors", "SAM 2.1 base+"),
        _kijai(
            "sam2.1_hiera_large.safetensors", "SAM 2.1 large",
            reported="da2b64780d0226cf37773b88a050d6df64552971b4bf97a90d39728377309ebb",
        ),
        _kijai("sam2.1_hiera_tiny-fp16.safetensors", "SAM 2.1 tiny, half precision"),
        _kijai("sam2.1_hiera_small-fp16.safetensors", "SAM 2.1 small, half precision"),
        _kijai("sam2.1_hiera_base_plus-fp16.safetensors", "SAM 2.1 base+, half precision", size=161_773_292),
        _kijai(
            "sam2.1_hiera_large-fp16.safetensors", "SAM 2.1 large, half precision",
            reported="278af5296fcc153aa94645a4981e93fe8b7a936a9fa27dbd71e8c850df6d7038",
        ),
    )
}
# fmt: on

BUNDLED: dict[str, Path] = {"samkit_demo.safetensors": _BUNDLED_FOLDER / "samkit_demo.safetensors"}
"""Checkpoints that ship in the pack, by the name that the loader lists."""

# The names that other packs' loaders have for known models: a graph whose nodes were replaced has these values.
_VIT_B, _VIT_L, _VIT_H = "sam_vit_b_01ec64.pth", "sam_vit_l_0b3195.pth", "sam_vit_h_4b8939.pth"
SAM_ALIASES: dict[str, str] = {
    # storyicon's comfyui_segment_anything, ComfyUI-RMBG
    "sam_vit_h (2.56GB)": _VIT_H,
    "sam_vit_l (1.25GB)": _VIT_L,
    "sam_vit_b (375MB)": _VIT_B,
    "sam_hq_vit_h (2.57GB)": "sam_hq_vit_h.pth",
    "sam_hq_vit_l (1.25GB)": "sam_hq_vit_l.pth",
    "sam_hq_vit_b (379MB)": "sam_hq_vit_b.pth",
    "mobile_sam(39MB)": "mobile_sam.pt",
    # WAS Node Suite
    "ViT-H": _VIT_H,
    "ViT-L": _VIT_L,
    "ViT-B": _VIT_B,
}
GROUNDING_ALIASES: dict[str, str] = {
    "GroundingDINO_SwinT_OGC (694MB)": "grounding-dino-tiny",
    "GroundingDINO_SwinB (938MB)": "grounding-dino-base",
}

_SMALL_FILES = (
    "special_tokens_map.json", "vocab.txt", "tokenizer_config.json", "tokenizer.json", "preprocessor_config.json", "config.json"
)  # fmt: skip


@dataclass(frozen=True)
class KnownFolder:
    """A published model that is several files in a folder, as transformers has them.

    Attributes:
        name: of the folder, the loader's value before and after the download.
        repo_id, revision: where the hub has it, and which commit of it; None: the newest.
        size, sha256: of its weights, `model.safetensors`; git's own hash in the pinned commit vouches for the small files. None
            where they could not be checked against the publisher: then the hub's own record at download vouches for all.
        small: the names of its other files.
    """

    name: str
    repo_id: str
    revision: str | None = None
    size: int | None = None
    sha256: str | None = None
    small: tuple[str, ...] = _SMALL_FILES

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """The weights last, so that where they are, everything is."""
        small = [self._file(name) for name in self.small]
        return (*small, self._file(WEIGHTS, self.size, self.sha256))

    def _file(self, name: str, size: int | None = None, sha256: str | None = None) -> RemoteFile:
        return RemoteFile(f"{self.name}/{name}", self.repo_id, name, self.revision, size=size, sha256=sha256)


GROUNDING: dict[str, KnownFolder] = {
    known.name: known
    for known in (
        KnownFolder(
            "grounding-dino-tiny",
            "IDEA-Research/grounding-dino-tiny",
            "a2bb814dd30d776dcf7e30523b00659f4f141c71",
            689_359_096,
            "1a2412ef99bd74bcd3c2a246fa1e48581f8889a1300c9051974741314fc042f3",
        ),
        KnownFolder(
            "grounding-dino-base",
            "IDEA-Research/grounding-dino-base",
            "12bdfa3120f3e7ec7b434d90674b3396eccf88eb",
            933_400_872,
            "5548f844c928c4b6f411fa8cbcc2bfa8dbbba437cb1d513975519f93c2a9ed21",
        ),
    )
}

# Neither commit, size (about 103 MB) nor sum could be checked against the publisher.
MATTING: dict[str, KnownFolder] = {
    known.name: known
    for known in (
        KnownFolder(
            "vitmatte-small-composition-1k",
            "hustvl/vitmatte-small-composition-1k",
            small=("preprocessor_config.json", "config.json"),
        ),
    )
}
