"""Where a method is from."""

from typing import ClassVar


class Provenance:
    """Facts about the origin of a method, as attributes of its class.

    Attributes:
        title: What tables and pages call the method; empty for one that they do not list.
        paper: Key of its paper in docs/references.bib; empty for a rule of one's own.
        official_code: The authors' repository on GitHub, `OWNER/NAME`; empty where none is public.
        parity: What its numbers were compared with.
    """

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    official_code: ClassVar[str] = ""
    parity: ClassVar[str] = ""
