"""The one configuration model: every setting, its type, its default and its meaning.

Sources, strongest first: arguments, environment (`PERSONAE_` and `__` between
levels: `PERSONAE_GATEWAY__PORT=7400`), the TOML file named by `PERSONAE_CONFIG`
or `--config`, defaults. They are merged key by key.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import ipaddress
import itertools
import json
import os
import sys
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, cast, get_args, get_origin
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from personae_runtime.errors import ConfigError

ENV_PREFIX = "PERSONAE_"
"""Before every environment variable of a setting."""

CONFIG_FILE_ENV = "PERSONAE_CONFIG"
"""Environment variable that names the TOML file."""

FilePath = Annotated[Path, AfterValidator(Path.expanduser)]
"""A path; a leading `~` is the home directory."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on, an IP address or a name, can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class TlsSettings(_Section):
    """TLS of the gateway. The files are read again when they change, without a restart."""

    certificate: FilePath | None = Field(
        None,
        description="PEM file of the server's certificate, followed by the intermediate ones; unset is no TLS.",
        examples=["/etc/personae/tls/tls.crt"],
    )
    private_key: FilePath | None = Field(
        None,
        description="PEM file of the certificate's key, without a password.",
        examples=["/etc/personae/tls/tls.key"],
    )
    client_ca: FilePath | None = Field(
        None,
        description="PEM file of the authorities whose client certificates are accepted (mTLS).",
        examples=["/etc/personae/tls/clients.crt"],
    )
    require_client_certificate: bool | None = Field(
        None,
        description="Refuse connections without a client certificate of `client_ca`; unset does so if there is one.",
        examples=[True],
    )

    peer_ca: FilePath | None = Field(
        None,
        description="PEM file of the authorities of other gateways' certificates; unset takes none but `certificate`.",
        examples=["/etc/personae/tls/gateways.crt"],
    )
    peer_name: str | None = Field(
        None,
        min_length=1,
        description="Name that other gateways' certificates must have; unset takes the first of `certificate`,"
        " or with `peer_ca` the address at which they are called.",
        examples=["gateway.personae.internal"],
    )

    @property
    def asks_clients(self) -> bool:
        """Whether clients must show a certificate."""
        if self.require_client_certificate is None:
            return self.client_ca is not None
        return self.require_client_certificate


class GatewaySettings(_Section):
    """Where and how the API is served."""

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on. Any but a loopback address needs TLS, and API keys or JWT.",
        examples=["127.0.0.1"],
    )
    port: int = Field(7400, ge=0, le=65535, description="TCP port; 0 picks a free one.", examples=[7400])
    max_message_bytes: int = Field(
        1 << 20, ge=1 << 10, description="Largest request message, bytes.", examples=[1048576]
    )
    max_metadata_bytes: int = Field(
        8 << 10, ge=1 << 10, description="Largest request metadata, bytes.", examples=[8192]
    )
    max_concurrent_streams: int = Field(1000, ge=1, description="HTTP/2 streams per connection.", examples=[1000])
    max_concurrent_rpcs: int = Field(
        4000,
        ge=1,
        description="RPCs in flight per process; beyond it calls fail with RESOURCE_EXHAUSTED.",
        examples=[4000],
    )
    max_accept_wait_s: float = Field(
        0.5,
        gt=0,
        description="Seconds that calls may wait to be accepted, and turns to be admitted; while all have waited longer"
        " for a second, new sessions, turns and streams are refused.",
        examples=[0.5],
    )
    keepalive_time_s: float = Field(30.0, gt=0, description="Seconds between keepalive pings.", examples=[30])
    max_connection_age_s: float = Field(
        3600.0, gt=0, description="Seconds after which a connection is asked to go away.", examples=[3600]
    )
    view_buffer_events: int = Field(
        256,
        ge=8,
        description="Events a slow stream may lag behind before it is dropped (the turn goes on).",
        examples=[256],
    )
    drain_grace_s: float = Field(
        10.0, ge=0, description="Seconds that running turns get to end on shutdown.", examples=[10]
    )
    reuse_port: bool = Field(
        False,
        description="Share the port with other gateways on this machine (SO_REUSEPORT). All must use one ledger.",
        examples=[True],
    )
    peer_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address at which other gateways of the same ledger reach this one; it listens there for them.",
        examples=["127.0.0.1"],
    )
    peer_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="TCP port for other gateways, 0 for a free one; unset is none: calls about turns that run here"
        " must then come here themselves.",
        examples=[7401],
    )
    tls: TlsSettings = TlsSettings()


