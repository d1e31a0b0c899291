"""SFT, LoRA and its kin, DPO, QAT: against references, and what they leave behind."""

import json
from pathlib import Path

import pytest
import torch
from exported import psnr, talking_checkpoint
from tiny import random_tokens
from training_tiny import chat_lines, pair_lines, write_shards

from phi3mobile.engines.registry import open_engine
from phi3mobile.errors import InputError
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.form import Form
from phi3mobile.training.batches import pack
from phi3mobile.training.chats import open_encoder, preferences
from phi3mobile.training.config import Chats, Dpo, Lora, Qat, Sft
from phi3mobile.training.dpo import Preference, dpo, per_document, with_reference
from phi3mobile.training.loop import token_losses
from phi3mobile.training.lora import add_lora, merge
from phi3mobile.training.metrics import read_metrics
from phi3mobile.training.model import load_hf
from phi3mobile.training.qat import FakeQuantLinear, add_fake_quant, on_grid, qat
from phi3mobile.training.replica import Place
from phi3mobile.training.settings import from_table
from phi3mobile.training.sft import sft

HERE = Place(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A checkpoint whose random weights are small enough to learn from."""
    return talking_checkpoint(tmp_path_factory.mktemp("start") / "checkpoint", "tiny-gqa")


def table(base: Path, folder: Path, file: Path, steps: int = 8, **more) -> dict:
    return {
        "out": str(base / "out"),
        "model": {"folder": str(folder)},
        "data": {"files": [str(file)]},
        "optimizer": {"lr": 5e-3, "weight_decay": 0.0},
        "schedule": {"steps": steps},
        "batch": {"rows": 4, "length": 128},
        "run": {"checkpoint_every": 4, "save_dtype": "float32"},
        **more,
    }


def test_sft_learns_the_answers(tmp_path, start):
    result = sft(from_table(table(tmp_path, start, chat_lines(tmp_path / "c.jsonl"), 40), Sft, "config"))
    losses = [line["loss"] for line in read_metrics(tmp_path / "out")]
    assert losses[-1] < 0.3 * losses[0] and result["learned_tokens"] > 0
    model, _ = load_hf(result["out"])
    encoder = open_encoder(result["out"])
    ids = encoder.prompt([{"role": "user", "content": "the cat?"}])
    text = model.eval().generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=0)
    assert "sat." in encoder.tokenizer.decode(text[0, len(ids) :].tolist())


KINDS = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}, "qlora": {"qlora": True}}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_train_and_merge_into_an_ordinary_folder(kind, tmp_path, start):
    if kind == "qlora":
        pytest.importorskip("bitsandbytes")
    lora = {"rank": 4, "alpha": 8, **KINDS[kind]}
    result = sft(from_table(table(tmp_path, start, chat_lines(tmp_path / "c.jsonl"), 12, lora=lora), Sft, "config"))
    losses = [line["loss"] for line in read_metrics(tmp_path / "out")]
    assert losses[-1] < losses[0]
    before, after = open_checkpoint(start), open_checkpoint(result["out"])
    after.check()
    changed = [name for name in before.names() if not torch.equal(before.tensor(name), after.tensor(name))]
    assert changed and all(any(part in name for part in Lora().targets) for name in changed)
    assert len(changed) == 4 * before.config.num_hidden_layers
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    state = sum(path.stat().st_size for path in (tmp_path / "out" / "checkpoints").rglob("*.distcp"))
    assert state < 2 * 3 * 2 * 40 * 1024 * 4  # adapters and their moments only, in two checkpoints


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_merged_model_computes_what_the_adapted_one_does(kind, start):
    lora = Lora(rank=4, alpha=8.0, **KINDS[kind])
    model = add_lora(load_hf(start)[0], lora)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    tokens = random_tokens(open_checkpoint(start).config, 20)
    adapters = {name: weight for name, weight in model.state_dict().items() if "lora_" in name}
    merged = merge(load_hf(start)[0], lora, adapters)
    with torch.no_grad():
        ours, expected = merged.eval()(tokens).logits, model.eval()(tokens).logits
        assert (ours - load_hf(start)[0].eval()(tokens).logits).abs().max() > 0.1
    assert psnr(expected.numpy(), ours.numpy()) > 90


def test_lora_refuses_what_it_does_not_know(start):
    with pytest.raises(InputError, match="q_proj; known are qkv_proj"):
        add_lora(load_hf(start)[0], Lora(rank=4, targets=("q_proj",)))
    with pytest.raises(InputError, match="rank 0"):
        Lora(rank=0, dora=True)


def test_dpo_loss_is_the_papers(tmp_path, start):
    """Pair by pair, unpacked: log sigmoid of beta times the difference of log-ratios."""
    encoder = open_encoder(start)
    units = preferences(Chats((str(pair_lines(tmp_path / "p.jsonl", 6)),)), encoder, 128)
    rows = with_reference(load_hf(start)[0], pack(units, 128, 0), 2, HERE)
    torch.manual_seed(1)
    policy = load_hf(start)[0]
    for weight in policy.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    total, extra = Preference(0.1).loss(policy, rows)
    reference, expected, wins = load_hf(start)[0], 0.0, 0

    def answer(model, document):
        ids, learned = torch.tensor(document.tokens), torch.tensor(document.learned)
        logps = model(input_ids=ids[None]).logits[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
        return logps[learned[1:]].sum()

    with torch.no_grad():
        for chosen, rejected in units:
            ratio = answer(policy, chosen) - answer(reference, chosen) - answer(policy, rejected) + answer(reference, rejected)
            expected -= torch.nn.functional.logsigmoid(0.1 * ratio)
            wins += int(ratio > 0)
    assert Preference(0.1).count(rows) == 6
    assert torch.allclose(total, expected, atol=1e-3) and int(extra["accuracy"]) == wins


def test_dpo_prefers_the_chosen_and_resumes_exactly(tmp_path, start):
    file = pair_lines(tmp_path / "p.jsonl")
    values = table(tmp_path, start, file, 12, sft_weight=0.1)
    values["optimizer"]["lr"] = 1e-3
    result = dpo(from_table(values, Dpo, "config"))
    lines = read_metrics(tmp_path / "out")
    assert lines[0]["margin"] == pytest.approx(0, abs=1e-4) and result["accuracy"] == 1.0 and result["margin"] > 0.1
    import shutil

    shutil.rmtree(tmp_path / "out" / "final")
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step-00000012")
    dpo(from_table(values, Dpo, "config"))
    assert [line["loss"] for line in read_metrics(tmp_path / "out")] == [line["loss"] for line in lines]


def test_per_document_sums():
    from phi3mobile.training.batches import Document

    rows = pack([[Document([1, 2, 3]), Document([4, 5])], [Document([6, 7]), Document([8])]], 6, 0)
    assert per_document(torch.ones(rows.tokens.shape), rows).tolist() == [3, 2, 2, 1]


# quantization-aware training


def test_the_grid_is_the_exports(start):
    """Which bits, which groups and which values: PackedModel's for every tensor of every 4-bit recipe."""
    from phi3mobile.export.packed import PackedModel
    from phi3mobile.export.recipe import find_recipe

    for name in ("android-cpu", "android-small", "host"):
        recipe = find_recipe(name)
        packed = PackedModel(open_checkpoint(start), recipe)
        model = add_fake_quant(*load_hf(start), recipe)
        for tensor in packed.checkpoint.names():
            if packed.form_of(tensor) is None:
                continue
            module = model.get_submodule(tensor.removesuffix(".weight"))
            assert module.form == packed.form_of(tensor)
            assert torch.equal(on_grid(module.weight, module.form), packed.tensor(tensor).dequantized())


def test_three_bits_have_eight_codes_and_a_scale_as_good_as_any_tried():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    rounded = on_grid(weight, Form(3, 32))
    for row, group in ((0, 0), (3, 1)):
        assert len(rounded[row].unflatten(0, (2, 32))[group].unique()) <= 8
    groups = weight.unflatten(1, (2, 32))

    def plain(divisor: float) -> float:
        scale = groups.abs().amax(-1, keepdim=True) / divisor
        return float((groups - (groups / scale).round().clamp(-4, 3) * scale).square().sum())

    best = min(map(plain, (2.6, 3.0, 3.4, 3.8, 4.4)))
    assert float((weight - rounded).square().sum()) < best
    assert float((weight - rounded).square().sum()) > float((weight - on_grid(weight, Form(4, 32))).square().sum())


def test_gradients_pass_through_both_roundings():
    linear = torch.nn.Linear(32, 8, bias=False)
    linear.__class__, linear.form = FakeQuantLinear, Form(4, 32)
    x = torch.randn(3, 32, requires_grad=True)
    linear(x).sum().backward()
    assert torch.allclose(x.grad, on_grid(linear.weight, Form(4, 32)).detach().sum(0).expand(3, 32), atol=1e-5)
    assert linear.weight.grad.abs().sum() > 0


def qat_table(base: Path, folder: Path, steps: int = 4, **more) -> dict:
    if not (base / "shards").exists():
        write_shards(base / "shards")
    values = table(base, folder, Path("none"), steps, **more)
    values["data"] = {"phases": [{"sources": [{"path": str(base / "shards"), "epochs": 4.0}]}]}
    values["optimizer"]["lr"] = 1e-4
    return values


@pytest.mark.slow
def test_what_qat_trained_is_what_the_program_computes(tmp_path, start):
    from phi3mobile.bundle import open_bundle
    from phi3mobile.export.build import export
    from phi3mobile.export.recipe import find_recipe

    result = qat(from_table(qat_table(tmp_path, start, quant={"distill": 1.0}), Qat, "config"))
    model = add_fake_quant(*load_hf(result["out"]), find_recipe("android-cpu")).eval()
    bundle = open_bundle(export(result["out"], tmp_path / "bundle", context=64, method="rtn"))
    engine = open_engine(bundle)
    tokens = random_tokens(open_checkpoint(result["out"]).config, 28)
    with torch.no_grad():
        trained = model(tokens, use_cache=False).logits[0].numpy()
    assert psnr(trained, engine.forward(tokens[0].numpy(), 0)) >= 40
    with torch.no_grad():
        assert psnr(trained, load_hf(result["out"])[0].eval()(tokens).logits[0].numpy()) < 40  # it is another function
    engine.close()


def test_qat_needs_one_kind_of_data(tmp_path, start):
    values = qat_table(tmp_path, start)
    with pytest.raises(InputError, match="either data"):
        qat(from_table({**values, "chats": {"files": ["x"]}}, Qat, "config"))
    with pytest.raises(InputError, match="must be 3 or 4"):
        from_table({**values, "quant": {"bits": 5}}, Qat, "config")


def test_qat_on_conversations(tmp_path, start):
    values = qat_table(tmp_path, start, chats={"files": [str(chat_lines(tmp_path / "c.jsonl"))]}, quant={"bits": 3})
    del values["data"]
    assert qat(from_table(values, Qat, "config"))["bits"] == 3


def test_stages_say_what_they_need(tmp_path, start):
    file = chat_lines(tmp_path / "c.jsonl")
    with pytest.raises(InputError, match="give folder"):
        sft(from_table({**table(tmp_path, start, file), "model": {"shape": {"hidden_size": 8}}}, Sft, "config"))
    with pytest.raises(InputError, match="ema is for training all"):
        values = table(tmp_path, start, file, lora={"rank": 2})
        sft(from_table({**values, "run": {"ema": 0.9}}, Sft, "config"))
    with pytest.raises(InputError, match='"chosen" and "rejected"'):
        dpo(from_table(table(tmp_path, start, file), Dpo, "config"))
    assert json.loads(file.read_text().splitlines()[0])["messages"]


def test_token_losses_ignore_what_is_not_learned(start):
    rows = pack(preferences_units(start), 128, 0)
    losses = token_losses(load_hf(start)[0], rows)
    assert ((losses == 0) == (rows.labels == -100)).all()


def preferences_units(start: Path):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return preferences(Chats((str(pair_lines(Path(folder) / "p.jsonl", 4)),)), open_encoder(start), 128)
