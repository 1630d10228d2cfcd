"""Removes privileges from model processes and protects the front's secrets from them.

Model code is arbitrary code. It must not read the memory or the environment of the front, even if both run as
the same user. The front and the model processes therefore refuse to be traced or dumped. Model processes also
drop all capabilities and receive only the environment variables on an allowlist.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from serving.processes.descendants import prctl

_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION = 0x20080522
_MAX_CAPABILITY = 63
PUBLIC_VARIABLES = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "LANG", "LANGUAGE", "LC_*", "TZ", "TERM", "COLUMNS"),
    *("TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "VIRTUAL_ENV"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "MALLOC_*", "DYLD_*", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONUNBUFFERED", "PYTHONWARNINGS", "PYTHONUTF8"),
    *(
        "PYTHONIOENCODING",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONPYCACHEPREFIX",
        "PYTHONMALLOC",
        "PYTHONNOUSERSITE",
    ),
    *("PYTHONFAULTHANDLER", "PYTHONOPTIMIZE", "PYTHONDEVMODE", "PYTHONTRACEMALLOC", "PYTHONUSERBASE"),
    *("OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "BLIS_*", "NUMEXPR_*", "GOTO_NUM_THREADS"),
    *("LOKY_MAX_CPU_COUNT", "JOBLIB_*", "SKLEARN_*", "NPY_*", "ARROW_*", "POLARS_MAX_THREADS", "NUMBA_*"),
    *("CUDA_*", "NVIDIA_*", "NCCL_*", "HIP_*", "ROCR_*", "HSA_*", "XLA_*", "TF_*", "TORCH_*", "PYTORCH_*"),
    *("KERAS_*", "JAX_*", "ORT_*", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_CACHE", "TRANSFORMERS_OFFLINE"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "NLTK_DATA", "MPLBACKEND"),
    *("MPLCONFIGDIR", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_CONFIGURE_LOGGING", "MLFLOW_LOGGING_LEVEL"),
    *("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "DO_NOT_TRACK", "SPARK_HOME", "JAVA_HOME", "COVERAGE_*"),
)
"""Environment variables that every model process receives; `*` matches any text. None holds a secret."""
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "API_KEY", "APIKEY", "PRIVATE")


def model_environment(variables: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Return the environment variables for model processes.

    Args:
        variables: The environment of the front.
        names: Patterns that the operator adds to `PUBLIC_VARIABLES`; `*` matches any text.
    """
    return {
        name: value
        for name, value in variables.items()
        if _matches(name, names) or (_matches(name, PUBLIC_VARIABLES) and not _looks_secret(name))
    }


def hide_memory() -> None:
    """Prevent other processes of the same user from tracing this process or dumping its memory."""
    prctl(_PR_SET_DUMPABLE, 0)


def drop_privileges() -> None:
    """Drop all capabilities, prevent new ones, and hide the memory of this process.

    Call it before `die_with_parent`: a change of capabilities may clear the parent-death signal.
    """
    if sys.platform != "linux":
        return
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(_MAX_CAPABILITY + 1):
        prctl(_PR_CAPBSET_DROP, capability)  # fails for capabilities that the kernel does not know
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    no_capabilities = (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset(header, no_capabilities)
    hide_memory()


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _looks_secret(name: str) -> bool:
    return any(word in name.upper() for word in _SECRET_WORDS)
