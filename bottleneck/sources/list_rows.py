"""Read the rows of a list: CSV with any usual separator, JSON Lines, gzip of either, or Parquet.

A row is the name of an image and the value of its label, as they stand there.
"""

import contextlib
import csv
import gzip
import io
import itertools
import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from bottleneck.errors import UsageError
from bottleneck.sources.containers import ContainerFile
from bottleneck.sources.image import IMAGE_SUFFIXES
from bottleneck.sources.labels import find_label_column, label_names
from bottleneck.sources.reading import Reading
from bottleneck.storage.parquet import is_plain, is_text, open_parquet

log = logging.getLogger(__name__)

PARQUET_SUFFIXES = (".parquet", ".pq")
JSON_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".csv", ".tsv", *JSON_SUFFIXES)
SUFFIXES = (*TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES), *PARQUET_SUFFIXES)
EXPECTED = (
    "Expected CSV (separated by commas, semicolons, tabs or bars) in UTF-8 with a header, JSON Lines, one of them "
    "gzip'd, or Parquet"
)
NAMES = (
    *("uri", "url", "image", "img", "path", "file", "file_name", "filename", "key", "image_path", "image_url"),
    *("image_file", "image_name", "img_path", "filepath", "image_id", "id"),
)
"""Possible names of the image column, in lower case; the first that exists is used."""
SEPARATORS = ",\t;|"
BUFFER_BYTES = 1_000_000
MAX_FIELD = 10_000_000
"""Longest CSV field, in characters; captions may be long."""
MAX_LINE = 20_000_000
ROWS_READ_AT_ONCE = 256
"""Rows of Parquet read at a time, as a small file can repeat a long text a million times."""
NUM_FOR_COLUMNS = 100
"""JSON Lines objects that determine the columns."""


class ListRow(NamedTuple):
    """One row of a list."""

    number: int
    """Its line in the file, from 1; in Parquet its row, from 0."""
    name: str | None
    label: Any


@dataclass(frozen=True)
class ListFile:
    """An open list."""

    columns: list[str]
    image: str
    label: str | None
    """The label column; None if there is none or none is wanted."""
    label_names: tuple[str, ...]
    """Class names if labels are numbers; else empty."""
    unit: str
    """The unit of `ListRow.number`."""
    rows: Iterator[ListRow]


@contextlib.contextmanager
def open_list(file: ContainerFile, reading: Reading, name: str) -> Iterator[ListFile]:
    """Open a list by its suffix, and detect its separator.

    Raises:
        UsageError: also while rows are read, for a list that is damaged, or has no column of images.
    """
    suffix = file.entry.key.lower()
    try:
        if suffix.endswith(PARQUET_SUFFIXES):
            with open_parquet(file) as table:
                yield _parquet(table, reading, name)
            return
        data: Any = io.BufferedReader(file, BUFFER_BYTES)
        if suffix.endswith(".gz"):
            data = gzip.GzipFile(fileobj=data)
        with io.TextIOWrapper(data, "utf-8-sig", newline="") as text:
            is_json = suffix.removesuffix(".gz").endswith(JSON_SUFFIXES)
            yield (_json_lines if is_json else _separated)(text, reading, name)
    except EOFError as error:
        raise UsageError(f"{name} is cut: {error}. Copy it again; nothing was planned.") from error
    except (pa.ArrowException, csv.Error, OSError, ValueError, zlib.error) as error:
        raise UsageError(f"{name} cannot be read: {error}. {EXPECTED}.") from error


def find_image_column(columns: Sequence[str], reading: Reading, name: str) -> str:
    """The column with image names. Raises UsageError if it is not clear."""
    if double := sorted({one for one in columns if columns.count(one) > 1}):
        raise UsageError(f"{name} has several columns called {', '.join(double)}. Expected each name once.")
    listed = ", ".join(columns)
    if reading.image_column:
        if reading.image_column not in columns:
            raise UsageError(
                f"{name} has no column {reading.image_column!r}. Expected `image_column` to name one of: {listed}."
            )
        return reading.image_column
    by_lower = {one.lower(): one for one in reversed(columns)}
    found = next((by_lower[one] for one in NAMES if one in by_lower), None)
    if found is None:
        is_data = any(one.lower().endswith(tuple(IMAGE_SUFFIXES)) for one in columns)
        raise UsageError(
            f"Which column of {name} names the images is not clear from their names: {listed}. Expected "
            + (
                "a header; the first line looks like an image's. Add a line such as file_name,label before it."
                if is_data
                else "`image_column` with the one that holds the images' file names or URIs."
            )
        )
    return found


def _label_column(columns: Sequence[str], reading: Reading, name: str) -> str | None:
    return find_label_column(columns, reading.label_column, name) if reading.labels == "folder" else None


