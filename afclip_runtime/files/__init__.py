r"""Files: how they are opened and read as typed values, and how they are written.

Reading: only regular files are opened, sizes and nesting are bounded, and what a file holds is checked against a type
(a dataclass, `dict[str, float]`, ...) before anyone sees it. Each refusal is one `UserError` that names the file, the
field or line, and what to do. Nothing else in the package parses JSON, YAML, CSV or Parquet.

Writing: in one step, so that a crash or a full disk never leaves half of a file.

Names of files need not be UTF-8, and may hold anything. JSON keeps them as Python's `json` does (`"\udcff"`). In CSV, a
text that begins like a formula or holds control characters is written after an apostrophe, those and backslashes
escaped (`'\xff.png`). Both are read back exactly. For messages and pages there is `shown`.
"""

from afclip_runtime.errors import shown
from afclip_runtime.files.locks import LOCK_FILE, Lock, holder_of, take_lock, wait_for_lock
from afclip_runtime.files.parquet import read_parquet
from afclip_runtime.files.reading import (
    DOCUMENT_LIMIT,
    TABLE_LIMIT,
    exposed,
    fingerprint,
    open_regular,
    parts_of,
    read_bytes,
    read_text,
    sha256_of,
)
from afclip_runtime.files.shared import is_there, refresh, wait_for
from afclip_runtime.files.tables import csv_text, read_csv, read_rows
from afclip_runtime.files.typed import REMEDY, parse_json, parse_yaml, read_json, read_json_lines, read_yaml, to_type
from afclip_runtime.files.writing import (
    atomic_path,
    check_writable,
    new_folder,
    only_writer,
    only_writer_of,
    write_json,
    write_json_lines,
    write_text,
)

__all__ = [
    "DOCUMENT_LIMIT",
    "LOCK_FILE",
    "REMEDY",
    "TABLE_LIMIT",
    "Lock",
    "atomic_path",
    "check_writable",
    "csv_text",
    "exposed",
    "fingerprint",
    "holder_of",
    "is_there",
    "new_folder",
    "only_writer",
    "only_writer_of",
    "open_regular",
    "parse_json",
    "parse_yaml",
    "parts_of",
    "read_bytes",
    "read_csv",
    "read_json",
    "read_json_lines",
    "read_parquet",
    "read_rows",
    "read_text",
    "read_yaml",
    "refresh",
    "sha256_of",
    "shown",
    "take_lock",
    "to_type",
    "wait_for",
    "wait_for_lock",
    "write_json",
    "write_json_lines",
    "write_text",
]