class LedgerSettings(_Section):
    """PostgreSQL: the source of truth."""

    dsn: SecretStr | None = Field(
        None,
        description="PostgreSQL DSN; unset runs an embedded server in data_dir.",
        examples=["postgresql://personae@localhost/personae"],
    )
    pool_size: int = Field(8, ge=2, le=200, description="Connections per process.", examples=[8])
    commit_timeout_s: float = Field(
        5.0, gt=0, description="Seconds after which a commit counts as failed.", examples=[5]
    )
    lease_s: float = Field(
        10.0, ge=1, description="Seconds a running turn's lease lasts; renewed at a third of it.", examples=[10]
    )
    master_key: SecretStr | None = Field(
        None,
        description="Base64 of 32 bytes that wrap the scope keys. Required in production; "
        "development generates an owner-readable file.",
        examples=["output of: openssl rand -base64 32"],
    )
    checkpoint_interval_s: float = Field(
        60.0,
        gt=0,
        description="Seconds after which new entries of the audit log get a signed checkpoint.",
        examples=[60],
    )
    erasure_log: FilePath | None = Field(
        None,
        description="File to which the proof of every erasure is appended, so that a restored ledger erases again what"
        " it brought back; unset is erasures.jsonl in data_dir. Required in production on a cluster, on storage that"
        " all gateways share. Keep it apart from the ledger and its backups.",
        examples=["/var/lib/personae-log/erasures.jsonl"],
    )

    @field_validator("dsn")
    @classmethod
    def _is_postgresql(cls, dsn: SecretStr | None) -> SecretStr | None:
        if dsn is not None and not dsn.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("a DSN that starts with postgresql://")
        return dsn

    @field_validator("master_key")
    @classmethod
    def _is_32_bytes(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None:
            try:
                size = len(base64.b64decode(key.get_secret_value(), validate=True))
            except binascii.Error:
                size = 0
            if size != 32:
                raise ValueError("base64 of exactly 32 bytes")
        return key


class AdapterSettings(_Section):
    """A LoRA adapter that an engine can put on its model."""

    name: str = Field(
        pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$",
        description="What personas call it.",
        examples=["nadia-2026"],
    )
    path: FilePath = Field(
        description="Folder in PEFT's layout: adapter_config.json and adapter_model.safetensors.",
        examples=["/var/lib/personae/adapters/nadia-2026"],
    )


class EngineSettings(_Section):
    """The model that writes."""

    kind: Literal["llamacpp", "vllm", "synthetic"] = Field(
        "llamacpp", description="Which engine.", examples=["llamacpp"]
    )
    model: str = Field(
        "smollm2-135m-instruct",
        description="Model name, see `personae models list`.",
        examples=["smollm2-135m-instruct"],
    )
    threads: int = Field(0, ge=0, description="CPU threads of llama.cpp; 0 means all cores.", examples=[2])
    parallel: int = Field(
        16, ge=1, le=4096, description="Requests generated at once; with llama.cpp at most 256.", examples=[16]
    )
    max_waiting: int = Field(
        64, ge=0, description="Requests queued beyond that; more fail with RESOURCE_EXHAUSTED.", examples=[64]
    )
    context_tokens: int = Field(
        2048, ge=256, description="Context of one request, prompt and reply, tokens.", examples=[2048]
    )
    max_output_tokens: int = Field(
        160, ge=1, le=4096, description="Default length limit of a reply, tokens.", examples=[160]
    )
    temperature: float = Field(0.6, ge=0, le=2, description="Default sampling temperature.", examples=[0.6])
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="vLLM: what it computes in; `auto` is float32 on CPUs and the model's own on GPUs.",
        examples=["bfloat16"],
    )
    enforce_eager: bool | None = Field(
        None,
        description="vLLM: run without compiled graphs, which start slowly; unset is true on CPUs, false on GPUs.",
        examples=[True],
    )
    tensor_parallel_size: int = Field(
        1, ge=1, description="vLLM: workers that share each layer; must divide the attention heads.", examples=[2]
    )
    pipeline_parallel_size: int = Field(
        1, ge=1, description="vLLM: groups of workers that share the layers, GPUs only.", examples=[2]
    )
    data_parallel_size: int = Field(1, ge=1, description="vLLM: copies of the model in one engine.", examples=[2])
    executor: Literal["auto", "mp", "ray"] = Field(
        "auto",
        description="vLLM: how its workers are started; `ray` places them on several nodes.",
        examples=["ray"],
    )
    block_size: int | None = Field(
        None,
        ge=8,
        description="vLLM: tokens of a KV block, the grain of prefix reuse; unset is 32 on CPUs, its own on GPUs.",
        examples=[32],
    )
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        description="vLLM: KV cache of each worker, GiB; unset is 1 on CPUs, on GPUs what gpu_memory_utilization "
        "leaves.",
        examples=[4],
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="vLLM: share of each GPU's memory to use.", examples=[0.9]
    )
    batch_tokens: int | None = Field(
        None,
        ge=32,
        description="vLLM: tokens that one step reads, prompts and replies together; while it runs nobody gets a "
        "token. Unset is 256 on CPUs, its own on GPUs.",
        examples=[2048],
    )
    cpu_threads_bind: str | None = Field(
        None,
        pattern=r"^(auto|nobind|[0-9,-]+(\|[0-9,-]+)*)$",
        description="vLLM on CPUs: cores of each worker's threads, workers apart by `|`; unset leaves it to vLLM.",
        examples=["0-3|4-7"],
    )
    adapters: tuple[AdapterSettings, ...] = Field(
        (), description="vLLM: LoRA adapters that personas may name.", examples=[[]]
    )
    active_adapters: int = Field(
        4, ge=1, description="vLLM: adapters that one batch may mix; requests for more wait.", examples=[8]
    )
    watermark_key: FilePath | None = Field(
        None,
        description="vLLM: file of a key, base64 of 8 bytes (`openssl rand -base64 8`), by which replies to people bear"
        " a statistical watermark; unset marks nothing.",
        examples=["/etc/personae/watermark.key"],
    )
    otlp_traces_endpoint: str | None = Field(
        None,
        description="vLLM: OTLP/gRPC endpoint for its own spans, which join the turn's trace; unset makes none.",
        examples=["http://127.0.0.1:4317"],
    )
    synthetic_ttft_ms: float = Field(
        20.0, ge=0, description="Synthetic engine: milliseconds to the first token.", examples=[20]
    )
    synthetic_itl_ms: float = Field(
        10.0, ge=0, description="Synthetic engine: milliseconds between tokens.", examples=[10]
    )
    synthetic_tokens: int = Field(64, ge=1, description="Synthetic engine: tokens of a reply.", examples=[64])
    synthetic_delta_tokens: int = Field(
        8, ge=1, description="Synthetic engine: most tokens of a delta when synthetic_itl_ms is 0.", examples=[1]
    )
    synthetic_seed: int = Field(0, description="Synthetic engine: seed of clock and text.", examples=[0])
    synthetic_text: str | None = Field(
        None,
        description="Synthetic engine: the text to repeat; unset draws words by seed.",
        examples=["It is a fine day."],
    )

    @model_validator(mode="after")
    def _llamacpp_is_bounded(self) -> Self:
        if self.kind == "llamacpp" and self.parallel > 256:
            raise ValueError("parallel of at most 256 with llama.cpp")
        return self

    @model_validator(mode="after")
    def _vllm_marks(self) -> Self:
        if self.watermark_key is not None and self.kind != "vllm":
            raise ValueError(f'kind "vllm" with watermark_key, as the engine {self.kind} makes no watermark')
        return self

    @field_validator("adapters")
    @classmethod
    def _adapters_differ(cls, adapters: tuple[AdapterSettings, ...]) -> tuple[AdapterSettings, ...]:
        if len({adapter.name for adapter in adapters}) < len(adapters):
            raise ValueError("adapters that differ in `name`")
        return adapters


class QdrantSettings(_Section):
    """A Qdrant server as the memory index, for all hosts of one ledger. `personae memory init` lays it out."""

    url: str | None = Field(
        None,
        description="Address of its gRPC port, http or https; unset keeps the index in data_dir (Qdrant Edge).",
        examples=["https://qdrant.internal:6334"],
    )
    api_key: SecretStr | None = Field(
        None, description="Its API key, one that may write.", examples=["output of: openssl rand -hex 24"]
    )
    ca: FilePath | None = Field(
        None,
        description="PEM file of the authorities of its certificate; unset takes those that gRPC ships.",
        examples=["/etc/personae/tls/qdrant-ca.crt"],
    )
    allow_plaintext: bool = Field(
        False,
        description="Accept http to another machine: vectors and the API key then cross the network readable.",
        examples=[True],
    )
    collection: str = Field(
        "personae_memory",
        pattern=r"^[a-z][a-z0-9_]{0,62}$",
        description="Alias under which the collection is found; the collection itself has it as a prefix.",
        examples=["personae_memory"],
    )
    timeout_s: float = Field(5.0, gt=0, le=60, description="Seconds that a write may take.", examples=[5])
    search_timeout_s: float = Field(
        0.5, gt=0, le=60, description="Seconds that a search may take; a turn then goes on without it.", examples=[0.5]
    )
    shard_number: int = Field(
        1, ge=1, le=10_000, description="Shards of the collection, or of each shard key.", examples=[6]
    )
    shard_keys: int = Field(
        0,
        ge=0,
        le=1000,
        description="Shard keys over which scopes are spread by hash, so that a search asks the shards of one key;"
        " 0 leaves points to Qdrant, and a search asks all shards.",
        examples=[12],
    )
    replication_factor: int = Field(1, ge=1, le=10, description="Copies of each shard.", examples=[2])
    write_consistency_factor: int = Field(
        1, ge=1, le=10, description="Copies that must have a write before it counts as done.", examples=[1]
    )
    payload_m: int = Field(
        16, ge=4, le=128, description="Links of a point in the search graph of its own scope.", examples=[16]
    )
    on_disk: bool = Field(
        True, description="Leave vectors and sparse index on disk until they are asked for.", examples=[True]
    )
    quantization: Literal["int8", "none"] = Field(
        "int8", description="Form of the dense vectors that searches read, kept in memory.", examples=["int8"]
    )

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        if url is None:
            return url
        try:
            parts = urlsplit(url)
            right = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
        except ValueError:
            right = False
        if not right or parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
            raise ValueError("http:// or https://, a host, and a port unless it is 6334")
        return url

    @model_validator(mode="after")
    def _is_private(self) -> Self:
        scheme, host, _ = self.address
        if scheme == "http" and not is_loopback(host) and not self.allow_plaintext:
            raise ValueError("an https URL, as the host is another machine; or allow_plaintext = true")
        if self.write_consistency_factor > self.replication_factor:
            raise ValueError("write_consistency_factor of at most replication_factor")
        return self

    @property
    def address(self) -> tuple[str, str, int]:
        """Scheme, host and gRPC port; loopback if `url` is unset."""
        parts = urlsplit(self.url or "http://127.0.0.1")
        return parts.scheme, parts.hostname or "", parts.port or 6334


