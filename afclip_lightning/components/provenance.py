"""The origin of a method."""

from typing import ClassVar


class Provenance:
    """Facts about the origin of a method, as attributes of its class.

    Attributes:
        title: Name of the method in tables and pages; empty for a method that they do not list.
        paper: Key of its paper in docs/references.bib; empty for a rule of this project.
        official_code: The authors' repository on GitHub, `OWNER/NAME`; empty where none is public.
        parity: Code or numbers that its numbers were compared with.
    """

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    official_code: ClassVar[str] = ""
    parity: ClassVar[str] = ""
