"""The GPU's path without a GPU: what torch's kernels take, devices under fake tensors, precision, memory, transfers."""

import contextlib
import copy
import gc
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import as_image, make_image
from fakes import FakeComfyUI, install
from reference import content_id
from samkit.sam import encode, load_model, stay_loaded
from samkit.sam.errors import BusyError
from samkit.sam.geometry import Geometry
from samkit.sam.kernels import self_test
from samkit.sam.kernels.attention import attend_in_pieces, attend_with_bias, position_table
from samkit.sam.kernels.decoder import Guidance
from samkit.sam.kernels.encoder import FastEncoder, lowered_weights, plan_for, tokens_at_a_time
from samkit.sam.kernels.linear import AtenLinear
from samkit.sam.kernels.upsample import resize_logits
from samkit.sam.models import sam as sam_module
from samkit.sam.models.base import Wanted
from samkit.sam.models.features import IMAGE, Features
from samkit.sam.models.hq import HQMaskDecoder
from samkit.sam.models.sam import run_encoder
from samkit.sam.models.tiny_vit import Stage, TinyViT
from samkit.sam.placement import devices, transfer
from samkit.sam.placement.devices import placed
from samkit.sam.placement.host import PlainHost
from samkit.sam.placement.memory import fitting, in_batches
from samkit.sam.placement.precision import encoder_dtype
from samkit.sam.placement.resident import Resident, resident_of
from samkit.sam.prompts import PromptTensors
from samkit.sam.store.weights import original_of, state_of
from samkit.sam.tasks import embed
from samkit.sam.tasks.predict import ImagePredictor, PredictOptions, features_of
from samkit.utils.comfy import quietly
from segment_anything.modeling import TwoWayTransformer
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn import functional as F

META, CUDA = torch.device("meta"), torch.device("cuda", 0)
FLASH_ON_CPU = 1  # torch's SDPBackend.FLASH_ATTENTION; MATH, which writes out all scores, is 0


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    fake = install(monkeypatch, FakeComfyUI(tmp_path))
    fake.device = META
    return fake


class TestAttention:
    """What `scaled_dot_product_attention` gets."""

    @pytest.mark.parametrize("size", [8, 14, 16], ids=["ViT", "SlimSAM-77", "SlimSAM-50"])
    @pytest.mark.parametrize("side", [14, 16], ids=["a window", "everywhere"])
    def test_torch_may_use_a_fused_kernel_on_it(self, monkeypatch, size, side):
        """torch itself is asked, on the CPU: it wants the same four dimensions there as on CUDA."""
        calls = []

        def seen(q, k, v, bias, **rest):
            calls.append((q, k, v, bias))
            return real(q, k, v, bias, **rest)

        real = F.scaled_dot_product_attention
        monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
        numbers = torch.Generator().manual_seed(0)
        q, k, v = torch.randn(3, 4, side**2, size, generator=numbers)
        table = position_table(*torch.randn(2, 2 * side - 1, size, generator=numbers))
        ours, expected = torch.empty_like(q), torch.empty_like(q)
        attend_with_bias(q, k, v, table, side, ours)
        attend_in_pieces(q, k, v, table, side, expected)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
        assert calls
        for given in calls:
            assert torch._fused_sdp_choice(*given) == FLASH_ON_CPU
            check_cuda_takes(*given)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="torch answers this only where there is a GPU")
    def test_cuda_takes_the_memory_efficient_kernel(self, monkeypatch):
        calls, real = [], F.scaled_dot_product_attention
        monkeypatch.setattr(
            F, "scaled_dot_product_attention", lambda *given, **rest: calls.append(given) or real(*given, **rest)
        )
        q = torch.randn(4, 196, 64, device="cuda", dtype=torch.float16)
        attend_with_bias(q, q, q, torch.randn(64, 54, device="cuda", dtype=torch.float16), 14, torch.empty_like(q))
        wanted = torch.backends.cuda.SDPAParams(*calls[0], 0.0, False, False)
        assert torch.backends.cuda.can_use_efficient_attention(wanted, True)


def check_cuda_takes(q, k, v, bias):
    """The rules of aten/native/transformers/cuda/sdp_utils.cpp for the kernel that takes a mask, in fp16."""
    assert q.ndim == k.ndim == v.ndim == bias.ndim == 4 and q.shape[:2] == bias.shape[:2]
    assert all(x.shape[-1] % 8 == 0 and x.stride(-1) == 1 for x in (q, k, v))
    assert bias.stride(-1) == 1 and all(stride % 8 == 0 for stride in bias.stride()[:-1]), "torch copies any other mask"