class RetentionSettings(_Section):
    """How long memories are kept. Pinned ones stay."""

    episode_days: float | None = Field(
        None,
        gt=0,
        description="Days after which words are forgotten, unless a fact that still holds rests on them; unset is"
        " never.",
        examples=[365],
    )
    fact_days: float | None = Field(
        None,
        gt=0,
        description="Days since it was last said after which a fact is forgotten; unset is never.",
        examples=[1095],
    )
    closed_fact_days: float | None = Field(
        1095.0,
        gt=0,
        description="Days after which a fact is forgotten that has ceased to hold; unset is never.",
        examples=[1095],
    )
    max_facts: int = Field(
        300,
        ge=10,
        description="Facts of one user; beyond it those go that are over, then those that were said longest ago.",
        examples=[300],
    )
    sweep_interval_s: float = Field(
        600.0, gt=0, description="Seconds between two looks for what is due to be forgotten.", examples=[600]
    )


class ExtractionSettings(_Section):
    """Facts that the engine draws in the background, beside those that rules draw at once."""

    enabled: bool = Field(False, description="Let the engine read what people said.", examples=[True])
    batch: int = Field(16, ge=1, le=100, description="Most messages of one person in one request.", examples=[16])
    poll_s: float = Field(
        5.0, gt=0, description="Seconds between looks for new messages, or for a free place.", examples=[5]
    )


class MemorySettings(_Section):
    """Recall."""

    enabled: bool = Field(True, description="Recall and remember.", examples=[True])
    recall_limit: int = Field(5, ge=1, le=50, description="Memories put before the model in one turn.", examples=[5])
    passage_limit: int = Field(
        3, ge=1, le=20, description="Passages of the persona's own words before the model in one turn.", examples=[3]
    )
    dense: bool = Field(True, description="Use the dense (embedding) arm beside the lexical one.", examples=[True])
    dense_deadline_ms: float = Field(
        25.0, ge=0, description="Milliseconds the embedding may take before recall goes on without it.", examples=[25]
    )
    qdrant: QdrantSettings = QdrantSettings()
    facts: bool = Field(
        True, description="Draw facts from the person's own words, by rules, as they are written.", examples=[True]
    )
    fact_limit: int = Field(3, ge=0, le=20, description="Facts put before the model in one turn.", examples=[3])
    retention: RetentionSettings = RetentionSettings()
    extraction: ExtractionSettings = ExtractionSettings()


class GuardModelSettings(_Section):
    """A published guard model, which the scorer `guard_model` asks. How it is run says its entry of `cluster.models`,
    whose `model` is the one that is named here; no persona can name it."""

    family: Literal["llama_guard", "granite_guardian", "granite_guardian_3_3", "qwen3guard", "shieldgemma"] | None = (
        Field(
            None,
            description="How the model is asked and answers: Llama Guard 3 and 4, Granite Guardian 3.0 to 3.2 or 3.3,"
            " Qwen3Guard-Gen, ShieldGemma.",
            examples=["llama_guard"],
        )
    )
    model: str | None = Field(
        None,
        min_length=1,
        description="The `model` of an entry of `cluster.models` of kind `vllm`.",
        examples=["llama-guard-3-8b"],
    )
    guidelines: FilePath | None = Field(
        None,
        description="YAML file of ShieldGemma's guidelines, in the words of its model card; unset asks in ours.",
        examples=["policy/shieldgemma.yaml"],
    )
    deadline_ms: float = Field(
        2000.0,
        gt=0,
        description="Milliseconds after which the guard model counts as failed, which blocks.",
        examples=[2000],
    )


class PolicySettings(_Section):
    """The policy gate."""

    bundle: FilePath | None = Field(
        None,
        description="Bundle file, with its signature beside it (`.sig`); unset is the one that ships.",
        examples=["policy/bundle.yaml"],
    )
    trusted_keys: tuple[str, ...] = Field(
        (),
        description="Public keys, base64 of 32 bytes, of those who may sign bundles (`personae policy keygen`).",
        examples=[["I0PfOS/cD1RL0WTXm+8Twb1E38jPQ5FD99vVmKbp6Xc="]],
    )
    allow_unsigned: bool | None = Field(
        None,
        description="Load bundles without a signature. Unset: in a development profile that listens on loopback only."
        " Production refuses it.",
        examples=[False],
    )
    scorers: tuple[Literal["ngram", "injection", "cascade", "language", "guard_model"], ...] = Field(
        ("ngram", "injection"),
        description="Scorers before every released unit. `cascade` gives any harm, and `injection` its second stage; it"
        " needs the embedding model (`personae models pull`). `language` tells what is in none of `policy.languages`"
        " (120 MB). `guard_model` asks the model `policy.guard_model.model`. Only a development profile may run"
        " without.",
        examples=[["ngram", "injection"], ["ngram", "injection", "cascade"]],
    )
    guard_model: GuardModelSettings = GuardModelSettings()
    languages: tuple[str, ...] = Field(
        ("en",),
        min_length=1,
        description="ISO 639-1 codes of the languages that your rules and reviewers read; the others score as"
        " `other_language` where the scorer `language` runs.",
        examples=[["en", "pt"]],
    )
    scorer_timeout_ms: float = Field(
        1000.0, gt=0, description="Milliseconds after which a scorer counts as failed, which blocks.", examples=[1000]
    )
    redress: str = Field(
        "You can ask the operator of this service to look at the decision again, naming it, and go to court.",
        min_length=1,
        description="What statements of reasons say a person can do about a decision; name your own contact here, and"
        " the out-of-court bodies that apply.",
        examples=["Write to appeals@example.com and name the decision. You can also go to court."],
    )

    @field_validator("trusted_keys")
    @classmethod
    def _are_public_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        for key in keys:
            try:
                decoded = base64.b64decode(key, validate=True)
            except binascii.Error:
                decoded = b""
            if len(decoded) != 32:
                raise ValueError("base64 of 32 bytes each, as `personae policy keygen` prints")
        return keys


