r"""Reading files as typed values, and writing files.

Reading: only regular files are opened, and sizes and nesting are bounded. The content is checked against a type (a
dataclass, `dict[str, float]`, ...) before it is returned. Each error is one `UserError` that names the file, the field
or line, and the remedy. No other part of the package parses JSON, YAML, CSV or Parquet.

Writing is atomic: a crash or a full disk never leaves half of a file.

Names of files may contain any bytes, also bytes that are not UTF-8. JSON keeps them as Python's `json` does
(`"\udcff"`). In CSV, a text that starts like a formula or contains control characters starts with an apostrophe, and
control characters and backslashes are escaped (`'\xff.png`). Both are read back exactly. Messages and pages use
`shown`.
"""

from afclip_runtime.errors import shown
from afclip_runtime.files.locks import LOCK_FILE, Lock, holder_of, take_lock, this_process, wait_for_lock
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
    "this_process",
    "to_type",
    "wait_for",
    "wait_for_lock",
    "write_json",
    "write_json_lines",
    "write_text",
]