class TestLoweredWeights:
    """The encoder's weights on a GPU are in the type that it computes in; the model's own stay as they are."""

    @pytest.fixture
    def half(self, tiny_model):
        """A resident in bf16 on "another" CPU: real arithmetic with what a GPU would have."""
        tiny_model.precision = "bf16"
        resident = Resident(tiny_model)
        resident.dtype = torch.bfloat16
        resident.load(torch.device("cpu", 0))
        return resident

    def test_most_of_the_encoder_is_in_half_the_bytes(self, tiny_model, half):
        own = {id(tensor) for tensor in lowered_weights(tiny_model.image_encoder)}
        encoder = sum(p.numel() for p in tiny_model.image_encoder.parameters())
        lowered = sum(p.numel() for p in tiny_model.image_encoder.parameters() if id(p) in own)
        assert lowered > 0.6 * encoder, "at ViT-H's size it is 98 %"
        everything = [*tiny_model.parameters(), *tiny_model.buffers()]
        assert half.nbytes == sum(t.numel() * (2 if id(t) in own else 4) for t in everything)
        with half.in_place():
            types = {name: p.dtype for name, p in tiny_model.named_parameters()}
        assert {n for n, dtype in types.items() if dtype == torch.bfloat16} == {
            n for n, p in tiny_model.named_parameters() if id(p) in own
        }
        assert not any(n.startswith(("mask_decoder", "prompt_encoder")) for n, d in types.items() if d != torch.float32)

    def test_the_result_is_that_of_casting_at_every_use(self, tiny_model, half):
        images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
        expected, _ = FastEncoder(tiny_model.image_encoder, torch.bfloat16, AtenLinear, attend_in_pieces)(images)
        with half.in_place():
            ours, _ = FastEncoder(tiny_model.image_encoder, torch.bfloat16, AtenLinear, attend_in_pieces)(images)
        assert torch.equal(ours, expected)

    def test_identity_and_state_stay_in_the_body_and_after(self, tiny_model, half):
        identity, state = content_id(tiny_model), state_of(tiny_model)
        tensors = list(map(id, tiny_model.parameters()))
        with half.in_place():
            assert content_id(tiny_model) == identity and state_of(tiny_model) == state
            fresh = copy.copy(tiny_model)  # hashed anew, not from the cache
            assert next(tiny_model.image_encoder.blocks.parameters()) is next(fresh.image_encoder.blocks.parameters())
            assert load_from_state(tiny_model) == identity
        assert list(map(id, tiny_model.parameters())) == tensors and content_id(tiny_model) == identity
        assert {p.dtype for p in tiny_model.parameters()} == {torch.float32}

    def test_what_is_changed_on_the_device_is_changed_in_the_models_own(self, tiny_model, half):
        token = tiny_model.mask_decoder.iou_token.weight
        before, identity = token.detach().clone(), content_id(tiny_model)
        # The decoder's tensors are as they are on a CPU; one is made a copy here, as on a GPU.
        half._copies[id(token)] = half._copies[id(token)]._replace(tensor=torch.nn.Parameter(token.detach().clone(), False))
        half._copies[id(token)] = half._copies[id(token)]._replace(version=half._copies[id(token)].tensor._version)
        with half.in_place(), torch.no_grad():
            tiny_model.mask_decoder.iou_token.weight.add_(1)
        torch.testing.assert_close(token, before + 1)
        assert tiny_model.mask_decoder.iou_token.weight is token and content_id(tiny_model) != identity

    def test_linear_layers_on_a_gpu_are_cast_once(self):
        layer = AtenLinear(torch.empty(4, 8, device="meta"), torch.empty(4, device="meta"), torch.float16)
        assert layer.weight.dtype == layer.bias.dtype == torch.float16

    def test_pieces_are_sized_for_the_device(self):
        on_cpu, on_gpu = torch.empty(8 * 4096, 24), torch.empty(8 * 4096, 24, device="meta")
        assert tokens_at_a_time(on_cpu, 96, torch.float16) == 1024
        assert tokens_at_a_time(on_gpu, 96, torch.float16) == 8 * 4096, "a GPU would idle between pieces"
        assert tokens_at_a_time(on_gpu, 5120, torch.float16) * 5120 * 2 <= 256 << 20