class ReviewSettings(_Section):
    """Appeals against decisions and their reviews."""

    appeal_days: int = Field(
        183,
        ge=1,
        description="Days after a decision in which it can be appealed. The Digital Services Act, article 20(1), asks"
        " platforms for at least six months.",
        examples=[183],
    )
    lease_s: float = Field(
        1800.0, gt=0, description="Seconds after which a review that was taken goes back to the queue.", examples=[1800]
    )
    double_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of reviews that two people decide without knowing of each other, chosen by the decision's"
        " id; if they differ, a third decides.",
        examples=[0.1],
    )
    due_hours_escalated: float = Field(
        1.0,
        gt=0,
        description="Hours until the review of a decision that escalates is due, such as of imminent risk of suicide.",
        examples=[1],
    )
    due_hours_high: float = Field(
        24.0, gt=0, description="Hours until a review of severity 0.7 and more is due.", examples=[24]
    )
    due_hours_medium: float = Field(
        72.0, gt=0, description="Hours until a review of severity 0.4 and more is due.", examples=[72]
    )
    due_hours_low: float = Field(168.0, gt=0, description="Hours until any other review is due.", examples=[168])


class ReportSettings(_Section):
    """Transparency reports."""

    min_people: int = Field(
        5,
        ge=1,
        description="A number in a transparency report with fewer people behind it is suppressed, and with it what it"
        " would follow from; 1 suppresses none.",
        examples=[5],
    )
    sample_size: int = Field(
        100,
        ge=1,
        le=1000,
        description="Restrictions drawn at random for reviewers to look for false positives among.",
        examples=[100],
    )
    show_messages: bool = Field(
        False,
        description="Let reviewers of that sample read the message that a decision was about. People are not asked:"
        " turn it on only where your terms and your law allow it. Each look enters the audit log.",
        examples=[True],
    )


class ProvenanceSettings(_Section):
    """The certificate that exported content is signed with (C2PA). Read when a host starts."""

    certificate: FilePath | None = Field(
        None,
        description="PEM file of the certificate, followed by those up to its authority's. Unset, development signs"
        " with one of an authority of its own, and production exports no content.",
        examples=["/etc/personae/content/chain.crt"],
    )
    private_key: FilePath | None = Field(
        None,
        description="PEM file of the certificate's key, without a password: Ed25519, RSA, P-256, P-384 or P-521.",
        examples=["/etc/personae/content/content.key"],
    )


class SessionSettings(_Section):
    """Turns and their limits."""

    orphan_timeout_s: float = Field(
        30.0, gt=0, description="Seconds without any view after which a turn is cancelled.", examples=[30]
    )
    turn_timeout_s: float = Field(300.0, gt=0, description="Seconds a turn may run.", examples=[300])
    max_running_turns: int = Field(
        1000, ge=1, description="Turns at once per process; more fail with RESOURCE_EXHAUSTED.", examples=[1000]
    )
    turns_per_minute: int = Field(
        120, ge=1, description="Turns per user and minute; more fail with RESOURCE_EXHAUSTED.", examples=[120]
    )
    history_tokens: int = Field(
        900, ge=0, description="History put before the model, tokens; truncated in big steps.", examples=[900]
    )
    coalesce_max_ms: float = Field(
        100.0, ge=0, description="Longest a cleared unit waits for company under load, milliseconds.", examples=[100]
    )
    coalesce_max_chars: int = Field(
        1000,
        ge=200,
        description="Cleared characters of a turn that may wait for the ledger before its engine's stream waits too;"
        " only an engine that outruns the ledger gets there, and its text leaves in events of about this size.",
        examples=[200],
    )


class AbuseSettings(_Section):
    """Limits beside `sessions.turns_per_minute`, and the circuit breaker. 0 turns a limit off."""

    turns_per_minute_by_owner: int = Field(
        6000, ge=0, description="Turns per minute of all personas of one owner together.", examples=[6000]
    )
    turns_per_minute_by_device: int = Field(
        240, ge=0, description="Turns per minute from one device, of whichever persons and personas.", examples=[240]
    )
    turns_per_minute_by_network: int = Field(
        1200,
        ge=0,
        description="Turns per minute from one network, of whichever persons and personas; a school is one network.",
        examples=[1200],
    )
    personas_per_day_by_owner: int = Field(
        100, ge=0, description="Personas that one owner may create in a day.", examples=[100]
    )
    duplicate_personas: int = Field(
        50,
        ge=0,
        description="Personas of a tenant that may be sent about the same text within the window; more are refused.",
        examples=[50],
    )
    duplicate_window_s: float = Field(
        3600.0, gt=0, le=86400, description="Seconds for which a text counts as sent lately.", examples=[3600]
    )
    duplicate_min_chars: int = Field(
        100,
        ge=20,
        description="Letters and digits from which texts are compared; shorter ones are alike by chance.",
        examples=[100],
    )
    duplicate_similarity: float = Field(
        0.7,
        ge=0.5,
        le=1,
        description="Share of their 5-grams that two texts have in common to be about the same.",
        examples=[0.8],
    )
    breaker_blocks: int = Field(
        30,
        ge=0,
        description="Blocked turns of a persona, or of a tenant, in the window that open its breaker.",
        examples=[30],
    )
    breaker_share: float = Field(
        0.5, gt=0, le=1, description="And at least so large a share of its turns in the window.", examples=[0.5]
    )
    breaker_window_s: float = Field(60.0, ge=2, le=3600, description="Seconds over which it counts.", examples=[60])
    breaker_cooldown_s: float = Field(
        60.0,
        gt=0,
        description="Seconds that it stays open; doubled, up to eight times, when a probe is blocked.",
        examples=[60],
    )
    breaker_probes: int = Field(
        3, ge=1, description="Turns let through half open, none of which may be blocked for it to close.", examples=[3]
    )
    breaker_blocks_by_person: int = Field(
        3, ge=1, description="Blocked turns in the window that count of one person.", examples=[3]
    )


class ApiKey(_Section):
    """A key and what it may do."""

    id: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Name in logs and traces.", examples=["backend-1"]
    )
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="Hex SHA-256 of the key; the key itself is never stored.",
        examples=["output of: printf %s KEY | sha256sum"],
    )
    tenant: str = Field(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", description="The tenant it speaks for.", examples=["acme"]
    )
    user: str | None = Field(
        None, description="Set, it is a user token: only this user's sessions and memories.", examples=["u-17"]
    )
    permissions: tuple[str, ...] = Field(
        ("*",),
        description="Permissions such as `sessions.converse`; `*` is all.",
        examples=[["sessions.*", "memories.list"]],
    )


