"""Commands and names as a narrow page shows them: remarks above their commands, names with hyphens in one piece."""

import re

WIDTH = 90  # characters of a line of code that a page of the site has room for, beside the button that copies it
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REMARK = re.compile(r"^(?P<command>\s*[^\s#].*?)\s{2,}(?P<remark># .*)$")
CODE = re.compile(r"(<code[^>]*>)(.*?)(</code>)", re.DOTALL)
HEAD = re.compile(r"(<th\b[^>]*>)(.*?)(</th>)", re.DOTALL)
NAME = re.compile(r"\w+-[\w-]+(?![^<]*>)")
OPTION = re.compile(r"(?<![\w.&;-])--?[A-Za-z][\w.]*(?:-[\w.]+)*(?![^<]*>)")
WHOLE = r'<span class="whole">\g<0></span>'


def with_remarks_above(markdown: str) -> str:
    """Returns a page whose remarks stand above their commands in each block of commands that is too wide."""
    return BLOCK.sub(lambda block: f"```bash\n{remarks_above(block[1])}```", markdown)


def remarks_above(block: str) -> str:
    """Returns lines of a shell, with each remark above its command if a line with a remark is too wide."""
    lines = block.splitlines()
    if not any(REMARK.match(line) and len(line) > WIDTH for line in lines):
        return block
    shown: list[str] = []
    command: list[str] = []  # the lines of one command, which end with \ except for the last
    for line in lines:
        found = REMARK.match(line)
        if found:
            shown.append(found["remark"])
        command.append(found["command"] if found else line)
        if not command[-1].endswith("\\"):
            shown += command
            command = []
    return "".join(f"{line}\n" for line in [*shown, *command])


def with_whole_names(html: str) -> str:
    """Returns a page that ends no line within an option (`--checkpoint`) or a name in a table's head (`I-AUROC`)."""
    html = CODE.sub(lambda code: code[1] + OPTION.sub(WHOLE, code[2]) + code[3], html)
    return HEAD.sub(lambda cell: cell[1] + NAME.sub(WHOLE, cell[2]) + cell[3], html)
