"""Locate and read labelled rows: a file of the version, or what the tag of its model names.

The tag is `URI#sha256=HEX` or `URI#sha256=HEX&target=COLUMN`; the URI is one that MLflow can download, and
names a Parquet or CSV file. Without `target`, the column `target` has the labels.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl, unquote

import pyarrow as pa
from pyarrow import compute, csv, parquet, types

from serving.promotion_errors import PromotionWaits
from serving.text import shorten
from serving.version import Artifacts

TAG = "serving.evaluation"
TARGET = "target"
OUTCOME = "serving.outcome"
"""The column of recorded outcomes: `target` may be an input of the model."""
OWN_FILES = ("extra_files/serving_evaluation.parquet", "serving_evaluation.parquet")
"""Files among the artifacts of a version that may hold its labelled rows."""
MAX_ROWS = 1_000_000
MAX_FILE_BYTES = 2**30
_MAX_REASON_LENGTH = 300
_MAX_BLOCK_BYTES = 64 * 2**20
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_JOURNAL = re.compile(r"journal:([1-9]\d{0,3})d", re.ASCII)
_FORMS = "write URI#sha256=HEX, where the URI names a Parquet or CSV file, or journal:7d"


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file with labelled rows, pinned by its digest."""

    uri: str
    sha256: str
    target: str = TARGET

    def __str__(self) -> str:
        return self.uri


@dataclass(frozen=True, slots=True)
class JournalSource:
    """The recorded predictions of the last days whose outcome is known."""

    days: int

    def __str__(self) -> str:
        return f"journal:{self.days}d"


@dataclass(frozen=True)
class LabelledRows:
    """Labelled rows.

    Args:
        table: the columns, without that of the labels.
        labels: the labels; text if they come from a CSV file.
        source: where they come from, for people.
        digest: identifies their content.
        typed_labels: the labels of a CSV file with the type that their text suggests; None if `labels` have
            a type of their own.
        target: the column of the labels in the source.
    """

    table: pa.Table
    labels: pa.Array
    source: str
    digest: str
    typed_labels: pa.Array | None = None
    target: str = TARGET

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def identity(self) -> tuple[str, str]:
        """Identify the rows and labels: another column of labels leaves other columns as inputs, too."""
        return self.digest, self.target

    def labels_for(self, classes: Sequence[str]) -> pa.Array:
        """Return the labels in the form in which they mean these classes, or numbers if there are none.

        The text `01`, `true` or `1.0` in a CSV file is a class if a model has a class of this name. Otherwise
        it is a number or a truth value.
        """
        if self.typed_labels is None:
            return self.labels
        is_class = compute.is_in(compute.unique(self.labels), pa.array(classes, pa.string()))
        return self.labels if compute.any(is_class).as_py() else self.typed_labels

    def columns(self, names: Sequence[str]) -> dict[str, pa.Array]:
        """Return those of the named columns that exist."""
        known = [name for name in names if name in self.table.column_names]
        return {name: _combined(self.table.column(name)) for name in known}


def parse_source(text: str) -> FileSource | JournalSource:
    """Return the source that the tag names.

    Raises:
        PromotionWaits: the tag has another form.
    """
    if match := _JOURNAL.fullmatch(text.strip()):
        return JournalSource(int(match[1]))
    uri, _, fragment = text.strip().partition("#")
    options = dict(parse_qsl(fragment))
    digest, target = options.pop("sha256", ""), options.pop("target", TARGET)
    if not uri or options or not _SHA256.fullmatch(digest):
        raise PromotionWaits(f"the tag {TAG} of its model cannot be read: {_FORMS}", retry=True)
    return FileSource(uri, digest.lower(), target)


def own_file(artifacts: Artifacts) -> Path | None:
    """Return the file of labelled rows among the artifacts of a version; None if there is none."""
    paths = [artifacts.folder / name for name in OWN_FILES]
    return next((path for path in paths if path.is_file()), None)


async def read_file(path: Path, source: str, digest: str, target: str = TARGET) -> LabelledRows:
    """Read labelled rows from a Parquet or CSV file.

    Raises:
        PromotionWaits: they cannot be read, or have no labels.
    """
    try:
        return await asyncio.to_thread(_read, path, source, digest, target)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        reason = shorten(" ".join(str(error).split()), _MAX_REASON_LENGTH)
        raise PromotionWaits(f"its labelled rows ({source}) cannot be read: {reason}", retry=True) from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, source: str, digest: str, target: str) -> LabelledRows:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"the file is larger than {MAX_FILE_BYTES >> 20} MB")
    if unquote(path.name).lower().endswith(".csv"):
        return _read_csv(path, source, digest, target)
    with parquet.ParquetFile(path) as file:
        _check_rows(file.metadata.num_rows)
        table = file.read(use_threads=False)
    return labelled(table, source, digest, target)


def _read_csv(path: Path, source: str, digest: str, target: str) -> LabelledRows:
    # Arrow derives the types from the first block: a fraction may follow a million whole numbers.
    options = csv.ReadOptions(use_threads=False, block_size=min(path.stat().st_size + 1, _MAX_BLOCK_BYTES))
    as_text = csv.ConvertOptions(column_types={target: pa.string()})
    table = csv.read_csv(path, options, convert_options=as_text)
    if target in table.column_names:
        texts = table.column(target)
        filled = compute.if_else(compute.equal(texts, ""), pa.scalar(None, pa.string()), texts)
        table = table.set_column(table.column_names.index(target), target, filled)
    rows = labelled(table, source, digest, target)
    only_labels = csv.ConvertOptions(include_columns=[target])
    typed = labelled(csv.read_csv(path, options, convert_options=only_labels), source, digest, target)
    return replace(rows, typed_labels=typed.labels)


def labelled(table: pa.Table, source: str, digest: str, target: str = TARGET) -> LabelledRows:
    """Return the rows of a table whose column `target` has the labels.

    Raises:
        ValueError: there are no rows, too many, or one without a label.
    """
    _check_rows(table.num_rows)
    if target not in table.column_names:
        raise ValueError(f"there is no column {target!r} with the labels")
    labels = _combined(table.column(target))
    if types.is_dictionary(labels.type):
        labels = labels.dictionary_decode()
    if missing := int(compute.sum(compute.is_null(labels, nan_is_null=True)).as_py()):
        raise ValueError(f"{missing} rows have no value in the column {target!r}")
    return LabelledRows(table.drop_columns([target]), labels, source, digest, target=target)


def _check_rows(rows: int) -> None:
    if not 0 < rows <= MAX_ROWS:
        raise ValueError(f"there are {rows:,} rows; 1 to {MAX_ROWS:,} are possible")


def _combined(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(column.chunks)