class JwtSettings(_Section):
    """JSON Web Tokens of an identity provider, beside API keys. Unset `issuer`, `audience` and `jwks` is none."""

    issuer: str | None = Field(
        None, min_length=1, description="The `iss` that tokens must have.", examples=["https://id.example.com/"]
    )
    audience: str | None = Field(
        None, min_length=1, description="The `aud` that tokens must have, or have among others.", examples=["personae"]
    )
    algorithm: Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"] = (
        Field(
            "RS256",
            description="The one algorithm that tokens are signed with; a token that names another is refused.",
            examples=["ES256"],
        )
    )
    jwks: str | None = Field(
        None,
        description="Where the public keys are: an https URL (http on loopback only), or a file (JSON Web Key Set).",
        examples=["https://id.example.com/.well-known/jwks.json"],
    )
    jwks_ttl_s: float = Field(
        300.0, gt=0, description="Seconds after which the keys are read again, in the background.", examples=[300]
    )
    jwks_retry_s: float = Field(
        10.0,
        gt=0,
        description="Least seconds between two reads, also after a failed one or for a token with an unknown key.",
        examples=[10],
    )
    jwks_max_age_s: float = Field(
        3600.0,
        gt=0,
        description="Seconds that keys serve while they can't be read again; then every token is refused.",
        examples=[3600],
    )
    jwks_timeout_s: float = Field(5.0, gt=0, le=60, description="Seconds that a read may wait.", examples=[5])
    tenant_claim: str = Field(
        "tenant", min_length=1, description="Claim that holds the tenant.", examples=["https://acme.example/tenant"]
    )
    permissions_claim: str = Field(
        "permissions",
        min_length=1,
        description="Claim that holds the permissions: a list, or text with spaces between; absent is none.",
        examples=["scope"],
    )
    role_claim: str = Field(
        "personae_role",
        min_length=1,
        description="Claim that says whose the token is: `service`, or `user` (also if absent), whose user is `sub`.",
        examples=["personae_role"],
    )
    leeway_s: float = Field(
        30.0, ge=0, le=300, description="Seconds that the issuer's clock may differ from this one.", examples=[30]
    )
    max_lifetime_s: float = Field(
        3600.0, gt=0, description="Longest that a token may live, `exp` less `iat`, seconds.", examples=[3600]
    )

    @property
    def enabled(self) -> bool:
        """Whether tokens are accepted."""
        return self.issuer is not None

    @field_validator("jwks")
    @classmethod
    def _is_read_safely(cls, jwks: str | None) -> str | None:
        if jwks is None or "://" not in jwks:
            return jwks
        url = urlsplit(jwks)
        if url.hostname and (url.scheme == "https" or (url.scheme == "http" and is_loopback(url.hostname))):
            return jwks
        raise ValueError("an https URL, or a file: whoever can change the keys on their way can make tokens")

    @model_validator(mode="after")
    def _ages_are_ordered(self) -> Self:
        if self.jwks_max_age_s < self.jwks_ttl_s:
            raise ValueError("jwks_max_age_s of at least jwks_ttl_s")
        return self


class AuthSettings(_Section):
    """Who may call."""

    api_keys: tuple[ApiKey, ...] = Field(
        (),
        description="Keys. A development profile with neither keys nor JWT makes a key and prints it once.",
        examples=[[]],
    )
    jwt: JwtSettings = JwtSettings()

    @field_validator("api_keys")
    @classmethod
    def _keys_differ(cls, keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        for name in ("id", "sha256"):
            if len({getattr(key, name) for key in keys}) < len(keys):
                raise ValueError(f"keys that differ in `{name}`")
        return keys


class TelemetrySettings(_Section):
    """Traces, metrics and logs."""

    otlp_endpoint: str | None = Field(
        None, description="OTLP/gRPC endpoint; unset exports nothing.", examples=["http://127.0.0.1:4317"]
    )
    service_name: str = Field(
        "personae-gateway", description="`service.name` of the resource.", examples=["personae-gateway"]
    )
    trace_sample_ratio: float = Field(1.0, ge=0, le=1, description="Share of turns traced.", examples=[0.1])
    metric_interval_s: float = Field(15.0, gt=0, description="Seconds between metric exports.", examples=[15])
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe level logged.", examples=["INFO"]
    )
    log_format: Literal["json", "console"] = Field("json", description="`console` for people.", examples=["json"])


class ReplicaSettings(_Section):
    """How many replicas a deployment has and what each is given."""

    min_replicas: int = Field(1, ge=0, description="Fewest replicas.", examples=[1])
    max_replicas: int = Field(1, ge=1, description="Most replicas.", examples=[4])
    num_cpus: float = Field(1.0, ge=0, description="Processors that Ray sets aside for a replica.", examples=[1])
    upscale_delay_s: float = Field(
        5.0, ge=0, description="Seconds that load must stay above the target before replicas are added.", examples=[5]
    )
    downscale_delay_s: float = Field(
        300.0, ge=0, description="Seconds that load must stay below the target before replicas go.", examples=[300]
    )

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("max_replicas of at least min_replicas")
        return self


class GatewayDeploymentSettings(ReplicaSettings):
    """The gateway deployment."""

    # Nobody can call a gateway that is not there, so that none would ever start again.
    min_replicas: int = Field(1, ge=1, description="Fewest replicas.", examples=[1])
    target_streams: int = Field(400, ge=1, description="Open streams per replica that scaling aims at.", examples=[400])
    target_admission_ms: float = Field(
        100.0, gt=0, description="Milliseconds to the first event (p95) above which replicas are added.", examples=[100]
    )


class ModelDeploymentSettings(EngineSettings, ReplicaSettings):
    """A model deployment: an engine, and its replicas."""

    num_gpus: float = Field(0.0, ge=0, description="GPUs of one engine worker.", examples=[1])
    target_ongoing: float = Field(
        0.0,
        ge=0,
        description="Requests per replica that scaling aims at; 0 means three quarters of `parallel`.",
        examples=[48],
    )


class MemoryDeploymentSettings(_Section):
    """The memory deployment: one replica, as one process follows the ledger into the index."""

    num_cpus: float = Field(1.0, ge=0, description="Processors that Ray sets aside for the replica.", examples=[1])


class ClusterSettings(_Section):
    """The Ray Serve application that `personae up --cluster` deploys."""

    address: str | None = Field(
        None, description="Ray cluster to deploy to; unset starts one on this machine.", examples=["auto"]
    )
    application: str = Field("personae", description="Name of the Serve application.", examples=["personae"])
    models: tuple[ModelDeploymentSettings, ...] = Field(
        (),
        description="One model deployment each; the first is the default. The one named by `policy.guard_model.model`"
        " is for the scorer `guard_model` alone. None beside it means one of `[engine]`.",
        examples=[[]],
    )
    gateway: GatewayDeploymentSettings = GatewayDeploymentSettings()
    memory: MemoryDeploymentSettings = MemoryDeploymentSettings()
    guard: ReplicaSettings = ReplicaSettings()
    guard_scorers: tuple[Literal["ngram", "injection", "cascade"], ...] = Field(
        (),
        description="Those of `policy.scorers` that run in the guard deployment, batched over all gateways; the others"
        " run in each gateway. With `cascade` the guard opens the embedding model, and gateways need none.",
        examples=[["ngram"], ["cascade"]],
    )
    dashboard: bool = Field(
        True,
        description="Start Ray's dashboard, on loopback, with a cluster on this machine; `serve status` asks it.",
        examples=[True],
    )
    affinity_load_factor: float = Field(
        1.25,
        gt=1,
        description="A replica takes at most this many times the mean load before sessions go to the next on the ring.",
        examples=[1.25],
    )
    token_coalesce_ms: float = Field(
        20.0,
        ge=0,
        description="Most milliseconds, reached with the load, between what a model replica hands on of one reply: the"
        " first delta at once, then whole units of the stream gate; 0 hands on every delta.",
        examples=[20],
    )

    @field_validator("models")
    @classmethod
    def _models_differ(cls, models: tuple[ModelDeploymentSettings, ...]) -> tuple[ModelDeploymentSettings, ...]:
        if len({model.model for model in models}) < len(models):
            raise ValueError("models that differ in `model`")
        return models