def load_from_state(model):
    """The identity of the model, without the cache of hashes."""
    from samkit.sam.store.identity import Identities

    parts = {"image_encoder": model.image_encoder}, {"prompt_encoder": model.prompt_encoder, "mask_decoder": model.mask_decoder}
    return "-".join(Identities().of(next(iter(part.values())), part, "the model") for part in parts)


class TestResident:
    """Copies come and go; the model's own weights stay where they are."""

    def test_another_packs_cpu_is_no_harm(self, comfy, tiny_model):
        with placed(tiny_model, "AUTO"):
            key = id(original_of(tiny_model.mask_decoder.iou_token.weight))
        resident = resident_of(tiny_model)
        resident._copies[key] = resident._copies[key]._replace(tensor=torch.zeros(1, 32))  # what `.cpu()` leaves of it
        assert not resident_of(tiny_model).is_loaded(META)
        with placed(tiny_model, "AUTO") as device:
            assert device == META and all(p.is_meta for p in tiny_model.parameters())

    def test_changed_weights_and_another_precision_are_loaded_anew(self, comfy, tiny_model):
        with placed(tiny_model, "AUTO"):
            first = tiny_model.image_encoder.neck[0].weight
        with placed(tiny_model, "AUTO"):
            assert tiny_model.image_encoder.neck[0].weight is first
        with torch.no_grad():
            tiny_model.image_encoder.neck[0].weight.mul_(2)
        with placed(tiny_model, "AUTO"):
            second = tiny_model.image_encoder.neck[0].weight
            assert second is not first and second.dtype == torch.float32
        tiny_model.precision = "fp16"
        with placed(tiny_model, "AUTO"):
            assert tiny_model.image_encoder.neck[0].weight.dtype == torch.float16
        assert len(comfy.loaded) == 1

    def test_copies_made_in_inference_mode_are_no_inference_tensors(self, comfy, tiny_model):
        identity = content_id(tiny_model)
        with torch.inference_mode(), placed(tiny_model, "AUTO"):
            assert not any(p.is_inference() for p in [*tiny_model.parameters(), *tiny_model.buffers()])
        comfy.loaded[0].model.model.to(torch.device("cpu"))
        assert not any(p.is_inference() for p in tiny_model.parameters()) and content_id(tiny_model) == identity

    def test_unloading_frees_copies_and_plans_while_a_body_runs_on(self, comfy, tiny_model):
        """ComfyUI may evict in one thread what a preview uses in another: the body ends with what it began with."""
        with placed(tiny_model, "AUTO"):
            plan = weakref.ref(plan_for(tiny_model.image_encoder, META, torch.float32))
            copies = weakref.ref(tiny_model.image_encoder.neck[0].weight)
            evict = threading.Thread(target=comfy.loaded[0].model.model.to, args=(torch.device("cpu"),))
            evict.start()
            evict.join()
            assert tiny_model.image_encoder.neck[0].weight.is_meta
            plan_for(tiny_model.image_encoder, META, torch.float32)
        gc.collect()
        assert plan() is None and copies() is None, "nothing of it stays on the GPU"
        assert tiny_model.pixel_mean.is_cpu

    def test_unloading_between_runs_frees_copies_and_plans(self, comfy, tiny_model):
        with placed(tiny_model, "AUTO"):
            plan = weakref.ref(plan_for(tiny_model.image_encoder, META, torch.float32))
            copies = weakref.ref(tiny_model.image_encoder.neck[0].weight)
        assert plan() is not None and copies() is not None
        comfy.loaded[0].model.model.to(torch.device("cpu"))  # "Unload Models"
        gc.collect()
        assert plan() is None and copies() is None

    def test_a_model_that_goes_takes_all_with_it_at_once(self, comfy, tmp_path, tiny_sam):
        torch.save(tiny_sam.state_dict(), tmp_path / "one.pth")
        model = load_model(tmp_path / "one.pth")
        with placed(model, "AUTO"):
            plan_for(model.image_encoder, META, torch.float32)
        gone = [weakref.ref(part) for part in (model, resident_of(model), resident_of(model).patcher.model)]
        comfy.loaded.clear()  # ComfyUI's own list has weak references only
        gc.disable()
        try:
            del model
            assert [ref() for ref in gone] == [None] * 3, "a cycle keeps it"
        finally:
            gc.enable()

    def test_novram_loads_by_hand_where_it_fits(self, comfy, tiny_model):
        comfy.leaves_on_cpu = True
        with placed(tiny_model, "AUTO") as device:
            assert device == META and tiny_model.pixel_mean.is_meta

    def test_novram_without_room_runs_on_the_cpu_with_one_warning(self, comfy, tiny_model, caplog, monkeypatch):
        monkeypatch.setattr("samkit.sam.placement.host._COMFYUI._has_warned", False)
        comfy.leaves_on_cpu, comfy.free_bytes = True, 1000
        for _ in range(2):
            image = as_image(make_image(60, 80))
            embed.cache.clear()
            assert np.isfinite(encode(tiny_model, image)).all()
        assert [record.levelname for record in caplog.records if "runs on the CPU" in record.message] == ["WARNING"]

    def test_a_preview_never_loads_while_a_run_is_on(self, comfy, tiny_model):
        comfy.running[1] = "a prompt"
        with quietly(), pytest.raises(BusyError, match="running a prompt"), placed(tiny_model, "AUTO"):
            pass
        assert comfy.loaded == [] and not comfy.full_loads
        with placed(tiny_model, "AUTO"):
            assert comfy.full_loads == [True], "the run itself does"

    def test_the_preview_looks_again_after_waiting_for_its_turn(self, comfy, tiny_model):
        """Idle when it was asked; a run has begun when its turn comes."""
        refused, waiting = [], threading.Event()

        def preview():
            waiting.set()
            with quietly():
                try:
                    with placed(tiny_model, "AUTO"):
                        pass
                except BusyError as error:
                    refused.append(error)

        thread = threading.Thread(target=preview)
        with devices._turn:
            thread.start()
            assert waiting.wait(10)
            comfy.running[1] = "a prompt"
        thread.join(10)
        assert len(refused) == 1 and not comfy.full_loads

    def test_auto_outside_comfyui_keeps_it_for_a_batch_of_calls(self, tiny_model, monkeypatch):
        monkeypatch.setattr(PlainHost, "device", lambda self: META)
        with stay_loaded(tiny_model):
            with placed(tiny_model, "AUTO"):
                first = tiny_model.image_encoder.neck[0].weight
            with stay_loaded(tiny_model), placed(tiny_model, "AUTO"):
                assert tiny_model.image_encoder.neck[0].weight is first
            assert resident_of(tiny_model).device == META
        assert resident_of(tiny_model).device is None


