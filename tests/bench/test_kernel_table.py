from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import samfast
from samfast.bench import kernel_table
from samfast.bench.kernel_table import CLASSES, OWN_KERNELS, classify
from tests.bench.test_trace_events import event
from tests.model.tiny import TINY, random_sam


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", "matmul"),
        ("void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm90<...>>", "matmul"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64", "matmul"),
        ("triton_tem_fused_addmm_gelu_3", "matmul"),
        ("sm80_xmma_fprop_implicit_gemm_bf16bf16", "matmul"),
        ("aten::addmm", "matmul"),
        ("aten::mkldnn_convolution", "matmul"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("_fwd_kernel_aligned", "attention"),
        ("_global_attention", "attention"),
        ("_window_attention", "attention"),
        ("aten::_softmax", "attention"),
        ("triton_poi_fused__scaled_dot_product_attention_add_1", "norm/elementwise"),
        ("triton_per_fused_add_native_layer_norm_2", "norm/elementwise"),
        ("_rows", "norm/elementwise"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>",
            "norm/elementwise",
        ),
        ("aten::native_layer_norm", "norm/elementwise"),
        ("aten::add_", "norm/elementwise"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        (
            "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>",
            "copies",
        ),
        ("aten::copy_", "copies"),
        ("Memset (Device)", "copies"),
        ("something new", "other"),
    ],
)
def test_classes(name, kind):
    assert classify(name) == kind


def test_the_kernels_named_here_exist():
    paths = list(Path(samfast.__file__).parent.rglob("kernels/*"))
    triton = "".join(path.read_text() for path in paths if path.suffix == ".py")
    cuda = "".join(path.read_text() for path in paths if path.suffix == ".cu")
    for name in OWN_KERNELS:
        assert f"def {name}(" in triton or f" {name}(\n" in cuda, name


TRACE = {
    "traceEvents": [
        event("kernel", "gemm", 100, 140),
        event("kernel", "flash", 130, 160),  # on another stream: they overlap for 10 microseconds
        event("kernel", "gemm", 200, 240),
        event("gpu_memcpy", "Memcpy DtoD", 240, 250),
        event("cuda_runtime", "cudaLaunchKernel", 0, 900),
        event("gpu_user_annotation", "encoder", 0, 900),
    ]
}


def test_a_gpu_s_table(monkeypatch):
    monkeypatch.setattr(kernel_table, "record", lambda run, device, host: (b"", TRACE))
    monkeypatch.setattr(kernel_table, "TOP", 1)
    table = kernel_table.kernel_table(lambda: None, torch.device("cuda"), calls=2)
    assert table["classes"]["matmul"] == {
        "ms": pytest.approx(0.04),
        "share": pytest.approx(80 / 120),
    }
    first, *rest = table["rows"]
    assert (first["name"], first["class"], first["calls"]) == ("gemm", "matmul", 1)
    assert [(row["name"], row["class"]) for row in rest] == [
        ("... (1 more)", "attention"),
        ("... (1 more)", "copies"),
    ]
    assert sum(row["share"] for row in table["rows"]) == pytest.approx(1)
    monkeypatch.setattr(
        kernel_table, "record", lambda run, device, host: (b"", {"traceEvents": []})
    )
    nothing = kernel_table.kernel_table(lambda: None, torch.device("cuda"))
    assert nothing["rows"] == []


def test_on_a_cpu_operations_are_listed():
    encoder = random_sam().image_encoder
    pixels = torch.zeros(1, 3, TINY.image_size, TINY.image_size)
    table = kernel_table.kernel_table(lambda: encoder(pixels), torch.device("cpu"), calls=2)
    json.dumps(table, allow_nan=False)
    assert set(table["classes"]) == set(CLASSES)
    by_name = {row["name"]: row for row in table["rows"]}
    assert by_name["aten::addmm"]["calls"] == 4 * TINY.depth
    assert by_name["aten::addmm"]["class"] == "matmul"
    assert sum(row["share"] for row in table["rows"]) == pytest.approx(1)