def _incomplete(tls: TlsSettings, jwt: JwtSettings) -> dict[str, str]:
    """Keys of TLS and JWT that others need beside them."""
    wrong: dict[str, str] = {}
    served = {"certificate": tls.certificate, "private_key": tls.private_key}
    if any((*served.values(), tls.client_ca, tls.require_client_certificate)):
        for name, value in served.items():
            if value is None:
                wrong[f"gateway.tls.{name}"] = "set, as other keys of gateway.tls are"
    if tls.require_client_certificate and tls.client_ca is None:
        wrong["gateway.tls.client_ca"] = "set, as require_client_certificate is"
    needed = {"issuer": jwt.issuer, "audience": jwt.audience, "jwks": jwt.jwks}
    if any(needed.values()):
        for name, text in needed.items():
            if text is None:
                wrong[f"auth.jwt.{name}"] = "set, as other keys of auth.jwt are"
    return wrong


def default_data_dir() -> Path:
    """`~/.local/share/personae`, or under XDG_DATA_HOME."""
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "personae"


def default_models_dir() -> Path:
    """Beside the installed packages, so that a virtual environment holds its own models."""
    return Path(sys.prefix) / "share" / "personae" / "models"


class Settings(BaseSettings):
    """Everything a host can be told."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    profile: Literal["development", "production"] = Field(
        "development",
        description="`production` turns off reflection, generated keys and the synthetic engine.",
        examples=["production"],
    )
    data_dir: FilePath = Field(
        default_factory=default_data_dir,
        description="Where the embedded host keeps its state.",
        examples=["/var/lib/personae"],
        json_schema_extra={"default": "~/.local/share/personae"},
    )
    models_dir: FilePath = Field(
        default_factory=default_models_dir,
        description="Where model files lie.",
        examples=["/opt/personae/models"],
        json_schema_extra={"default": "share/personae/models in the Python environment"},
    )
    gateway: GatewaySettings = GatewaySettings()
    ledger: LedgerSettings = LedgerSettings()
    engine: EngineSettings = EngineSettings()
    memory: MemorySettings = MemorySettings()
    policy: PolicySettings = PolicySettings()
    reviews: ReviewSettings = ReviewSettings()
    reports: ReportSettings = ReportSettings()
    provenance: ProvenanceSettings = ProvenanceSettings()
    sessions: SessionSettings = SessionSettings()
    abuse: AbuseSettings = AbuseSettings()
    auth: AuthSettings = AuthSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    cluster: ClusterSettings = ClusterSettings()

    @property
    def model_deployments(self) -> tuple[ModelDeploymentSettings, ...]:
        """The models that personas may name, the default first: `cluster.models` without the guard model, or `[engine]`
        alone."""
        named = tuple(model for model in self.cluster.models if model.model != self.policy.guard_model.model)
        return named or (ModelDeploymentSettings(**self.engine.model_dump()),)

    @property
    def guard_model_deployment(self) -> ModelDeploymentSettings | None:
        """How the model of `policy.guard_model` is run; None if no entry of `cluster.models` says."""
        named = self.policy.guard_model.model
        return next((model for model in self.cluster.models if model.model == named), None)

    @property
    def every_deployment(self) -> tuple[ModelDeploymentSettings, ...]:
        """`model_deployments`, and after them that of the guard model, where its scorer runs."""
        guard = self.guard_model_deployment if "guard_model" in self.policy.scorers else None
        return (*self.model_deployments, guard) if guard is not None else self.model_deployments

    @property
    def unsigned_bundles(self) -> bool:
        """Whether policy bundles may come without a signature."""
        if self.policy.allow_unsigned is not None:
            return self.policy.allow_unsigned
        return self.profile == "development" and is_loopback(self.gateway.host)

    @model_validator(mode="after")
    def _keys_fit_together(self) -> Self:
        wrong = {
            **_incomplete(self.gateway.tls, self.auth.jwt),
            **self._unsafe_in_production(),
            **self._exposed(),
            **self._unguarded(),
        }
        signing = {"certificate": self.provenance.certificate, "private_key": self.provenance.private_key}
        if any(signing.values()):
            wrong |= {
                f"provenance.{name}": "set, as the other key of provenance is"
                for name, value in signing.items()
                if value is None
            }
        if wrong:
            # One error that names several keys: a validator of the whole model has no key of its own.
            raise PydanticCustomError("keys_together", "settings that don't fit together", {"wrong": wrong})
        return self

    def _unsafe_in_production(self) -> dict[str, str]:
        if self.profile != "production":
            return {}
        wrong: dict[str, str] = {}
        if self.ledger.master_key is None:
            wrong["ledger.master_key"] = "set in production: only development generates a key"
        if self.cluster.address is not None and self.ledger.erasure_log is None:
            # A node's data_dir goes with the node, and a restore would bring back what was erased.
            wrong["ledger.erasure_log"] = "set in production on a cluster: a file on storage that all gateways share"
        if self.engine.kind == "synthetic":
            wrong["engine.kind"] = "an engine with a model: `synthetic` is for load tests in development"
        if any(model.kind == "synthetic" for model in self.cluster.models):
            wrong["cluster.models"] = "engines with a model: `synthetic` is for load tests in development"
        if self.policy.allow_unsigned:
            wrong["policy.allow_unsigned"] = "false or unset in production: only development loads unsigned bundles"
        if not self.policy.scorers:
            wrong["policy.scorers"] = "at least one scorer: only development may run without"
        return wrong

    def _unguarded(self) -> dict[str, str]:
        """What the scorer `guard_model` needs and has not."""
        if "guard_model" not in self.policy.scorers:
            return {}
        chosen, entry = self.policy.guard_model, self.guard_model_deployment
        wrong = {
            f"policy.guard_model.{name}": "set, as policy.scorers has guard_model"
            for name, value in (("family", chosen.family), ("model", chosen.model))
            if value is None
        }
        if chosen.guidelines is not None and chosen.family != "shieldgemma":
            wrong["policy.guard_model.guidelines"] = "unset: only the family shieldgemma takes guidelines"
        if chosen.model is not None and (entry is None or entry.kind != "vllm" or not entry.min_replicas):
            wrong["cluster.models"] = (
                f'an entry with model = "{chosen.model}", kind = "vllm" and min_replicas of at least 1, as'
                " policy.guard_model names it"
            )
        return wrong

    def _exposed(self) -> dict[str, str]:
        """What is missing to serve other machines."""
        if is_loopback(self.gateway.host):
            return {}
        wrong: dict[str, str] = {}
        why = f"set, as gateway.host ({self.gateway.host}) is not a loopback address"
        if self.gateway.tls.certificate is None:
            wrong["gateway.tls.certificate"] = why
        if self.gateway.tls.private_key is None:
            wrong["gateway.tls.private_key"] = why
        if not self.auth.api_keys and not self.auth.jwt.enabled:
            wrong["auth.jwt.issuer"] = f"{why}; or at least one of auth.api_keys"
        return wrong

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The file's values come in by `_file`, below the environment.
        init = dict(cast(InitSettingsSource, init_settings).init_kwargs)
        file_values = cast("dict[str, Any]", init.pop("_file", {}))
        return (
            InitSettingsSource(settings_cls, init),
            env_settings,
            InitSettingsSource(settings_cls, file_values),
        )


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting, as documentation and error messages show it.

    Attributes:
        key: dotted, as in the TOML file: `gateway.port`.
        env: environment variable: `PERSONAE_GATEWAY__PORT`.
        type: what is accepted, in words: "integer, 0 to 65535".
        default: as TOML; "unset" for None, words where it depends on the machine.
        description: one or two sentences.
        example: as TOML.
        secret: its value is never shown.
    """

    key: str
    env: str
    type: str
    default: str
    description: str
    example: str
    secret: bool