class TestPrecision:
    """What `auto` means, by ComfyUI's own answers."""

    @pytest.mark.parametrize(
        ("device", "fp16", "bf16", "expected"),
        [
            ("cuda", True, True, torch.float16),
            ("cuda", False, True, torch.bfloat16),
            ("cuda", False, False, torch.float32),  # --force-fp32, or a GTX 1660
            ("mps", True, True, torch.float32),
            ("xpu", True, True, torch.float32),
            ("cpu", True, True, torch.float32),
        ],
    )
    def test_comfyui_is_asked(self, comfy, tiny_model, device, fp16, bf16, expected):
        tiny_model.precision = "auto"
        comfy.fp16, comfy.bf16 = fp16, bf16
        assert encoder_dtype(tiny_model, torch.device(device)) == expected

    @pytest.mark.parametrize(
        ("name", "capability", "expected"),
        [
            ("NVIDIA H200", (9, 0), torch.float16),
            ("NVIDIA GeForce GTX 1660 Ti", (7, 5), torch.float32),
            ("NVIDIA GeForce RTX 2060", (7, 5), torch.float16),
            ("NVIDIA GeForce GTX 1080", (6, 1), torch.float32),
        ],
    )
    def test_outside_comfyui_the_card_is(self, tiny_model, monkeypatch, name, capability, expected):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        tiny_model.precision = "auto"
        assert encoder_dtype(tiny_model, torch.device("cuda")) == expected
        tiny_model.precision = "fp32"
        assert encoder_dtype(tiny_model, torch.device("cuda")) == torch.float32


