"""The watermark: what is marked and how, and that its detection finds it."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from personae_runtime.config import EngineSettings, default_models_dir, load_settings
from personae_runtime.engines import vllm, watermark
from personae_runtime.engines.models import hf_folder
from personae_runtime.errors import ConfigError
from personae_serve.cli import build_app

KEY = 0x0123456789ABCDEF
VOCABULARY = 97
MODELS = os.environ.get("PERSONAE_MODELS_DIR") or str(default_models_dir())


def key_file(folder: Path, key: int = KEY) -> Path:
    file = folder / "watermark.key"
    file.write_bytes(base64.b64encode(key.to_bytes(8)) + b"\n")
    return file


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return key_file(tmp_path_factory.mktemp("key"))


def processor(key: Path) -> Any:
    """The one that the arguments of an engine on CPUs name."""
    arguments = watermark.engine_arguments(key, cpu=True)
    [named] = arguments["logits_processors"]
    module, _, name = named.partition(":")
    assert module == watermark.__name__
    made: Any = getattr(watermark, name)
    return made(SimpleNamespace(additional_config=arguments["additional_config"]), "cpu", False)


def params(marked: bool) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**(watermark.sampling_arguments(cpu=True) if marked else {"watermarking": False}))


def change(size: int, *, added: Any = (), removed: Any = (), moved: Any = ()) -> Any:
    from vllm.v1.sample.logits_processor import BatchUpdate

    return BatchUpdate(size, removed, added, moved)


def drawn(row: Any) -> int | None:
    """The token that a row of logits leaves; None for one that leaves all of them."""
    left = row.isfinite().nonzero().flatten().tolist()
    return left[0] if len(left) == 1 else None


# -- configuration ------------------------------------------------------------------


def test_a_key_is_eight_bytes_in_base64(tmp_path: Path) -> None:
    assert watermark.read_key(key_file(tmp_path)) == KEY
    for wrong in (b"", b"AAAA", base64.b64encode(bytes(9)), b"not base64", bytes(range(200, 216))):
        (tmp_path / "wrong").write_bytes(wrong)
        with pytest.raises(ConfigError, match="openssl rand -base64 8"):
            watermark.read_key(tmp_path / "wrong")
    with pytest.raises(ConfigError, match=r"absent.*No such file"):
        watermark.read_key(tmp_path / "absent")


@pytest.mark.usefixtures("no_personae_environment")
def test_only_vllm_takes_a_key(tmp_path: Path) -> None:
    file = tmp_path / "personae.toml"
    for kind in ("llamacpp", "synthetic"):
        for table in ("[engine]", "[[cluster.models]]"):
            file.write_text(f'{table}\nkind = "{kind}"\nwatermark_key = "/a"\n')
            with pytest.raises(
                ConfigError, match=f'kind "vllm" with watermark_key, as the engine {kind} makes no watermark'
            ):
                load_settings(file)
    file.write_text('[[cluster.models]]\nkind = "vllm"\nwatermark_key = "/a"\n')
    assert load_settings(file).cluster.models[0].watermark_key == Path("/a")


def test_an_engine_without_a_usable_key_does_not_start(tmp_path: Path) -> None:
    chosen = EngineSettings(kind="vllm", watermark_key=tmp_path / "absent")
    for cpu in (True, False):
        with pytest.raises(ConfigError, match="watermark_key"):
            vllm.engine_arguments(chosen, tmp_path, cpu=cpu)


def test_on_cpus_the_key_itself_is_no_argument(key: Path) -> None:
    arguments = vllm.engine_arguments(EngineSettings(kind="vllm", watermark_key=key), Path("/m"), cpu=True)
    assert arguments["additional_config"] == {"personae_watermark_key": str(key)}
    assert str(KEY) not in repr(arguments)
    assert "logits_processors" not in vllm.engine_arguments(EngineSettings(kind="vllm"), Path("/m"), cpu=True)


@pytest.mark.vllm
def test_on_gpus_vllm_takes_what_it_is_told(key: Path) -> None:
    from vllm.config.watermarking import WatermarkConfig

    arguments = vllm.engine_arguments(EngineSettings(kind="vllm", watermark_key=key), Path("/m"), cpu=False)
    config = WatermarkConfig(**arguments["watermark_config"])
    assert (config.key, config.context_width, config.deduplicate_contexts) == (KEY, watermark.CONTEXT_TOKENS, "all")


# -- marking ------------------------------------------------------------------------

tokens = st.lists(st.integers(0, 2), max_size=40)


@pytest.mark.vllm
@settings(max_examples=60)
@given(prompt=tokens, output=tokens, seed=st.integers(0, 2**31), spread=st.sampled_from((0.1, 5, 30)))
def test_a_token_is_drawn_as_vllm_draws_it_on_gpus(
    key: Path, prompt: list[int], output: list[int], seed: int, spread: float
) -> None:
    # Against the reference that vLLM holds its kernels to; three tokens, so that contexts do repeat.
    import torch
    from vllm.v1.watermarking import GumbelWatermarker
    from vllm.v1.worker.gpu.sample.watermark import repeated_context_mask

    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread
    before = logits.clone()
    context = ([-1] * watermark.CONTEXT_TOKENS + output)[-watermark.CONTEXT_TOKENS :]
    [repeated] = repeated_context_mask(
        torch.tensor([prompt + output], dtype=torch.int32).reshape(1, -1),
        torch.tensor([0]),
        torch.tensor([len(prompt)]),
        torch.tensor([len(prompt) + len(output)]),
        torch.tensor([context]),
        include_prompt=True,
        skip_partial_context=True,
    ).tolist()
    one = processor(key)
    one.update_state(change(1, added=[(0, params(True), prompt, output)]))
    got = one.apply(logits)
    if repeated:
        assert torch.equal(got, before)
    else:
        marker = GumbelWatermarker(KEY, watermark.CONTEXT_TOKENS)
        assert drawn(got[0]) == int(marker.sample(before, torch.tensor([context])).token_ids)


@pytest.mark.vllm
def test_greedy_requests_never_come_here(key: Path) -> None:
    assert processor(key).is_argmax_invariant()


@pytest.mark.vllm
def test_what_does_not_ask_for_it_keeps_its_logits(key: Path) -> None:
    import torch

    one = processor(key)
    rows = [(at, params(at == 1), [5, 6], [1, 2, 3, 4]) for at in range(3)]
    one.update_state(change(3, added=rows))
    logits = torch.randn(3, VOCABULARY)
    got = one.apply(logits.clone())
    assert torch.equal(got[0], logits[0])
    assert torch.equal(got[2], logits[2])
    assert drawn(got[1]) is not None


@pytest.mark.vllm
def test_requests_that_come_go_and_move_keep_their_own_words(key: Path) -> None:
    import torch
    from vllm.v1.sample.logits_processor import MoveDirectionality

    replies = [[1, 2, 3, 4], [9, 8, 7, 6], [4, 4, 1, 1]]
    logits = torch.zeros(VOCABULARY)

    def alone(output: list[int]) -> int | None:
        one = processor(key)
        one.update_state(change(1, added=[(0, params(True), [], list(output))]))
        return drawn(one.apply(logits.repeat(1, 1))[0])

    one = processor(key)
    one.update_state(change(3, added=[(at, params(True), [], reply) for at, reply in enumerate(replies)]))

    def now(size: int) -> list[int | None]:
        return [drawn(row) for row in one.apply(logits.repeat(size, 1))]

    assert now(3) == [alone(reply) for reply in replies]
    one.update_state(change(3, moved=[(0, 2, MoveDirectionality.SWAP)]))
    assert now(3) == [alone(replies[at]) for at in (2, 1, 0)]
    replies[0].append(11)  # vLLM appends to the list that it gave
    one.update_state(None)
    assert now(3) == [alone(replies[at]) for at in (2, 1, 0)]
    one.update_state(change(2, removed=[1], moved=[(2, 1, MoveDirectionality.UNIDIRECTIONAL)]))
    assert now(2) == [alone(replies[2]), alone(replies[0])]
    one.update_state(change(2, added=[(0, params(False), [], [1, 2, 3, 4])]))
    assert now(2) == [None, alone(replies[0])]


# -- detection ----------------------------------------------------------------------


def written(key: Path, count: int, allowed: list[int], size: int) -> list[int]:
    """Tokens of a reply whose model finds the allowed ones all alike."""
    import torch

    one = processor(key)
    output: list[int] = []
    one.update_state(change(1, added=[(0, params(True), [0, 0], output)]))
    logits = torch.full((1, size), -torch.inf)
    logits[0, allowed] = 0.0
    chance = torch.Generator().manual_seed(7)
    for _ in range(count):
        row = one.apply(logits.clone())[0]
        output.append(int(torch.multinomial(row.softmax(0), 1, generator=chance)))
        one.update_state(None)
    return output


@pytest.mark.vllm
def test_a_marked_text_is_found_by_its_key_alone(key: Path) -> None:
    text = written(key, 60, list(range(VOCABULARY)), VOCABULARY)
    found = watermark.detect(text, KEY)
    assert (found.found, found.tokens > 50, found.mean > 2, found.p_value < 1e-9) == (True, True, True, True)
    other = watermark.detect(text, KEY + 1)
    assert (other.found, other.p_value > watermark.FALSE_POSITIVES) == (False, True)
    assert watermark.detect(text[:20], KEY).found is None
    assert watermark.detect([], KEY) == (0, 0.0, 1.0)


def command(folder: Path, *arguments: str, key: Path | None) -> tuple[int, str]:
    """`personae content detect`; exit code and all output."""
    environment = {"PERSONAE_DATA_DIR": str(folder / "data"), "PERSONAE_MODELS_DIR": MODELS, "COLUMNS": "200"}
    if key is not None:
        environment |= {"PERSONAE_ENGINE__KIND": "vllm", "PERSONAE_ENGINE__WATERMARK_KEY": str(key)}
    result = CliRunner().invoke(build_app(), ["content", "detect", *arguments], env=environment)
    return result.exit_code, result.output


@pytest.mark.vllm
@pytest.mark.usefixtures("no_personae_environment")
def test_the_command_says_what_it_found(key: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(hf_folder("smollm2-135m-instruct", Path(MODELS)))
    # Words that stay the tokens they were when they are read again.
    words = [at for at in range(2000, 4000) if (word := tokenizer.decode([at]))[0] == " " and word[1:].isalpha()]
    text, short, none = (tmp_path / name for name in ("text.txt", "short.txt", "none.txt"))
    text.write_text(tokenizer.decode(written(key, 80, words, len(tokenizer))), encoding="utf-8")
    short.write_text("Good morning to you.", encoding="utf-8")
    none.write_text(
        "The river rises in the hills and runs through four old towns to the sea. On its banks stand mills that have"
        " ground no corn for a hundred years, and boats wait there for people who come on Sundays.",
        encoding="utf-8",
    )

    code, output = command(tmp_path, str(text), key=key)
    assert (code, "the watermark of smollm2-135m-instruct is there" in output) == (0, True), output
    (tmp_path / "other").mkdir()
    for file, by in ((text, key_file(tmp_path / "other", KEY + 1)), (none, key)):
        code, output = command(tmp_path, str(file), key=by)
        assert (code, "was NOT found" in output) == (1, True), output
    code, output = command(tmp_path, str(short), key=key)
    assert (code, "nothing can be said of" in output) == (1, True), output


@pytest.mark.usefixtures("no_personae_environment")
def test_the_command_needs_a_model_with_a_key_and_a_text(key: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xff\xfe")
    code, output = command(tmp_path, str(file), key=None)
    assert (code, "no model has a watermark" in output) == (1, True), output
    code, output = command(tmp_path, str(file), "--model", "another", key=key)
    assert (code, "smollm2-135m-instruct" in output) == (2, True), output
    code, output = command(tmp_path, str(file), key=key)
    assert (code, "not text in UTF-8" in output) == (2, True), output