@dataclass(frozen=True, slots=True)
class EffectiveSetting:
    """A setting's value in force, as TOML and masked if secret, and where it comes from."""

    row: SettingRow
    value: str
    source: Literal["default", "file", "env", "argument"]


MASK = "********"
"""Shown in place of a secret."""


def load_settings(config_file: Path | None = None, **overrides: Any) -> Settings:
    """The settings in force.

    Args:
        config_file: TOML file; None takes the one that PERSONAE_CONFIG names, if any.
        overrides: top-level fields, above every other source; a section is given
            as a dict of the keys to change: `gateway={"port": 0}`.

    Raises:
        ConfigError: the file can't be read or parsed (with the line), or settings
            are wrong: the message lists each with its key, its environment
            variable, what was given (secrets masked), what is expected and an
            example. `metadata["keys"]` names them, comma-separated.
    """
    sources = _Sources.read(config_file, overrides)
    problems = [*_unparsable_environment(), *_unknown_environment()]
    if not problems:
        try:
            return Settings(_file=sources.file, **overrides)  # type: ignore[call-arg]
        except ValidationError as error:
            problems = _problems_of(error, sources)
    noun = "setting is" if len(problems) == 1 else "settings are"
    raise ConfigError(
        f"The configuration can't be used: {len(problems)} {noun} wrong.\n" + "\n".join(p.text for p in problems),
        metadata={"keys": ",".join(p.key for p in problems)},
        violations=tuple((p.key, p.expected) for p in problems),
    ) from None


def describe() -> list[SettingRow]:
    """Every setting in the order of the model, the fields of list items left out."""
    return [_row(path, field) for path, field in _leaves(Settings)]


def effective_settings(config_file: Path | None = None, **overrides: Any) -> list[EffectiveSetting]:
    """Every setting with its value and source; arguments and errors as `load_settings`."""
    settings = load_settings(config_file, **overrides)
    sources = _Sources.read(config_file, overrides)
    rows = []
    for path, field in _leaves(Settings):
        row = _row(path, field)
        value: Any = settings
        for name in path:
            value = getattr(value, name)
        shown = MASK if row.secret and value is not None else _toml(value)
        rows.append(EffectiveSetting(row, shown, sources.of(path)))
    return rows


def configuration_markdown() -> str:
    """The page docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "<!-- Written by `make docs` from personae_runtime/config.py: change the descriptions there. -->",
        "",
        "Every setting can be given in a TOML file (`--config FILE` or `PERSONAE_CONFIG`) and by its environment",
        "variable, which is stronger. Lists and tables in the environment are JSON. Unknown keys are refused.",
        "`personae config show` prints what is in force and where it comes from, `personae config check` whether it",
        "can be used.",
        "",
        "```toml",
        "# personae.toml",
        'data_dir = "/var/lib/personae"',
        "",
        "[gateway]",
        "port = 7400",
        "",
        "[[auth.api_keys]]",
        'id = "backend-1"',
        f'sha256 = "{"0" * 64}"  # printf %s "$KEY" | sha256sum',
        'tenant = "acme"',
        "```",
    ]
    for title, intro, rows in _sections():
        lines += ["", f"## {title}", "", intro, "", "| key | accepts | default | meaning |", "|---|---|---|---|"]
        for row in rows:
            cells = (f"`{row.key}`<br>`{row.env}`", row.type, f"`{row.default}`", row.description)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    for path, item in _lists():
        lines += ["", f"### Items of `{path}`", "", "| key | accepts | meaning | example |", "|---|---|---|---|"]
        for name, field in item.model_fields.items():
            cells = (f"`{name}`", _accepts(field), field.description or "", f"`{_example(field)}`")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


# ── the fields, in words ─────────────────────────────────────────────────────


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _leaves(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for name, field in model.model_fields.items():
        section = _section_of(field)
        if section is None:
            yield (*prefix, name), field
        else:
            yield from _leaves(section, (*prefix, name))


def _section_fields(
    model: type[BaseModel], prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every section, and those within it."""
    for name, field in model.model_fields.items():
        section = _section_of(field)
        if section is not None:
            yield (*prefix, name), field
            yield from _section_fields(section, (*prefix, name))


def _item_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a list's items, if they are tables."""
    args = get_args(field.annotation)
    if get_origin(field.annotation) is tuple and isinstance(args[0], type) and issubclass(args[0], BaseModel):
        return args[0]
    return None


def _lists() -> Iterator[tuple[str, type[BaseModel]]]:
    """Settings that are lists of tables: key and the model of an item."""
    for path, field in _leaves(Settings):
        item = _item_of(field)
        if item is not None:
            yield ".".join(path), item


def _sections() -> Iterator[tuple[str, str, list[SettingRow]]]:
    rows = describe()
    yield "Host", (Settings.__doc__ or "").strip(), [row for row in rows if "." not in row.key]
    for name, field in Settings.model_fields.items():
        section = _section_of(field)
        if section is not None:
            yield f"`[{name}]`", (section.__doc__ or "").strip(), [r for r in rows if r.key.startswith(f"{name}.")]


def _env(path: tuple[str, ...]) -> str:
    return ENV_PREFIX + "__".join(path).upper()


def _row(path: tuple[str, ...], field: FieldInfo) -> SettingRow:
    return SettingRow(
        key=".".join(path),
        env=_env(path),
        type=_accepts(field),
        default=_default(field),
        description=field.description or "",
        example=_example(field),
        secret=_is_secret(field),
    )


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in (field.annotation, *get_args(field.annotation))


def _default(field: FieldInfo) -> str:
    if isinstance(field.json_schema_extra, dict):
        return str(field.json_schema_extra["default"])
    return _toml(field.default)


def _example(field: FieldInfo) -> str:
    return _toml(field.examples[0]) if field.examples else ""


