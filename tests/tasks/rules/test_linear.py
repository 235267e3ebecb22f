from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.rules import linear
from tasks.rules.linear import Linear, half_used, quickened

AMD = "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n"
INTEL = "vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Processor\n"


@pytest.fixture
def on_amd(monkeypatch):
    monkeypatch.setattr(linear, "half_used", lambda: True)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 8, bias=False)).eval()


@pytest.mark.parametrize("shape", [(48,), (1, 48), (7, 48), (3, 5, 48), (0, 48)])
def test_both_libraries_say_the_same(on_amd, shape):
    rows, plain, quick = torch.randn(shape), network(), quickened(network())
    assert [type(module) for module in quick] == [Linear, nn.GELU, Linear]
    with torch.inference_mode():
        torch.testing.assert_close(quick(rows), plain(rows), rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_pytorch(on_amd):
    rows = torch.randn(4, 48)
    plain, quick = network(), quickened(network())
    for model in (plain, quick):
        model(rows).sum().backward()
    assert torch.equal(quick[0].weight.grad, plain[0].weight.grad)


def test_other_arithmetic_is_left_to_pytorch(on_amd):
    rows, plain, quick = torch.randn(4, 48), network().bfloat16(), quickened(network().bfloat16())
    with torch.inference_mode():
        assert torch.equal(quick(rows.bfloat16()), plain(rows.bfloat16()))


def test_an_export_has_plain_layers(on_amd):
    with torch.no_grad():
        program = torch.export.export(quickened(network()), (torch.randn(4, 48),))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called == {"aten.linear.default", "aten.gelu.default"}


@pytest.mark.parametrize(
    ("processor", "vectors", "wanted"),
    [(AMD, "AVX512", True), (AMD, "AVX2", False), (INTEL, "AVX512", False), (INTEL, "AVX2", False)],
)
def test_only_wide_processors_of_amd_are_helped(monkeypatch, tmp_path, processor, vectors, wanted):
    (tmp_path / "cpuinfo").write_text(processor)
    monkeypatch.setattr(linear, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    assert half_used() is wanted


def test_elsewhere_a_model_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(linear, "half_used", lambda: False)
    assert [type(module) for module in quickened(network())] == [nn.Linear, nn.GELU, nn.Linear]


def test_where_the_system_has_no_such_file_python_is_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(linear, "CPU_INFO", tmp_path / "none")
    monkeypatch.setattr(linear.platform, "processor", lambda: "AMD64 Family 26, AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert half_used() is True
