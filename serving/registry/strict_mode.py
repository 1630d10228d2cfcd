"""Strict mode: allows only versions that consist of data of known flavors, and cannot run code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from serving.contract.model_files import ModelFiles
from serving.promotion_errors import UntrustedArtifact

# The flavors whose files contain only data, and the suffixes of those files.
_LOADERS = {f"mlflow.{name}": name for name in ("sklearn", "xgboost", "lightgbm", "catboost", "onnx")}
_DATA = {".cbm", ".csv", ".json", ".lgb", ".md", ".onnx", ".parquet", ".skops", ".txt", ".ubj", ".xgb"}
_DATA |= {".yaml", ".yml", ""}
_NAMES_WITHOUT_SUFFIX = {"MLmodel"}
_PREDICT_FUNCTIONS = ("predict", "predict_proba", "predict_log_proba", "predict_joint_log_proba", "score")
_ONNX_PROVIDERS = ("CPUExecutionProvider", "CUDAExecutionProvider")
_ONNX_OPTIONS = {"inter_op_num_threads", "intra_op_num_threads", "execution_mode", "graph_optimization_level"}


def check(folder: Path, mlmodel: Mapping[str, Any], trusted: Sequence[str]) -> None:
    """Check that a downloaded version contains only data of a known flavor.

    Raises:
        UntrustedArtifact: it may contain code.
    """
    flavors = mlmodel.get("flavors")
    python = flavors.get("python_function") if isinstance(flavors, Mapping) else None
    if not isinstance(flavors, Mapping) or not isinstance(python, Mapping):
        raise UntrustedArtifact("its MLmodel file names no flavor that strict mode knows")
    name = _LOADERS.get(str(python.get("loader_module")))
    flavor = flavors.get(name) if name else None
    if not isinstance(flavor, Mapping):
        raise UntrustedArtifact(
            f"it is loaded by {python.get('loader_module')}, which may run code that comes with it: strict "
            f"mode allows {', '.join(_LOADERS.values())}"
        )
    if python.get("code") or flavor.get("code"):
        raise UntrustedArtifact("it contains code, which strict mode does not allow")
    own_class = str(flavor.get("model_class", f"{name}."))
    if not own_class.startswith(f"{name}."):
        raise UntrustedArtifact(f"it names {own_class[:100]} as its class, which is not of {name}")
    form = flavor.get("serialization_format", "pickle" if name == "sklearn" else "skops")
    if form != "skops":
        raise UntrustedArtifact(
            f"it is serialized by {form}, which strict mode does not allow: log it with skops"
        )
    if unknown := sorted({*map(str, flavor.get("skops_trusted_types") or ())} - {*trusted}):
        raise UntrustedArtifact(
            f"it needs types that are not in SERVING_TRUSTED_TYPES: {', '.join(unknown)[:500]}"
        )
    if python.get("predict_fn", "predict") not in _PREDICT_FUNCTIONS or python.get("streamable"):
        raise UntrustedArtifact("it names a predict function that strict mode does not allow")
    if name == "onnx":
        _check_onnx(flavor)
    for path in folder.rglob("*"):
        if path.is_file() and not (_is_data(path) and (path.name != "MLmodel" or path.parent == folder)):
            raise UntrustedArtifact(f"{path.relative_to(folder)} among its artifacts may hold code")


def _check_onnx(flavor: Mapping[str, Any]) -> None:
    """Check for providers and session options by which onnxruntime may load libraries."""
    providers, options = flavor.get("providers"), flavor.get("onnx_session_options")
    names = providers if isinstance(providers, list) else [providers]
    if any(name is not None and name not in _ONNX_PROVIDERS for name in names):
        raise UntrustedArtifact("it names onnxruntime providers that strict mode does not allow")
    if options and not (isinstance(options, Mapping) and options.keys() <= _ONNX_OPTIONS):
        raise UntrustedArtifact("it names onnxruntime options that strict mode does not allow")


def check_listed(files: ModelFiles) -> None:
    """Check that a version's files list packages only by name and version.

    Raises:
        UntrustedArtifact: they list one in another way.
    """
    for name, lines in _requirement_lists(files):
        for line in lines:
            try:
                is_plain = isinstance(line, str) and Requirement(line.partition(" #")[0]).url is None
            except (InvalidRequirement, RecursionError):
                is_plain = False
            if not is_plain and line != "-r requirements.txt":
                raise UntrustedArtifact(
                    f"its {name} requires {str(line)[:200]!r}: strict mode allows no such line"
                )


def _requirement_lists(files: ModelFiles) -> Iterator[tuple[str, Sequence[Any]]]:
    for name, key in (("python_env.yaml", "build_dependencies"), ("conda.yaml", "dependencies")):
        if fault := files.faults.get(name):
            raise UntrustedArtifact(f"its {name} can't be read: {fault}")
        entries = files.documents.get(name, {}).get(key) or []
        if not isinstance(entries, list):
            raise UntrustedArtifact(f"the {key} in its {name} are no list")
        if key == "build_dependencies":
            yield name, entries
        for entry in entries:
            if isinstance(entry, Mapping):
                pip = entry.get("pip") or []
                yield name, pip if isinstance(pip, list) else [pip]


def _is_data(path: Path) -> bool:
    if path.suffix not in _DATA or (not path.suffix and path.name not in _NAMES_WITHOUT_SUFFIX):
        return False
    with path.open("rb") as file:
        start = file.read(2)
    return not (start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05"))
