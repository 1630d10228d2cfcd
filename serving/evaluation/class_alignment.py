"""Bring labels and the classes of two versions into one list of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serving.evaluation.class_codes import ClassNames, Values, enumeration, in_order, resolve
from serving.evaluation.intervals import Indices
from serving.evaluation.outcomes import UNKNOWN_PREDICTION, NoEvidence


@dataclass(frozen=True)
class VersionClasses:
    """The classes of a version.

    Args:
        names: the classes in the version's own order.
        are_declared: whether the metadata of the model has them; otherwise they are the predicted values.
    """

    names: Sequence[str]
    are_declared: bool


@dataclass(frozen=True)
class Alignment:
    """Labels and the classes of versions as indices of one list.

    Args:
        names: all classes: first the candidate's, then others of the champion, then unknown labels.
        declared: scores are about the first so many classes.
        width: probabilities can be predicted for the first so many classes.
        labels: the class of each row.
        versions: the classes of each version.
        places: by version, the index of each of its own classes.
        faults: by version, why its predictions cannot be compared with the labels; empty if they can.
    """

    names: Sequence[str]
    declared: int
    width: int
    labels: Indices
    versions: Sequence[VersionClasses]
    places: Sequence[Sequence[int]]
    faults: Sequence[str]

    def places_of(self, version: VersionClasses) -> Sequence[int]:
        """Return the index of each class of a version.

        Raises:
            NoEvidence: no label is one of them.
        """
        index = next(index for index, each in enumerate(self.versions) if each is version)
        if self.faults[index]:
            raise NoEvidence(self.faults[index])
        return self.places[index]


def align(labels: Values, candidate: VersionClasses, champion: VersionClasses | None = None) -> Alignment:
    """Return labels and the classes of versions as indices of one list."""
    aligned = _by_declaration if candidate.are_declared else _by_values
    return aligned(labels, candidate, champion)


def _by_declaration(labels: Values, candidate: VersionClasses, champion: VersionClasses | None) -> Alignment:
    """Let scores be about the candidate's classes only: an unknown label does not change their meaning."""
    shared, declared = ClassNames(candidate.names), len(candidate.names)
    found, are_ids = resolve(labels.texts, candidate.names)
    places: list[Sequence[int]] = [range(declared)]
    if champion and champion.are_declared:
        places.append(_places(champion.names, candidate.names, shared, are_ids=are_ids))
    width = len(shared)
    labelled = zip(labels.texts, found, strict=True)
    codes = [_label(text, shared, declared) if code is None else code for text, code in labelled]
    if champion and not champion.are_declared:
        places.append(_predicted(champion.names, ClassNames(labels.texts), codes, shared))
    versions = [candidate, *([champion] if champion else [])]
    faults = [_fault(labels, codes, *each) for each in zip(versions, places, strict=True)]
    return Alignment(shared.names, declared, width, labels.codes(codes), versions, places, faults)


def _places(
    names: Sequence[str], candidate: Sequence[str], shared: ClassNames, *, are_ids: bool
) -> Sequence[int]:
    """Return the places of the champion's classes: by name, or by index if only indices can be compared."""
    numbered = [str(index) for index in range(len(names))]
    is_shared = any(shared.find(name) is not None for name in names)
    by_index = are_ids or numbered in ([*names], [*candidate])
    if not is_shared and by_index and len(names) == len(candidate):
        return range(len(names))
    return [shared.add(name) for name in names]


def _label(text: str, shared: ClassNames, declared: int) -> int:
    """Return the class of a label that the candidate does not know."""
    index = shared.find(text)
    return shared.add(f"{text} (unknown)") if index is None or index < declared else index


def _predicted(
    texts: Sequence[str], label_names: ClassNames, codes: Sequence[int], shared: ClassNames
) -> Sequence[int]:
    """Return the classes of predicted values, which mean what the same labels mean."""
    places = []
    for text in texts:
        label = label_names.find(text)
        place = shared.find(text) if label is None else codes[label]
        places.append(UNKNOWN_PREDICTION if place is None else place)
    return places


def _by_values(labels: Values, candidate: VersionClasses, champion: VersionClasses | None) -> Alignment:
    """Let scores be about all labels and predicted values."""
    versions = [candidate, *([champion] if champion else [])]
    names = [version.names for version in versions]
    if champion and champion.are_declared:
        known = ClassNames(champion.names)
        if not any(known.find(text) is not None for text in labels.texts):
            names[1] = [str(index) for index in range(len(champion.names))]
    shared = ClassNames()
    for name in in_order([*labels.texts, *(name for each in names for name in each)]):
        shared.add(name)
    codes = [shared.add(text) for text in labels.texts]
    places = [[shared.add(name) for name in each] for each in names]
    faults = [_fault(labels, codes, *each) for each in zip(versions, places, strict=True)]
    return Alignment(shared.names, len(shared), len(shared), labels.codes(codes), versions, places, faults)


def _fault(labels: Values, codes: Sequence[int], version: VersionClasses, places: Sequence[int]) -> str:
    if not {*codes}.isdisjoint(places):
        return ""
    kind = "classes" if version.are_declared else "predicted values"
    return f"the labels ({enumeration(labels.texts)}) are none of the {kind} ({enumeration(version.names)})"
