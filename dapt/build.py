"""Pairs -> a corpus on disk that mla_med.corpus reads, with what was refused, leaks and may name somebody.

    corpus.json  train.jsonl  validation.jsonl  test.jsonl
    images/KEY.npy, KEY.json     KEY is a hash of transform and source: a changed one is never reused
    refused.csv  leakage.csv  privacy.csv  corpus.html
    confidential/salt, sources.csv     which hash is which file; not to leave the archive

Killed, it goes on: an image that is there and whole is not made again, and the files come out byte for byte
as those of an unbroken run. One bad study costs itself. Nothing that is written, confidential/ aside, holds a
path, a UID or, with `mask`, the words that a rule took for an identifier. Knows no form of source.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import secrets
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dapt.corpus_page import to_page
from dapt.importers.pair import Hide, ImageSource, Imported, Pair, Person, Refused
from dapt.placing import GRIDS, Placed, digest_source, hash_of_transform, key_of, place_source
from dapt.privacy import find_identifiers, mask_identifiers
from evaluation.findings import reader_of
from evaluation.leakage import find_leaks
from mla_med.corpus import SPLITS
from mla_med.dicom.apart import Limits, ReaderProcess
from mla_med.errors import ConfigError, MlaMedError, OutputError, StudyError
from mla_med.files import write_text
from mla_med.imaging.transforms import Preprocessing
from mla_med.report.schema import schema_of
from mla_med.types import Finding, Presence

FORM = 2
"""Of a gathered corpus; phantoms' corpora have no number."""
READABLE = (("chest_ct", "en"), ("chest_ct", "zh"), ("brain_mr", "en"), ("brain_mr", "zh"))
"""Examination and language of which rules read findings from reports."""
MOST_LEAKS = 10_000
"""Rows of leakage.csv."""
_LIMITS = Limits(memory_bytes=16 * 2**30, cpu_s=1200.0, wall_s=1200.0)
"""torch and MONAI reserve addresses of some GiB before they read a voxel."""
_FILE = re.compile(r"\S*[/\\]\S+|\S+\.(?:dcm|ima|nii|gz|zip|hdr|img|png|jpe?g|csv|hl7)\b", re.IGNORECASE)
_UID = re.compile(r"(?<![\d.])\d+(?:\.\d+){4,}")

Progress = Callable[[int, int], None]
"""Called with how many pairs are done, and how many of them were refused."""


@dataclass(frozen=True, slots=True)
class BuildConfig:
    examination: str = "chest_ct"
    """Whose grid and findings; empty: pictures."""
    mask: bool = False
    """Whether what may name somebody is replaced in texts; it is counted either way."""
    split: str = "official"
    """official: as the source has it, by hash where it has none; hash: always by hash of the patient."""
    shares: tuple[int, int, int] = (80, 10, 10)
    """Of patients in train, validation and test, where the hash decides."""
    images: bool = True
    """False: texts alone, and no image is opened."""
    workers: int = 2
    """Child processes that read images; 0: this process reads them, and dies of what a child would die of."""
    limit: int | None = None
    """So many pairs, the first."""
    preprocessing: Preprocessing | None = None
    """The grid of a model that is to be trained on; None: that of the examination."""

    def __post_init__(self):
        if self.examination not in GRIDS:
            there = ", ".join(name or "pictures" for name in GRIDS)
            raise ConfigError(f"No model reads {self.examination}; there are: {there}.", code="NO_GRID")
        if self.split not in ("official", "hash"):
            raise ConfigError(f"No way to split '{self.split}'; there are official and hash.")
        if len(self.shares) != 3 or sum(self.shares) != 100 or min(self.shares) < 0:
            raise ConfigError(f"Shares of train, validation and test make 100, not {self.shares}.")
        if self.workers < 0:
            raise ConfigError(f"{self.workers} workers read nothing; give 0 or more.")