class TestSelfTest:
    """Other devices than CPUs and CUDA GPUs run the stock forward unless the fast one is right there."""

    @pytest.fixture(autouse=True)
    def afresh(self):
        self_test._passes.cache_clear()
        yield
        self_test._passes.cache_clear()

    def test_it_passes_where_the_arithmetic_is_right(self, monkeypatch):
        state = torch.random.get_rng_state()
        monkeypatch.setattr(self_test, "_KNOWN", ())
        assert self_test.encoder_works_on(torch.device("cpu")) and self_test.decoder_works_on(torch.device("cpu"))
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_a_wrong_view_or_an_absent_operator_fails(self, monkeypatch):
        assert not self_test.encoder_works_on(META) and not self_test.decoder_works_on(META)
        monkeypatch.setattr(self_test, "_KNOWN", ())
        monkeypatch.setattr(torch.Tensor, "as_strided", lambda self, shape, *_: self.new_zeros(shape))
        assert not self_test.encoder_works_on(torch.device("cpu"))

    def test_both_stock_forwards_run_then(self, tiny_model, monkeypatch):
        image = as_image(make_image(60, 80))
        expected = np.array(encode(tiny_model, image))
        embed.cache.clear()
        monkeypatch.setattr(self_test, "_KNOWN", ())
        monkeypatch.setattr(self_test, "_passes", lambda *_: False)
        stock = []
        tiny_model.image_encoder.register_forward_hook(lambda *_: stock.append("encoder"))
        np.testing.assert_allclose(encode(tiny_model, image), expected, atol=1e-4)
        assert stock == ["encoder"]


class OutOfMemoryError(RuntimeError):
    """What torch raises, in its words."""

    def __init__(self):
        super().__init__("CUDA out of memory. Tried to allocate 2.00 GiB.")


class TestMemory:
    """How many at a time, and half of them after an error."""

    def test_batches_halve_down_to_one(self, comfy):
        sizes = []

        def run(some):
            sizes.append(len(some))
            if len(some) > 2:
                raise OutOfMemoryError
            return list(some)

        assert [item for part in in_batches(range(9), 8, run) for item in part] == list(range(9))
        assert sizes == [8, 4, 2, 2, 2, 2, 1]

    def test_one_that_does_not_fit_is_torchs_own_error(self, comfy):
        def run(some):
            raise OutOfMemoryError

        with pytest.raises(OutOfMemoryError):
            list(in_batches(range(4), 4, run))

        def wrong(some):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        with pytest.raises(RuntimeError, match="mat1"):
            list(in_batches(range(4), 4, wrong))

    def test_the_tensors_of_a_failed_attempt_are_gone_before_the_next(self, comfy):
        kept = []

        def run(some):
            tensor = torch.empty(3)
            assert all(ref() is None for ref in kept), "the error's traceback holds what did not fit"
            kept.append(weakref.ref(tensor))
            if len(some) > 1:
                raise OutOfMemoryError
            return True

        assert all(in_batches(range(4), 4, run)) and len(kept) == 6

    @pytest.mark.parametrize(("free", "expected"), [(64 << 30, 8), (5 << 30, 3), (100, 1)])
    def test_as_many_as_fit(self, comfy, free, expected):
        comfy.free_bytes = free
        assert fitting(META, 1 << 30, 8, 1 << 30) == expected
        assert fitting(torch.device("cpu"), 1 << 30, 8) == 8

    def test_prompts_that_do_not_fit_together_are_decoded_in_parts(self, tiny_model, monkeypatch):
        embedding = encode(tiny_model, [make_image(60, 80)])
        image = ImagePredictor(tiny_model, features_of(embedding, 0, torch.device("cpu")), (60, 80), PredictOptions())
        from samkit.sam import Prompt

        label = np.ones(1, np.int32)
        prompts = [Prompt(np.array([[x, 30.0]]), label) for x in range(5, 75, 10)]
        expected, sizes = image.decode(prompts, Wanted(True, 0.2)), []
        real = type(tiny_model).decode

        def short(self, features, given, wanted):
            sizes.append(len(given.points[0]))
            if sizes[-1] > 3:
                raise OutOfMemoryError
            return real(self, features, given, wanted)

        monkeypatch.setattr(type(tiny_model), "decode", short)
        parts = image.decode(prompts, Wanted(True, 0.2))
        assert sizes == [7, 3, 3, 1] and len(expected.rows)
        assert torch.equal(parts.rows, expected.rows)
        torch.testing.assert_close(parts.logits, expected.logits, atol=1e-4, rtol=0)


