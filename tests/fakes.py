"""Small fakes of ComfyUI's modules, as far as the pack touches them; installed by fixtures, gone after the test."""

import os
import sys
import types
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageSequence

IMAGE_ENDINGS = {".png", ".gif", ".jpg", ".webp"}


class Interrupted(Exception):
    """ComfyUI's InterruptProcessingException."""


class FakeComfyUI:
    """What a running ComfyUI would show: its folders, its progress bars, its loaded models, its queue."""

    def __init__(self, root):
        self.root = Path(root)
        self.bars = []
        self.interrupted_after = None
        self.cancelled = False
        self.device = torch.device("cpu")
        self.loaded = []
        self.full_loads, self.memory_required = [], []
        self.free_bytes = 8 << 30
        self.leaves_on_cpu = False  # as with --novram
        self.fp16, self.bf16 = True, True
        self.folder_names_and_paths = {"checkpoints": ([str(self.root / "models" / "checkpoints")], {".ckpt", ".safetensors"})}
        self.running = {}
        self.images_loaded = []

    def modules(self):
        return {
            "folder_paths": self._folder_paths(),
            "comfy": types.ModuleType("comfy"),
            "comfy.utils": self._module("comfy.utils", ProgressBar=self._progress_bar()),
            "comfy.model_patcher": self._module("comfy.model_patcher", ModelPatcher=FakePatcher),
            "comfy.model_management": self._management(),
            "nodes": self._module("nodes", LoadImage=self._load_image()),
            "server": self._module("server", PromptServer=types.SimpleNamespace(instance=self._server())),
        }

    def _server(self):
        return types.SimpleNamespace(prompt_queue=types.SimpleNamespace(currently_running=self.running))

    def _load_image(self):
        root, loaded = self.root, self.images_loaded

        class LoadImage:
            """ComfyUI's, for the names "file [folder]"."""

            def load_image(self, image):
                loaded.append(image)
                name, kind = image.removesuffix("]").rsplit(" [", 1)
                frames = [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(root / kind / name))]
                return torch.from_numpy(np.stack(frames)).float() / 255, torch.zeros(len(frames), 64, 64)

        return LoadImage

    @staticmethod
    def _module(name, **contents):
        module = types.ModuleType(name)
        vars(module).update(contents)
        return module

    def _folder_paths(self):
        def add_model_folder_path(name, path, is_default=False):
            paths, _ = self.folder_names_and_paths.setdefault(name, ([], set()))
            if path not in paths:
                paths.append(path)

        def get_filename_list(name):
            paths, suffixes = self.folder_names_and_paths[name]
            files = [f.relative_to(p) for p in map(Path, paths) for f in sorted(p.rglob("*")) if f.suffix in suffixes]
            return [str(file) for file in files]

        def get_full_path(name, file):
            file = os.path.relpath(os.path.join("/", file), "/")  # noqa: PTH118  as ComfyUI does
            paths = [Path(folder) / file for folder in self.folder_names_and_paths[name][0]]
            return next((str(path) for path in paths if path.is_file()), None)

        def filter_files_content_types(files, content_types):
            return [file for file in files if content_types == ["image"] and Path(file).suffix.lower() in IMAGE_ENDINGS]

        return self._module(
            "folder_paths",
            filter_files_content_types=filter_files_content_types,
            get_directory_by_type=lambda kind: str(self.root / kind),
            get_temp_directory=lambda: str(self.root / "temp"),
            get_output_directory=lambda: str(self.root / "output"),
            get_save_image_path=self._save_image_path,
            models_dir=str(self.root / "models"),
            folder_names_and_paths=self.folder_names_and_paths,
            filename_list_cache={},
            add_model_folder_path=add_model_folder_path,
            get_filename_list=get_filename_list,
            get_full_path=get_full_path,
        )

    @staticmethod
    def _save_image_path(prefix, output, width=0, height=0):
        prefix = prefix.replace("%width%", str(width)).replace("%height%", str(height))
        folder, name = os.path.split(os.path.normpath(prefix))
        whole = Path(output) / folder
        if not whole.resolve().is_relative_to(Path(output).resolve()):
            raise ValueError("Saving image outside the output folder is not allowed.")
        whole.mkdir(parents=True, exist_ok=True)
        return str(whole), name, len(list(whole.glob(f"{name}_*"))) + 1, folder, prefix

    def _progress_bar(self):
        bars = self.bars

        class ProgressBar:
            def __init__(self, total):
                self.total, self.current = total, 0
                bars.append(self)

            def update(self, value):
                self.current += value

        return ProgressBar

    def _management(self):
        def load_models_gpu(patchers, memory_required=0, force_full_load=False):
            self.full_loads.append(force_full_load)
            self.memory_required.append(memory_required)
            for patcher in patchers:
                if not self.leaves_on_cpu:
                    patcher.patch_model(device_to=patcher.load_device)
                if not any(entry.model is patcher for entry in self.loaded):
                    self.loaded.append(types.SimpleNamespace(model=patcher))

        def free_memory(required, device, keep_loaded=()):
            for entry in [entry for entry in self.loaded if entry not in keep_loaded and entry.model.load_device == device]:
                entry.model.model.to(entry.model.offload_device)
                self.loaded.remove(entry)

        def throw_exception_if_processing_interrupted():
            if self.cancelled:
                raise Interrupted
            if self.interrupted_after is not None:
                self.interrupted_after -= 1
                if self.interrupted_after < 0:
                    raise Interrupted

        return self._module(
            "comfy.model_management",
            current_loaded_models=self.loaded,
            load_models_gpu=load_models_gpu,
            free_memory=free_memory,
            get_free_memory=lambda device: self.free_bytes,
            should_use_fp16=lambda device: self.fp16,
            should_use_bf16=lambda device: self.bf16,
            soft_empty_cache=lambda: None,
            get_torch_device=lambda: self.device,
            intermediate_device=lambda: torch.device("cpu"),
            processing_interrupted=lambda: self.cancelled,
            throw_exception_if_processing_interrupted=throw_exception_if_processing_interrupted,
        )


class FakePatcher:
    """comfy.model_patcher.ModelPatcher as the real one starts: it needs a model whose device can be assigned."""

    def __init__(self, model, load_device, offload_device):
        model.device = offload_device
        self.model, self.load_device, self.offload_device, self.size = model, load_device, offload_device, 0

    def patch_model(self, device_to):
        self.model.to(device_to)


def install(monkeypatch, fake):
    modules = fake.modules()
    for name in ("utils", "model_patcher", "model_management"):
        setattr(modules["comfy"], name, modules[f"comfy.{name}"])
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return fake