def _toml(value: Any) -> str:
    """A value as TOML writes it, on one line."""
    match value:
        case None:
            return "unset"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case BaseModel():
            items = (f"{name} = {_toml(item)}" for name, item in value if item is not None)
            return "{" + ", ".join(items) + "}"
        case list() | tuple():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case _:
            # A JSON string is a TOML basic string.
            return json.dumps(str(value), ensure_ascii=False)


_NOUNS: dict[Any, str] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    SecretStr: "secret text",
}


def _accepts(field: FieldInfo) -> str:
    """What a field accepts, in words: its type and bounds."""
    noun = _noun(field.annotation)
    bounds = {type(item): item for item in field.metadata}
    low, high = bounds.get(Ge), bounds.get(Le)
    if low is not None and high is not None:
        return f"{noun}, {low.ge} to {high.le}"
    if low is not None:
        return f"{noun}, at least {low.ge}"
    if Gt in bounds:
        return f"{noun}, more than {bounds[Gt].gt}"
    pattern = next((item.pattern for item in field.metadata if getattr(item, "pattern", None)), None)
    return f"{noun} matching `{pattern}`" if pattern else noun


def _noun(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _noun(args[0])
    if origin in (Union, types.UnionType):
        return _noun(next(arg for arg in args if arg is not type(None)))
    if origin is Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin is tuple:
        item = _noun(args[0])
        return f"list of {'tables' if item == 'table' else item}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return _NOUNS[annotation]


# ── what was given, and what is wrong with it ────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Sources:
    """Raw values as nested dicts, for messages that say where a value comes from."""

    config_file: Path | None
    file: dict[str, Any]
    arguments: dict[str, Any]

    @classmethod
    def read(cls, config_file: Path | None, arguments: dict[str, Any]) -> _Sources:
        if config_file is None and os.environ.get(CONFIG_FILE_ENV):
            config_file = Path(os.environ[CONFIG_FILE_ENV])
        return cls(config_file, _read_toml(config_file) if config_file else {}, arguments)

    def of(self, path: tuple[str, ...]) -> Literal["default", "file", "env", "argument"]:
        if _given(self.arguments, path):
            return "argument"
        names = {name.upper() for name in os.environ}
        if any(_env(path[: i + 1]) in names for i in range(len(path))):
            return "env"
        return "file" if _given(self.file, path) else "default"

    def phrase(self, path: tuple[str, ...]) -> str:
        match self.of(path):
            case "argument":
                return ", given as an argument"
            case "env":
                return ", set in the environment"
            case "file":
                return f", in {self.config_file}"
            case "default":
                return ""


def _given(values: Any, path: tuple[str, ...]) -> bool:
    for name in path:
        if not isinstance(values, Mapping) or name not in values:
            return isinstance(values, BaseModel)  # a whole section as an object
        values = values[name]
    return True


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.expanduser().read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} can't be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:  # its text ends with the line and column
        raise ConfigError(f"The configuration file {path} is not valid TOML: {error}.") from None


@dataclass(frozen=True, slots=True)
class _Problem:
    key: str
    expected: str
    text: str


def _problem(key: str, where: str, given: str | None, expected: str, example: str) -> _Problem:
    lines = [f"  {key} ({where})"]
    if given is not None:
        lines.append(f"    given:    {given}")
    lines.append(f"    expected: {expected}")
    if example:
        lines.append(f"    example:  {example}")
    return _Problem(key, expected, "\n".join(lines))


def _unparsable_environment() -> Iterator[_Problem]:
    """Lists and whole sections in the environment are JSON; say which one is not."""
    names = {name.upper(): value for name, value in os.environ.items()}
    complex_fields = [(path, field) for path, field in _leaves(Settings) if get_origin(field.annotation) is tuple]
    complex_fields += _section_fields(Settings)
    for path, field in complex_fields:
        env = _env(path)
        if env not in names:
            continue
        try:
            json.loads(names[env])
        except ValueError as error:
            example = json.dumps(field.examples[0]) if field.examples else "{}"
            yield _problem(".".join(path), env, None, f"JSON ({error})", f"{env}='{example}'")


def _unknown_environment() -> Iterator[_Problem]:
    """Variables that can only be a misspelt setting.

    The rest of `PERSONAE_*` belongs to others: tools, tests, the client.
    """
    known = [row.env for row in describe()]
    sections = [_env(path) for path, _ in _section_fields(Settings) if len(path) == 1]
    for name in sorted(os.environ):
        upper = name.upper()
        if not upper.startswith(ENV_PREFIX) or upper in known or upper in sections:
            continue
        if "__" in upper:
            misspelt = upper.split("__", 1)[0] not in sections  # within a section the model itself refuses
        else:
            misspelt = bool(difflib.get_close_matches(upper, [k for k in known if "__" not in k], 1, 0.85))
        if misspelt:
            yield _problem(name, "unknown variable in the environment", None, _did_you_mean(upper, known), "")


def _did_you_mean(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, 1, 0.6)
    return f"a known name; did you mean {close[0]}?" if close else "a known name: `personae config show` lists them"


def _problems_of(error: ValidationError, sources: _Sources) -> list[_Problem]:
    problems: list[_Problem] = []
    for item in error.errors(include_url=False):
        if item["type"] == "keys_together":
            for key, expected in item["ctx"]["wrong"].items():
                path = tuple(key.split("."))
                field = _field_at(path)
                assert field is not None
                problems.append(_problem(key, _env(path) + sources.phrase(path), None, expected, _example(field)))
            continue
        loc = item["loc"]
        key = ".".join(str(part) for part in loc)
        # Items of a list are set through the list's own variable.
        env_path = tuple(str(part) for part in itertools.takewhile(lambda part: isinstance(part, str), loc))
        in_list = len(env_path) < len(loc)
        field = _field_at(tuple(part for part in loc if isinstance(part, str)))
        if item["type"] == "extra_forbidden" or field is None:
            if in_list:
                around = _field_at(tuple(part for part in loc[:-1] if isinstance(part, str)))
                item_type = _item_of(around) if around is not None else None
                expected = _did_you_mean(str(loc[-1]), list(item_type.model_fields) if item_type else [])
            else:
                expected = _did_you_mean(key, [".".join(path) for path, _ in _leaves(Settings)])
            problems.append(_problem(key, "unknown key" + sources.phrase(env_path), None, expected, ""))
            continue
        given = None if item["type"] == "missing" else _given_text(item["input"], field)
        expected = item["msg"].removeprefix("Value error, ") if item["type"] == "value_error" else _accepts(field)
        problems.append(_problem(key, _env(env_path) + sources.phrase(env_path), given, expected, _example(field)))
    return problems


def _given_text(value: object, field: FieldInfo) -> str:
    if _is_secret(field):
        return MASK
    # What stands in the place of a section or a list may hold a secret somewhere.
    plain = isinstance(value, str | int | float) and _section_of(field) is None
    return repr(value) if plain else f"a {type(value).__name__}"


def _field_at(path: tuple[str, ...]) -> FieldInfo | None:
    """The field at a path; fields of list items are found by leaving the index out."""
    model: type[BaseModel] = Settings
    field: FieldInfo | None = None
    for name in path:
        field = model.model_fields.get(name)
        if field is None:
            return None
        if (item := _item_of(field)) is not None:
            model = item
        elif (section := _section_of(field)) is not None:
            model = section
    return field
