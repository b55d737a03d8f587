"""XML files without a document type. A declared document type is rejected: no entity is ever expanded or fetched."""

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from afclip_runtime.errors import UserError, shown
from afclip_runtime.files.reading import DOCUMENT_LIMIT, read_bytes
from afclip_runtime.files.typed import DEPTH_LIMIT, REMEDY, Source


def read_xml(
    path: str | Path, *, remedy: str = REMEDY, limit: int = DOCUMENT_LIMIT, error: type[UserError] = UserError
) -> Element:
    """Returns the root of an XML file.

    Args:
        path: The file.
        remedy: See `to_type`.
        limit: Maximum size of the file in bytes.
        error: Class of the error.

    Raises:
        UserError: The file cannot be read, or see `parse_xml`.
    """
    content = read_bytes(path, limit=limit, error=error)
    return parse_xml(content, shown(path), remedy=remedy, error=error)


def parse_xml(content: bytes, source: str, *, remedy: str = REMEDY, error: type[UserError] = UserError) -> Element:
    """Returns the root of an XML text.

    Args:
        content: The text, in any encoding that it declares and the parser knows.
        source: See `to_type`.
        remedy: See `to_type`.
        error: Class of the error.

    Raises:
        UserError: The text is not XML, declares a document type, or is nested too deep.
    """
    where = Source(source, remedy, error)
    builder, depth = TreeBuilder(), 0
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEPTH_LIMIT:
            raise where.refuse(f"is nested more than {DEPTH_LIMIT} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise where.refuse("declares a document type (DOCTYPE), which no export needs, and which may hold entities")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as problem:
        raise where.line(problem.lineno).refuse(f"is not valid XML ({expat.ErrorString(problem.code)})") from problem
    except (ValueError, LookupError) as problem:  # an unknown encoding
        raise where.refuse(f"cannot be read as XML ({problem})") from problem
    return builder.close()