class FakeEncoder:
    """A segmenter of another family; what its GPU computes is marked by when it was begun."""

    family, precision, mask_threshold = "fake", "auto", 0.0
    map_shapes = {IMAGE: (2, 4, 4)}
    encoder_identity, decoder_identity = "e", "d"

    def __init__(self):
        self.network, self.log, self.most = torch.nn.Linear(1, 1), [], 99

    def geometry(self, original):
        return Geometry(original, original, 128, (16, 16), True)

    def working_bytes(self, dtype):
        return 0, 1 << 30

    def features(self, pixels, dtype):
        if len(pixels) > self.most:
            self.log.append(f"no room for {len(pixels)}")
            raise OutOfMemoryError
        self.log.append(f"begin {len(pixels)}")
        return {IMAGE: torch.ones(len(pixels), 2, 4, 4)}

    def decode(self, features, prompts, wanted):
        raise NotImplementedError


class TestEncoding:
    """Batches on a GPU: the copy of one is under way before the next begins, and only it is waited for."""

    @pytest.fixture
    def downloads(self, monkeypatch):
        class Logged(transfer.Download):
            log = None

            def __init__(self, tensors):
                super().__init__(tensors)
                self.count = len(tensors[IMAGE])
                self.log.append(f"copy {self.count}")

            def arrays(self):
                self.log.append(f"wait {self.count}")
                return super().arrays()

        monkeypatch.setattr(embed, "Download", Logged)
        return Logged

    def test_a_batch_is_copied_before_the_next_begins_and_read_while_it_runs(self, comfy, downloads):
        comfy.free_bytes, model = 4 << 30, FakeEncoder()
        downloads.log = model.log
        encode(model, as_image(*(make_image(20, 20, seed) for seed in range(8))))
        assert model.log == ["begin 3", "copy 3", "begin 3", "copy 3", "wait 3", "begin 2", "copy 2", "wait 3", "wait 2"]
        assert comfy.memory_required == [8 << 30]

    def test_a_batch_that_does_not_fit_is_halved(self, comfy, downloads):
        comfy.free_bytes, model = 64 << 30, FakeEncoder()
        model.most, downloads.log = 2, model.log
        assert len(encode(model, as_image(*(make_image(20, 20, seed) for seed in range(5))))) == 5
        begun = [line for line in model.log if line[:4] in ("begi", "no r")]
        assert begun == ["no room for 5", "begin 2", "begin 2", "begin 1"]

    def test_a_single_image_that_does_not_fit_is_torchs_error(self, comfy):
        model = FakeEncoder()
        model.most = 0
        with pytest.raises(OutOfMemoryError):
            encode(model, as_image(make_image(20, 20)))

    def test_an_entry_of_the_cache_does_not_hold_its_batch(self, comfy):
        model = FakeEncoder()
        encode(model, as_image(*(make_image(20, 20, seed) for seed in range(4))))
        entries = [value for value, _, _ in embed.cache._values.values()]
        assert len(entries) == 4
        for entry in entries:
            values = entry.maps[IMAGE]
            assert values.base is None and values.flags.owndata and not values.flags.writeable

    def test_only_pinned_memory_is_copied_without_waiting(self, monkeypatch):
        calls = []

        class Pinned:
            def to(self, device, non_blocking=False):
                calls.append((str(device), non_blocking))

        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: Pinned())
        transfer.upload(np.zeros((2, 2), np.uint8), torch.device("cuda"))
        assert calls == [("cuda", True)]
        real = torch.Tensor.to
        monkeypatch.setattr(
            torch.Tensor, "to", lambda self, device, **rest: calls.append((str(device), rest)) or real(self, META)
        )
        for name in ("mps", "xpu", "cpu"):
            transfer.upload(np.zeros((2, 2), np.uint8), torch.device(name))
        assert calls[1:] == [("mps", {}), ("xpu", {}), ("cpu", {})]

    def test_on_cuda_the_copy_is_begun_at_once_and_its_own_event_waited_for(self, monkeypatch):
        log = []

        class Event:
            def record(self):
                log.append("record")

            def synchronize(self):
                log.append("synchronize")

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(transfer, "_to_pinned", lambda part: log.append("copy") or torch.zeros(1, 2))
        part = SimpleNamespace(device=torch.device("cuda"), contiguous=lambda: part)
        download = transfer.Download({IMAGE: part})
        assert log == ["copy", "record"]
        assert download.arrays()[IMAGE].shape == (1, 2) and log == ["copy", "record", "synchronize"]


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 5), reason="fake tensors of torch 2.4 ask CUDA for its driver"
)
class TestFakeCuda:
    """The whole path on fake tensors on `cuda`: shapes and devices are computed, values are not, and mixtures are refused."""

    @pytest.fixture(autouse=True)
    def no_samples(self, monkeypatch):
        """Weights have no values to sample or to hash here."""
        monkeypatch.setattr(sam_module._identities, "of", lambda *_: "identity")
        monkeypatch.setattr("samkit.sam.store.weights._views", lambda tensors: None)
        monkeypatch.setattr("samkit.sam.store.weights._sample", lambda tensors, views: b"")

    @pytest.fixture
    def mode(self, tiny_model):
        with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True) as mode:
            yield mode

    @staticmethod
    @contextlib.contextmanager
    def on_cuda(network, dtype=torch.float32):
        """The network's weights as a GPU has them, by the runtime's own way there."""
        resident = Resident(network)
        resident.dtype = dtype
        resident.load(CUDA)
        with resident.in_place():
            assert {tensor.device.type for tensor in [*network.parameters(), *network.buffers()]} == {"cuda"}
            yield network

    def test_a_mixture_is_refused(self, mode):
        with pytest.raises(RuntimeError, match="device"):
            torch.empty(2, 2, device="cuda") @ torch.empty(2, 2, device="cpu")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_the_encoder(self, tiny_model, mode, dtype):
        tiny_model.precision = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
        with self.on_cuda(tiny_model, dtype), torch.no_grad():
            maps = tiny_model.features(torch.empty(2, 3, 96, 128, dtype=torch.uint8, device="cuda"), dtype)
        assert maps[IMAGE].shape == (2, 32, 8, 8) and maps[IMAGE].dtype == torch.float32
        assert {values.device.type for values in maps.values()} == {"cuda"}

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_tiny_vit(self, mode, dtype):
        stages = (Stage(8, 1, 0, 0, 2), Stage(8, 1, 2, 4, 2), Stage(16, 1, 2, 4, 1), Stage(16, 1, 2, 4, 0))
        with mode_off():
            encoder = TinyViT(64, stages, 4.0, 4.0, 16).requires_grad_(False)
        with self.on_cuda(encoder, dtype):
            values, early = run_encoder(encoder, torch.empty(2, 3, 64, 64, device="cuda"), dtype, True)
        assert values.device.type == early.device.type == "cuda" and values.dtype == torch.float32

    @pytest.mark.parametrize("hq", [False, True], ids=["SAM", "SAM-HQ"])
    @pytest.mark.parametrize("guided", [False, True], ids=["", "PerSAM"])
    def test_prompts_decoder_and_upsampling(self, tiny_model, hq, guided, monkeypatch):
        model = with_hq(tiny_model) if hq else tiny_model
        frame = model.geometry((60, 80))
        with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True), self.on_cuda(model), torch.no_grad():
            maps = model.features(torch.empty(1, 3, 96, 128, dtype=torch.uint8, device="cuda"), torch.float32)
            # Fake tensors have no values that could be checked.
            features = Features({name: values[0] for name, values in maps.items()}, "k", CUDA, is_finite=True)
            points = torch.empty(3, 2, 2, device="cuda"), torch.ones(3, 2, dtype=torch.int32, device="cuda")
            boxes, masks = torch.empty(3, 4, device="cuda"), torch.empty(3, 1, 32, 32, device="cuda")
            guidance = Guidance(torch.empty(1, 64, device="cuda"), torch.empty(1, 32, device="cuda")) if guided else None
            every = (points, None, None), (None, boxes, None), (points, boxes, masks)
            for given in (PromptTensors(*parts) for parts in every):
                decoded = model.decode(features, given, Wanted(True, hq=hq, guidance=guidance))
                assert decoded.logits.shape == (3, 3, 32, 32)
                assert {part.device.type for part in decoded} == {"cuda"}
            assert resize_logits(decoded.logits[:, 0], frame).device.type == "cuda"


def with_hq(model):
    """The model with a SAM-HQ mask decoder of random weights."""
    decoder = HQMaskDecoder(
        vit_dim=32,
        transformer_dim=32,
        transformer=TwoWayTransformer(depth=2, embedding_dim=32, num_heads=8, mlp_dim=64),
        num_multimask_outputs=3,
    )
    model.mask_decoder = decoder.eval().requires_grad_(False)
    return model


@contextlib.contextmanager
def mode_off():
    """Real tensors for a while, under FakeTensorMode."""
    with unset_fake_temporarily():
        yield