@dataclass
class _Book:
    """What is written at the end."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    refused: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    identifiers: list[tuple[str, str, str, int, int]] = field(default_factory=list)
    sources: list[tuple[str, str]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)


def load_hide(out: Path) -> Hide:
    """With the salt of the corpus, which is made once."""
    path = out / "confidential" / "salt"
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.parent.chmod(0o700)
            write_text(path, secrets.token_hex(32) + "\n")
        return Hide(bytes.fromhex(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise OutputError(f"Cannot write to {out}: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no salt. Delete the corpus and make it again.") from error


def build_corpus(
    imported: Imported,
    kind: str,
    source: Path,
    out: Path,
    config: BuildConfig | None = None,
    progress: Progress = lambda done, refused: None,
) -> Path:
    """-> `out`. `imported`: what an importer of `dapt/importers` yields, made with `load_hide(out)`."""
    config = config or BuildConfig()
    settings = config.preprocessing or GRIDS[config.examination]
    _check_same(out, kind)
    (out / "images").mkdir(parents=True, exist_ok=True)
    for left in (out / "images").glob("*.part"):
        left.unlink()
    book = _Book()
    for done, (item, image) in enumerate(
        _with_images(islice(imported, config.limit), out, settings, config), 1
    ):
        _enter(item, image, book, config, source)
        progress(done, len(book.refused))
    if not book.keys:
        raise StudyError(f"{source} holds nothing that could be read as {kind}.", code="SOURCE_EMPTY")
    _write(book, kind, out, settings, config)
    return out


def split_of(patient: Person, shares: Sequence[int]) -> str:
    """By the patient, so that every study of theirs is in one split."""
    per_cent = 100 * patient.place
    return SPLITS[0] if per_cent < shares[0] else SPLITS[1] if per_cent < shares[0] + shares[1] else SPLITS[2]


def _check_same(out: Path, kind: str) -> None:
    path = out / "corpus.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("kind") != kind:
        raise ConfigError(
            f"{out} holds a corpus of another kind. Choose another folder, or delete it.",
            code="CORPUS_DIFFERS",
        )


# Images

_Image = dict[str, Any] | MlaMedError | None
"""What is known of a placed image, why there is none, or None: the pair has none."""
Item = Pair | Refused


def _with_images(
    items: Iterator[Item], out: Path, settings: Preprocessing, config: BuildConfig
) -> Iterator[tuple[Item, _Image]]:
    """In the order of the items, some of them ahead."""
    if not config.workers or not config.images:
        for item in items:
            yield item, _image_of(item, out, settings, config, place_source)
        return
    readers = _Readers()
    try:
        with ThreadPoolExecutor(config.workers) as pool:
            waiting: deque[tuple[Item, Future[_Image]]] = deque()
            try:
                for item in items:
                    job = pool.submit(_image_of, item, out, settings, config, readers.place)
                    waiting.append((item, job))
                    if len(waiting) > 4 * config.workers:
                        first, job = waiting.popleft()
                        yield first, job.result()
                while waiting:
                    first, job = waiting.popleft()
                    yield first, job.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    finally:
        readers.close()


class _Readers:
    """A child process for each thread that asks."""

    def __init__(self) -> None:
        self._mine = threading.local()
        self._all: list[ReaderProcess] = []

    def place(self, source: ImageSource, settings: Preprocessing, examination: str) -> Placed:
        if not hasattr(self._mine, "reader"):
            self._mine.reader = ReaderProcess(_LIMITS)
            self._all.append(self._mine.reader)
        return self._mine.reader.call(place_source, source, settings, examination)

    def close(self) -> None:
        for reader in self._all:
            reader.close()


def _image_of(
    item: Item, out: Path, settings: Preprocessing, config: BuildConfig, place: Callable[..., Placed]
) -> _Image:
    if isinstance(item, Refused) or item.image is None or not config.images:
        return None
    try:
        source = digest_source(item.image)
        key = key_of(item.image, source, settings, config.examination)
        there = _cached(out, key)
        if there is None:
            placed = place(item.image, settings, config.examination)
            there = _keep(placed, out, key, source)
        return {"key": key, **there}
    except MlaMedError as error:
        return error
    except OSError as error:
        return StudyError(f"A file cannot be read: {error.strerror}.", code="FILE_UNREADABLE")


def _cached(out: Path, key: str) -> dict[str, Any] | None:
    """What is known of an image that is there and whole."""
    array, about = (out / "images" / f"{key}.{suffix}" for suffix in ("npy", "json"))
    if not (array.is_file() and about.is_file()):
        return None
    known = json.loads(about.read_text(encoding="utf-8"))
    whole = hashlib.sha256(array.read_bytes()).hexdigest() == known["sha256"]
    return known if whole else None


def _keep(placed: Placed, out: Path, key: str, source: str) -> dict[str, Any]:
    file = io.BytesIO()
    np.save(file, placed.stored)
    content = file.getvalue()
    known = {
        "affine": placed.affine.round(4).tolist(),
        "present": list(placed.present),
        "sha256": hashlib.sha256(content).hexdigest(),
        "source": source,
    }
    path = out / "images" / f"{key}.npy"
    # two examples of one image may be at work at once
    part = path.with_name(f"{key}.{threading.get_ident()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(
            f"Cannot write {path}: {error.strerror}. Free some space and run it again."
        ) from error
    write_text(path.with_suffix(".json"), json.dumps(known) + "\n")
    return known


# Texts and rows


def _enter(item: Item, image: _Image, book: _Book, config: BuildConfig, source: Path) -> None:
    if isinstance(image, OutputError):
        raise image  # a full disk is the fault of no study
    files = item.files if isinstance(item, Refused) else item.image.files if item.image else ()
    book.sources.append((item.key, _relative(files, source)))
    if isinstance(item, Refused):
        book.refused.append(
            (item.key, "pair", item.code, _without_names(item.words, files, source), item.place)
        )
        return
    if item.key in book.keys:
        book.refused.append((item.key, "pair", "PAIR_TWICE", "It stands in the source before.", item.place))
        return
    if isinstance(image, MlaMedError):
        words = _without_names(str(image), files, source)
        book.refused.append((item.key, "image", image.code, words, item.place))
        image = None
    if image is None and not (item.report or item.texts):
        if item.image is None:
            words = "Neither an image nor a report."
            book.refused.append((item.key, "pair", "PAIR_EMPTY", words, item.place))
        return
    split = (item.split if config.split == "official" else None) or split_of(item.patient, config.shares)
    book.keys.add(item.key)
    book.rows[split].append(_row(item, image, book, config))


def _row(pair: Pair, image: dict[str, Any] | None, book: _Book, config: BuildConfig) -> dict[str, Any]:
    said = {"context": pair.context, "report": pair.report or "", **pair.texts}
    for name, text in said.items():
        found = find_identifiers(text)
        book.identifiers += [(pair.key, name, one.kind, one.start, one.end) for one in found]
        if config.mask and found:
            said[name] = mask_identifiers(text)
    findings, labels, known = _labelled(pair, said["report"], config.examination)
    row: dict[str, Any] = {
        "id": pair.key,
        "patient": pair.patient.hash,
        "study": pair.study,
        "image": image and f"images/{image['key']}.npy",
    }
    if image:
        row |= {name: image[name] for name in ("affine", "present", "source", "sha256")}
    row |= {
        "contexts": {pair.language: said["context"]} if said["context"] else {},
        "reports": {pair.language: said["report"]} if said["report"] else {},
        "findings": [_finding_to_dict(finding) for finding in findings],
        "labels": labels,
        "known": known,
    }
    if pair.texts:
        row["texts"] = {name: said[name] for name in pair.texts}
    return row


def _labelled(pair: Pair, report: str, examination: str) -> tuple[list[Finding], str, list[str]]:
    """Findings, where they come from, and of which codes they tell."""
    if pair.findings is not None:
        known = pair.known if pair.known is not None else tuple(schema_of(examination))
        return _ordered(pair.findings, examination), "given", list(known)
    if not report or (examination, pair.language) not in READABLE:
        return [], "none", []
    stated = reader_of(examination, pair.language)(report).findings
    told = dict.fromkeys(f.code for f in stated if f.presence is not Presence.CANNOT_SAY)
    present = [f for f in stated if f.presence is Presence.PRESENT]
    return _ordered(present, examination), "extracted", [c for c in schema_of(examination) if c in told]


def _ordered(findings: Sequence[Finding], examination: str) -> list[Finding]:
    """By the schema; of one code the largest first. What a schema does not allow is left out of a finding."""
    schema = schema_of(examination)
    legal = []
    for f in findings:
        kind = schema[f.code]
        placed = (f.side, f.site) in kind.places
        size = f.size_mm if kind.has_size and f.size_mm and f.size_mm < 1000 else None
        count = f.count if kind.countable and f.count and f.count >= 2 else None
        site, side = (f.site, f.side) if placed else (None, None)
        legal.append(Finding(f.code, Presence.PRESENT, site, side, size, count))
    order = {code: n for n, code in enumerate(schema)}
    return sorted(dict.fromkeys(legal), key=lambda f: (order[f.code], -(f.size_mm or 0.0)))


def _finding_to_dict(finding: Finding) -> dict[str, Any]:
    names = ("code", "site", "side", "size_mm", "count")
    return {name: value for name in names if (value := getattr(finding, name)) is not None}


def _relative(files: Sequence[Path], source: Path) -> str:
    """What a person looks for: the file, or the folder that holds all of them."""
    if not files:
        return ""
    common = files[0] if len(files) == 1 else Path(os.path.commonpath([str(path) for path in files]))
    root = source if source.is_dir() else source.parent
    return str(common.relative_to(root)) if common.is_relative_to(root) else str(common)


def _without_names(words: str, files: Sequence[Path], source: Path) -> str:
    """The words of a reader without paths, UIDs and what looks like an identifier: archives name folders
    after patients."""
    names = {part for path in files for part in _parts(path, source)}
    for name in sorted(names, key=len, reverse=True):
        words = words.replace(name, "[file]")
    return mask_identifiers(_UID.sub("[uid]", _FILE.sub("[file]", words)))


def _parts(path: Path, source: Path) -> Iterator[str]:
    """Names on the way from the source to the file, and of what lies in a folder."""
    yield str(path)
    way = path.relative_to(source).parts if path.is_relative_to(source) else (path.name,)
    inside = (p.name for p in path.rglob("*")) if path.is_dir() else ()
    for name in (*way, *inside):
        yield from (part for part in (name, Path(name).stem) if len(part) > 3)


# Leakage


def _leaks(rows: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str, str, str, str, str]]:
    """What, split, id, other split, id there, share: the later split has what an earlier one has."""
    found: list[tuple[str, str, str, str, str, str]] = []
    for what, names in (("patient", ("patient",)), ("image", ("source", "sha256"))):
        first: dict[tuple[str, str], tuple[str, str]] = {}
        for split in SPLITS:
            for row in rows[split]:
                for name in (name for name in names if row.get(name)):
                    where = first.setdefault((name, row[name]), (split, row["id"]))
                    if where[0] != split:
                        found.append((what, split, row["id"], *where, "1.00"))
                        break
    for k, split in enumerate(SPLITS[1:], start=1):
        for other in SPLITS[:k]:
            mine, theirs = ([row for row in rows[s] if row["reports"]] for s in (split, other))
            if not mine or not theirs:
                continue
            texts = [[next(iter(row["reports"].values())) for row in some] for some in (mine, theirs)]
            found += [
                ("report", split, mine[leak.text]["id"], other, theirs[leak.train]["id"], f"{leak.share:.2f}")
                for leak in find_leaks(*texts)
            ]
    return found


def _repeated(rows: Sequence[dict[str, Any]]) -> int:
    """How many reports of a split are word for word that of another patient in it: what two splits share is
    to be read beside it."""
    by_text: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for text in row["reports"].values():
            by_text[" ".join(text.lower().split())].add(row["patient"])
    texts = (" ".join(text.lower().split()) for row in rows for text in row["reports"].values())
    return sum(len(by_text[text]) > 1 for text in texts)


# Files


def _write(book: _Book, kind: str, out: Path, settings: Preprocessing, config: BuildConfig) -> None:
    for split in SPLITS:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in book.rows[split])
        write_text(out / f"{split}.jsonl", "".join(lines))
    leaks = _leaks(book.rows)
    _write_csv(out / "refused.csv", ("id", "what", "code", "reason", "place"), book.refused)
    _write_csv(out / "privacy.csv", ("id", "text", "kind", "start", "end"), book.identifiers)
    columns = ("what", "split", "id", "other_split", "other_id", "share")
    _write_csv(out / "leakage.csv", columns, leaks[:MOST_LEAKS])
    _write_csv(out / "confidential" / "sources.csv", ("id", "path"), book.sources)
    (out / "confidential" / "sources.csv").chmod(0o600)
    about = _about(book, leaks, kind, settings, config)
    about["unused_images"] = _unused(book, out)
    write_text(out / "corpus.html", to_page(about))
    # the last one to appear: who sees it sees a whole corpus
    write_text(out / "corpus.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def _about(
    book: _Book, leaks: Sequence[Sequence[str]], kind: str, settings: Preprocessing, config: BuildConfig
) -> dict[str, Any]:
    rows = [row for split in SPLITS for row in book.rows[split]]
    has_images = any(row["image"] for row in rows)
    languages = sorted({name for row in rows for name in (*row["reports"], *row["contexts"])})
    kinds = Counter(identifier[2] for identifier in book.identifiers)
    marked = {identifier[0] for identifier in book.identifiers}
    return {
        "form": FORM,
        "kind": kind,
        "examination": config.examination,
        "languages": languages,
        **{split: len(book.rows[split]) for split in SPLITS},
        "preprocessing": settings.to_dict() if has_images else None,
        "transform": hash_of_transform(settings) if has_images else None,
        "splits": {split: _describe(book.rows[split]) for split in SPLITS},
        "labels": dict(Counter(row["labels"] for row in rows)),
        "refused": dict(sorted(Counter(f"{r[1]} {r[2]}" for r in book.refused).items())),
        "leakage": {
            "found": dict(Counter(f"{leak[0]}: {leak[1]} in {leak[3]}" for leak in leaks)),
            "repeated_within": {split: _repeated(book.rows[split]) for split in SPLITS},
        },
        "privacy": {
            "masked": config.mask,
            "examples": len(marked),
            "found": {k: kinds[k] for k in kinds},
        },
    }


def _describe(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    words = [
        len(text.split()) if name != "zh" else len(text) for r in rows for name, text in r["reports"].items()
    ]
    quarters = [int(q) for q in np.percentile(words, (0, 25, 50, 75, 100))] if words else []
    known = Counter(code for row in rows for code in row["known"])
    present = Counter(code for row in rows for code in dict.fromkeys(f["code"] for f in row["findings"]))
    return {
        "examples": len(rows),
        "patients": len({row["patient"] for row in rows}),
        "studies": len({row["study"] for row in rows}),
        "images": sum(row["image"] is not None for row in rows),
        "distinct_images": len({row["image"] for row in rows} - {None}),
        "reports": sum(bool(row["reports"]) for row in rows),
        "both": sum(bool(row["reports"]) and row["image"] is not None for row in rows),
        "contexts": sum(bool(row["contexts"]) for row in rows),
        "report_words": quarters,
        "findings": {code: [present[code], known[code]] for code in sorted(known, key=lambda c: -present[c])},
    }


def _unused(book: _Book, out: Path) -> int:
    """Images of earlier settings or sources: kept, as going back to these is then free."""
    used = {row["image"] for split in SPLITS for row in book.rows[split]}
    return sum(f"images/{path.name}" not in used for path in (out / "images").glob("*.npy"))


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, file.getvalue())