def _separated(text: io.TextIOWrapper, reading: Reading, name: str) -> ListFile:
    """All values are texts: a class called 007 is not the number 7."""
    csv.field_size_limit(MAX_FIELD)
    lines = _Lines(text, name)
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise UsageError(f"{name} cannot be read: it is empty. {EXPECTED}.")
    separator = max(SEPARATORS, key=lambda one: len(next(csv.reader([first], delimiter=one))))
    # Where there are blanks behind separators, a quote after them begins a quoted field all the same.
    spaced = f"{separator} " in first
    reader = csv.reader(itertools.chain([first], lines), strict=True, delimiter=separator, skipinitialspace=spaced)
    columns = [one.strip() for one in next(reader)]
    image_column, label_column = find_image_column(columns, reading, name), _label_column(columns, reading, name)

    def rows() -> Iterator[ListRow]:
        image, label = columns.index(image_column), columns.index(label_column) if label_column else None
        row = None
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(columns):
                raise UsageError(
                    f"{name} cannot be read: line {reader.line_num} has {len(fields)} fields, its header "
                    f"{len(columns)}. Expected as many in each; quote fields with the separator {separator!r} in them."
                )
            row = ListRow(reader.line_num, fields[image], None if label is None else fields[label])
            yield row
        if row and not lines.ended:
            log.warning(
                "%s does not end with a line end. If it was cut, whatever followed is not planned, and its last line "
                "may be half: %r%s",
                name,
                row.name,
                "" if label is None else f", label {row.label!r}",
            )

    return ListFile(columns, image_column, label_column, reading.label_names, "line", rows())


class _Lines:
    """The lines of a text, with a limit on their length."""

    def __init__(self, text: io.TextIOWrapper, name: str) -> None:
        self.text, self.name = text, name
        self.ended = True
        """Whether the last line ends with a newline."""

    def __iter__(self) -> Iterator[str]:
        while line := self.text.readline(MAX_LINE):
            self.ended = line.endswith(("\n", "\r"))
            if not self.ended and len(line) == MAX_LINE:
                raise ValueError(f"a line is longer than {MAX_LINE:,} characters")
            yield line


def _json_lines(text: io.TextIOWrapper, reading: Reading, name: str) -> ListFile:
    def objects() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(_Lines(text, name), 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(
                    f"{name}, line {number} is no JSON: {error}. Expected an object a line; was the file cut?"
                ) from None
            if not isinstance(value, dict):
                raise UsageError(f"{name}, line {number} is no JSON object. Expected one a line, as {{...}}.")
            yield number, value

    found = objects()
    first = list(itertools.islice(found, NUM_FOR_COLUMNS))
    if not first:
        raise UsageError(f"{name} cannot be read: it is empty. {EXPECTED}.")
    columns = list(dict.fromkeys(key for _, value in first for key in value))
    image, label = find_image_column(columns, reading, name), _label_column(columns, reading, name)
    rows = (
        ListRow(number, _name(value.get(image), f"{name}, line {number}"), value.get(label) if label else None)
        for number, value in itertools.chain(first, found)
    )
    return ListFile(columns, image, label, reading.label_names, "line", rows)


def _parquet(table: Any, reading: Reading, name: str) -> ListFile:
    schema = table.schema_arrow
    image, label = find_image_column(schema.names, reading, name), _label_column(schema.names, reading, name)
    kind = schema.field(image).type
    # As Hugging Face datasets have images that are not in the table itself.
    has_path = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0 and is_text(kind.field("path").type)
    for column, option in ((image, "`image_column`"), (label, "`label_column`")):
        is_read = column is None or is_plain(schema.field(column).type) or (column == image and has_path)
        if not is_read:
            raise UsageError(
                f"{name} has values of type {schema.field(column).type} in its column {column!r}. Expected "
                f"texts or numbers; give another {option}."
            )

    def rows() -> Iterator[ListRow]:
        number = 0
        wanted = [f"{image}.path" if has_path else image] + ([] if label is None else [label])
        for batch in table.iter_batches(ROWS_READ_AT_ONCE, columns=wanted, use_threads=False):
            labels = [None] * len(batch) if label is None else batch.column(label).to_pylist()
            for value, label_value in zip(batch.column(image).to_pylist(), labels, strict=True):
                value = value and value["path"] if has_path else value
                yield ListRow(number, _name(value, f"{name}, row {number}"), label_value)
                number += 1

    names = reading.label_names or label_names(schema, label, name)
    return ListFile(list(schema.names), image, label, names, "row", rows())


def _name(value: Any, where: str) -> str | None:
    """The name of an image as text; some datasets number their images."""
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as pandas has whole numbers in a column with gaps
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UsageError(
            f"{where}: an image's name is of type {type(value).__name__}. Expected text or a whole number."
        )
    return str(value)
