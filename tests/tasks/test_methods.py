from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from pydantic import TypeAdapter
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from schemas.errors import Mistake
from schemas.recipe import Method
from tasks import methods
from tasks.layers import feed_forward_outputs, keys_and_values, layers_above, linear_modules, newly_made, stacks
from tasks.merging import compute_in_float32, merged

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
ENCODER = SMALL | {"intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": 0}
CONFIGS = {
    "bert": ENCODER,
    "roberta": ENCODER,
    "distilbert": {
        "vocab_size": 40, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 40,
    },
    "deberta-v2": ENCODER | {
        "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm",
    },
    "modernbert": ENCODER | {"cls_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2},
    "llama": ENCODER | {"num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2},
    "gpt2": {
        "vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 40, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    },
    "t5": {
        "vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_decoder_layers": 2,
        "num_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
    },
}  # fmt: skip
HEADS = {
    "deberta-v2": ["pooler", "classifier"], "distilbert": ["pre_classifier", "classifier"],
    "modernbert": ["head", "classifier"], "llama": ["score"], "gpt2": ["score"], "t5": ["classification_head"],
}  # fmt: skip
KINDS = ["full", "lora", "rslora", "dora", "ia3", "bitfit", {"kind": "freeze", "layers": 1}]
ADAPTERS = ["lora", "rslora", "dora", "ia3"]
NO_BIASES = ("modernbert", "llama", "t5")
BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9, 1], [9, 8, 7, 6, 5, 1]]),
    "attention_mask": torch.ones(2, 6, dtype=torch.long),
}

method_of = TypeAdapter(Method).validate_python


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    for name, config in CONFIGS.items():
        torch.manual_seed(3)
        model = AutoModel.from_config(AutoConfig.for_model(name, **config))
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.3)  # large enough for attention to matter
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(params=CONFIGS)
def name(request):
    return request.param


def load(bases, name, kind=AutoModelForSequenceClassification, seed=0):
    torch.manual_seed(seed)
    return kind.from_pretrained(bases / name, num_labels=3, dtype=torch.float32).eval()


def heads_of(name):
    return HEADS.get(name, ["classifier"])


def applied(bases, name, kind):
    return methods.apply(method_of(kind), load(bases, name), heads_of(name))


def logits(model):
    with torch.inference_mode():
        return model(**{name: tensor.to(model.device) for name, tensor in BATCH.items()}).logits


