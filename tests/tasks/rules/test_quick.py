from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    T5Config,
)

from tasks.rules import quick
from tasks.rules.quick import SHORT, Linear, half_used, quickened

AMD = "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n"
INTEL = "vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Processor\n"


@pytest.fixture
def on_amd(monkeypatch):
    monkeypatch.setattr(quick, "half_used", lambda: True)


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
    monkeypatch.setattr(quick, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    assert half_used() is wanted


def test_elsewhere_a_model_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(quick, "half_used", lambda: False)
    assert [type(module) for module in quickened(network())] == [nn.Linear, nn.GELU, nn.Linear]


def test_where_the_system_has_no_such_file_python_is_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(quick, "CPU_INFO", tmp_path / "none")
    monkeypatch.setattr(quick.platform, "processor", lambda: "AMD64 Family 26, AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert half_used() is True


def encoder(kind, **fields):
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(kind, **sizes, intermediate_size=64, max_position_embeddings=200, **fields)
    return AutoModelForSequenceClassification.from_config(config).eval()


def rows(width, several=3):
    ids = torch.randint(5, 50, (several, width), generator=torch.Generator().manual_seed(width))
    mask = torch.ones_like(ids)
    mask[1, width // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("width", [2, SHORT, SHORT + 1])
@pytest.mark.parametrize("masked", [True, False])
def test_encoders_say_the_same(on_amd, kind, width, masked):
    plain, fast = encoder(kind), quickened(encoder(kind))
    given = rows(width) if masked else {"input_ids": rows(width)["input_ids"]}
    with torch.inference_mode():
        torch.testing.assert_close(fast(**given).logits, plain(**given).logits, rtol=1e-5, atol=1e-6)


def test_short_rows_are_attended_to_by_plain_products_and_others_by_fused(on_amd):
    fast, fused = quickened(encoder("bert")), "aten::scaled_dot_product_attention"
    for width, wanted in ((SHORT, False), (SHORT + 1, True)):
        with torch.inference_mode(), torch.profiler.profile() as seen:
            fast(**rows(width))
        assert (fused in {event.key for event in seen.key_averages()}) is wanted


def test_gelu_is_computed_with_the_layer_before_it(on_amd):
    fast = quickened(encoder("bert"))
    with torch.inference_mode(), torch.profiler.profile() as seen:
        fast(**rows(4))
    assert "aten::gelu" not in {event.key for event in seen.key_averages()}
    tanh = quickened(encoder("bert", hidden_act="gelu_new"))
    assert {module.activation for module in tanh.modules() if isinstance(module, Linear)} == {"none"}, (
        "another function"
    )


def test_gradients_of_an_encoder_are_those_of_transformers(on_amd):
    plain, fast = encoder("bert"), quickened(encoder("bert"))
    for model in (plain, fast):
        model(**rows(8)).logits.sum().backward()
    want = dict(plain.named_parameters())
    for name, parameter in fast.named_parameters():
        if want[name].grad is not None:
            torch.testing.assert_close(parameter.grad, want[name].grad, rtol=1e-5, atol=1e-6)


def test_threads_may_share_a_model_for_rows_of_any_width(on_amd):
    fast = quickened(encoder("bert"))
    given = [rows(width) for width in (4, 150) * 8]
    with torch.inference_mode():
        alone = [fast(**each).logits for each in given]

    def said(each):
        with torch.inference_mode():
            return fast(**each).logits

    with ThreadPoolExecutor(4) as threads:
        for one, several in zip(alone, threads.map(said, given), strict=True):
            assert torch.equal(one, several)


@pytest.mark.parametrize("config", [GPT2Config, T5Config])
def test_models_that_write_attend_as_they_did(config):
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "d_model": 16, "d_kv": 8, "num_layers": 1}
    auto = AutoModelForCausalLM if config is GPT2Config else AutoModelForSeq2SeqLM
    model = auto.from_config(config(**{name: sizes[name] for name in sizes if hasattr(config(), name)}))
    before = model.config._attn_implementation
    assert quickened(model).config._attn_implementation == before


def test_an_export_has_fused_attention_whatever_the_width(on_amd):
    fast, free = quickened(encoder("bert")), torch.export.Dim.DYNAMIC
    shapes = {name: {0: free, 1: free} for name in rows(8)}
    with torch.no_grad():
        program = torch.export.export(fast, (), rows(8), dynamic_shapes=shapes)
        called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert "aten.scaled_dot_product_attention.default" in called
        for width in (4, 150):
            found = program.module()(**rows(width)).logits
            torch.testing.assert_close(found, fast(**rows(width)).logits, rtol=1e-5, atol=1e-6)
