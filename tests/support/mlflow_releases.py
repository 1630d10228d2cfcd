"""Models logged by older releases of MLflow, every one in a separate environment.

Run as a program, by an interpreter that has the release, this saves the models in a folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

PACKAGES = {
    "2.9.2": (
        "cloudpickle==3.0.0",
        "numpy==1.26.4",
        "pandas==1.5.3",
        "pydantic==1.10.21",
        "scikit-learn==1.5.2",
    ),
    "2.16.2": ("cloudpickle==3.0.0", "pandas==2.2.3", "numpy==1.26.4", "scikit-learn==1.5.2"),
    "2.22.4": (
        "cloudpickle==3.1.1",
        "numpy==2.2.6",
        "pandas==2.2.3",
        "pyarrow==18.1.0",
        "scikit-learn==1.6.1",
    ),
}
"""What models of a release were trained with."""


def uv() -> str:
    """Return the path of uv, which tests have beside their interpreter."""
    return str(Path(sys.executable).with_name("uv"))


def interpreter(wanted: str) -> Path | None:
    """Return a Python of this version, which uv or pyenv has; None where neither does."""
    command = [uv(), "python", "find", "--no-python-downloads", wanted]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode == 0:
        return Path(result.stdout.strip())
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    return next(iter(sorted(pyenv.glob(f"versions/{wanted}.*/bin/python{wanted}"))), None)


def environment(folder: Path, *packages: str, python: str | Path = sys.executable) -> Path:
    """Create an environment with these packages in `folder`, and return its interpreter."""
    venv = folder / "environment"
    subprocess.run([uv(), "venv", "--quiet", "--python", str(python), str(venv)], check=True)
    program = venv / "bin" / "python"
    subprocess.run([uv(), "pip", "install", "--quiet", "--python", str(program), *packages], check=True)
    return program


class OldModels:
    """Creates models of older releases below a folder, once per release."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.made = lru_cache(self._made)

    def __call__(self, release: str, python: str | Path = sys.executable) -> Path:
        """Return the folder in which a release has saved `classifier`, `boosting` and `function`."""
        return self.made(release, str(python))

    def _made(self, release: str, python: str) -> Path:
        folder = self._folder / f"{release}-{len([*self._folder.iterdir()])}"
        folder.mkdir()
        # The smaller package logs as the whole one does; a model that is served requires that.
        program = environment(
            folder, f"mlflow-skinny=={release}", "setuptools<81", *PACKAGES[release], python=python
        )
        subprocess.run([program, __file__, str(folder)], check=True, cwd=folder)
        return folder


def save(folder: Path) -> None:
    """Save two classifiers and a function of a table, with all that MLflow writes of them.

    A boosting of scikit-learn 1.5 can't be loaded by 1.8 or later.
    """
    import mlflow.pyfunc
    import mlflow.sklearn
    import pandas as pd
    from mlflow.models import infer_signature
    from mlflow.pyfunc import PythonModel
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    release = mlflow.__version__
    table = pd.DataFrame({"x": [0.0, 1.0, 2.0, 3.0], "name": ["a", "b", "c", "d"]})
    numbers = table[["x"]]
    requirements = [f"mlflow=={release}", *PACKAGES[release]]
    for name, estimator in (("classifier", LogisticRegression()), ("boosting", GradientBoostingClassifier())):
        model = estimator.fit(numbers, [0, 0, 1, 1])
        mlflow.sklearn.save_model(
            model,
            str(folder / name),
            signature=infer_signature(numbers, model.predict(numbers)),
            input_example=numbers[:2],
            pip_requirements=requirements,
        )

    class Function(PythonModel):
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # as in most models
            factor = (params or {}).get("factor", 2.0)
            rows = zip(model_input["x"], model_input["name"], strict=True)
            return [{"name": name, "parts": [x, factor * x]} for x, name in rows]

    mlflow.pyfunc.save_model(
        str(folder / "function"),
        python_model=Function(),
        signature=infer_signature(table, params={"factor": 2.0}),
        input_example=table[:2],
        pip_requirements=requirements,
    )


if __name__ == "__main__":
    save(Path(sys.argv[1]))