def learn(model):
    """A few coarse steps, so that everything that learns has moved."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        batch = {name: tensor.to(model.device) for name, tensor in BATCH.items()}
        loss = torch.nn.functional.cross_entropy(model(**batch).logits, torch.tensor([0, 2], device=model.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_the_layers_of_any_architecture_are_found(bases, name):
    depths = [len(layers) for layers in stacks(load(bases, name), heads_of(name)).values()]
    assert depths == ([3, 2] if name == "t5" else [3])


def test_keys_values_and_feed_forward_outputs_are_found_once_in_every_layer(bases, name):
    model = load(bases, name)
    fused = name in {"modernbert", "gpt2"}
    attentions = 3 + 2 * 2 if name == "t5" else 3
    layers = 3 + 2 if name == "t5" else 3
    projections = keys_and_values(model, heads_of(name))
    outputs = feed_forward_outputs(model, heads_of(name))
    assert [len(projections), len(outputs)] == [attentions * (1 if fused else 2), layers]
    assert {output.rpartition(".")[2] for output in outputs} == {
        {"distilbert": "lin2", "modernbert": "Wo", "llama": "down_proj", "gpt2": "c_proj", "t5": "wo"}.get(
            name, "dense"
        )
    }
    assert not any("att" in output.rpartition("layer")[2] for output in outputs)


def test_what_follows_the_layers_is_above_them_and_embeddings_are_below(bases, name):
    above = layers_above(load(bases, name), heads_of(name))
    for parameter, layers in above.items():
        if any(head in parameter for head in ("classifier", "score", "classification_head", "pooler")):
            assert layers == 0, parameter
        elif any(word in parameter for word in ("word_emb", "tok_emb", "wte", "embed_tokens", "shared", "rel_emb")):
            assert layers == 3, parameter
    final = {"llama": "model.norm.weight", "t5": "transformer.decoder.final_layer_norm.weight",
             "modernbert": "model.final_norm.weight", "gpt2": "transformer.ln_f.weight"}  # fmt: skip
    if name in final:
        assert above[final[name]] == 0
    if name == "deberta-v2":
        assert above["deberta.encoder.LayerNorm.weight"] == 3


def test_layer_decay_halves_from_layer_to_layer(bases):
    shares = methods.rate_shares(load(bases, "bert"), ["classifier"], 0.5)
    layer = "bert.encoder.layer.{}.output.dense.weight"
    assert [shares[layer.format(i)] for i in range(3)] == [0.25, 0.5, 1]
    assert shares["bert.embeddings.word_embeddings.weight"] == 0.125
    assert shares["classifier.weight"] == shares["bert.pooler.dense.weight"] == 1


def test_a_model_without_layers_can_have_no_layer_decay():
    with pytest.raises(Mistake, match=r"train\.layer_decay = 0\.5: the model has no list of layers; set it to 1"):
        methods.rate_shares(torch.nn.Linear(2, 2), [], 0.5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_head_learns_under_every_method_and_the_rest_as_the_method_says(bases, name, kind):
    if kind == "bitfit" and name in NO_BIASES:
        with pytest.raises(Mistake, match=r"train\.method = 'bitfit': the model has no biases; use ia3 or lora"):
            applied(bases, name, kind)
        return
    plain = load(bases, name)
    untouched = {n: p.clone() for n, p in plain.state_dict().items()}
    model = learn(methods.apply(method_of(kind), plain, heads_of(name)))
    whole = merged(model) if kind in ADAPTERS else model
    moved = {n for n, p in whole.state_dict().items() if not torch.equal(p, untouched[n])}
    head = {n for n in untouched if n.split(".")[0] in heads_of(name)}
    assert {n for n in head if n.endswith("weight")} <= moved
    body = moved - head
    if kind == "bitfit":
        assert body
        assert all(n.endswith(".bias") for n in body)
    elif isinstance(kind, dict):
        above = layers_above(whole, heads_of(name))
        assert body
        assert all(above[n] == 0 for n in body)
    elif kind in {"lora", "rslora", "dora"}:
        assert {n.removesuffix(".weight") for n in body} == set(linear_modules(whole, heads_of(name)))
    elif kind == "ia3":
        scaled = {*keys_and_values(whole, heads_of(name)), *feed_forward_outputs(whole, heads_of(name))}
        assert {n.rpartition(".")[0] for n in body} == scaled


@pytest.mark.parametrize("kind", ADAPTERS)
def test_merged_adapters_say_what_unmerged_ones_said_and_the_adapter_alone_brings_its_head(bases, tmp_path, name, kind):
    model = learn(applied(bases, name, kind))
    said = logits(model)
    assert (said - logits(load(bases, name))).abs().max() > 1e-2
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merged(model).save_pretrained(tmp_path / "model")

    served = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert (logits(served) - said).abs().max() < 1e-5
    again = PeftModel.from_pretrained(load(bases, name, seed=99), tmp_path / "adapter").eval()
    assert (logits(again) - said).abs().max() < 1e-5


def test_what_the_base_model_lacks_learns_and_is_saved_with_the_head(bases, tmp_path):
    bare = AutoModel.from_pretrained(bases / "bert", add_pooling_layer=False)
    bare.save_pretrained(tmp_path / "bare")
    assert newly_made(load(bases, "bert"), ["classifier"]) == []
    assert newly_made(load(tmp_path, "bare"), ["classifier"]) == ["bert.pooler.dense"]

    model = learn(methods.apply(method_of("lora"), load(tmp_path, "bare"), ["classifier"]))
    said = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load(tmp_path, "bare", seed=99), tmp_path / "adapter").eval()
    assert (logits(again) - said).abs().max() < 1e-6
    for kind in ("bitfit", "freeze"):
        frozen = methods.apply(method_of({"kind": kind}), load(tmp_path, "bare"), ["classifier"])
        assert frozen.bert.pooler.dense.weight.requires_grad


def test_only_what_learns_is_kept(bases, name):
    for kind in KINDS:
        if kind == "bitfit" and name in NO_BIASES:
            continue
        model = applied(bases, name, kind)
        kept = methods.learnt(model)
        learning = {n for n, p in model.named_parameters() if p.requires_grad}
        assert learning <= kept.keys()
        assert sum(p.numel() for n, p in kept.items() if n in learning) == methods.census(model)["trainable_parameters"]


def test_the_head_is_counted_once_though_peft_keeps_a_frozen_copy(bases):
    plain = methods.census(load(bases, "bert"))["parameters"]
    model = applied(bases, "bert", {"kind": "lora", "r": 2})
    modules = [load(bases, "bert").get_submodule(n) for n in linear_modules(load(bases, "bert"), ["classifier"])]
    adapters = sum(2 * (m.in_features + m.out_features) for m in modules)
    head = 16 * 3 + 3
    assert methods.census(model) == {"parameters": plain + adapters, "trainable_parameters": adapters + head}


def test_flops_are_6_for_what_learns_4_where_gradients_pass_and_2_below(bases):
    def flops(kind):
        return methods.training_flops_per_token(applied(bases, "bert", kind))

    embeddings = (40 + 40 + 2) * 16
    norm = 2 * 16
    layer = 4 * (16 * 16 + 16) + 2 * norm + 16 * 32 + 32 + 32 * 16 + 16
    above = (16 * 16 + 16) + (16 * 3 + 3)
    whole = methods.census(load(bases, "bert"))["parameters"] - embeddings
    assert whole == norm + 3 * layer + above
    assert flops("full") == 6 * whole
    assert flops({"kind": "freeze", "layers": 1}) == 2 * (norm + 2 * layer) + 6 * (layer + above)
    model = applied(bases, "bert", {"kind": "lora", "r": 2})
    adapters = methods.census(model)["trainable_parameters"] - 51
    first_query = 16 * 16 + 16
    assert flops({"kind": "lora", "r": 2}) == 4 * (whole - 51) - 2 * (norm + first_query) + 6 * (adapters + 51)


def test_a_vocabulary_head_that_shares_the_embeddings_multiplies_and_gets_no_adapter(bases):
    model = load(bases, "gpt2", AutoModelForCausalLM)
    assert model.lm_head.weight is model.transformer.wte.weight
    positions = model.transformer.wpe.weight.numel()
    assert methods.training_flops_per_token(model) == 6 * (methods.census(model)["parameters"] - positions)
    assert "lm_head" not in linear_modules(model, [])
    state = methods.learnt(model)
    assert "lm_head.weight" not in state
    assert "transformer.wte.weight" in state


def test_a_head_whose_name_ends_like_another_module_is_kept_apart(bases):
    kept = methods.learnt(applied(bases, "distilbert", "lora"))
    heads = {n.partition("modules_to_save")[0] for n in kept if "modules_to_save" in n}
    assert heads == {"base_model.model.pre_classifier.", "base_model.model.classifier."}


def test_more_layers_than_there_are_is_a_mistake(bases):
    with pytest.raises(Mistake, match=r"train\.method\.layers = 4: the model has 3 layers; set at most 3"):
        applied(bases, "bert", {"kind": "freeze", "layers": 4})
    with pytest.raises(Mistake, match=r"train\.method\.layers = 3: the model has 3 and 2 layers; set at most 2"):
        applied(bases, "t5", {"kind": "freeze", "layers": 3})


def test_a_linear_layer_that_there_is_not_is_a_mistake_that_offers_the_others(bases):
    wanted = {"kind": "dora", "target_modules": ["query", "q_proj"]}
    with pytest.raises(Mistake, match=r"no linear layer named q_proj; choose among dense, key, query, value"):
        applied(bases, "bert", wanted)
    model = applied(bases, "bert", {"kind": "dora", "target_modules": ["query", "value"]})
    adapted = {n.split(".lora_A")[0].rpartition(".")[2] for n, _ in model.named_parameters() if "lora_A" in n}
    assert adapted == {"query", "value"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_4_bits_without_a_gpu_are_a_mistake(bases):
    with pytest.raises(Mistake, match=r"train\.method = 'qlora': 4-bit weights need a CUDA GPU.*; use lora"):
        applied(bases, "bert", "qlora")


def test_4_bit_weights_are_written_out_before_merging_and_nothing_is_rounded_away(bases, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(methods, "_refuse_without_4_bits", lambda: None)  # bitsandbytes packs on a CPU, too
    wide = AutoConfig.for_model("bert", **ENCODER | {"hidden_size": 64, "intermediate_size": 128})
    AutoModel.from_config(wide).save_pretrained(tmp_path / "wide")
    model = learn(applied(tmp_path, "wide", "qlora").to("cuda" if torch.cuda.is_available() else "cpu"))
    assert methods.census(model)["parameters"] == methods.census(applied(tmp_path, "wide", "lora"))["parameters"]
    compute_in_float32(model)
    said = logits(model)
    merged(model).save_pretrained(tmp_path / "model")
    served = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    exact = 1e-5 if torch.cuda.is_available() else 5e-3  # a CPU multiplies weights of 4 bits in bfloat16
    assert (logits(served) - said.cpu()).abs().max() < exact
    assert served.bert.encoder.layer[0].output.dense.weight[0].unique().numel() > 100  # 4 bits have 16 steps a block


def test_scales_and_lengths_do_not_decay(bases):
    for kind, part in (("ia3", "ia3_l"), ("dora", "lora_magnitude_vector")):
        names = [n for n, p in applied(bases, "bert", kind).named_parameters() if p.requires_grad]
        assert any(part in n for n in names)
        assert not any(methods.decays(n) for n in names if part in n)
        assert all(methods.decays(n) for n in names if part not in n)
