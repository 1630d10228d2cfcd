"""Selects the environment variables for model processes: none that may hold a secret of the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

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


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _looks_secret(name: str) -> bool:
    return any(word in name.upper() for word in _SECRET_WORDS)
