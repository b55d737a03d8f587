"""Hooks of MkDocs for the site: pages of the repository's files, of the API, and links between them."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from experiments.docs_site import api, built_links, commands, methods, repository, tutorials

log = get_plugin_logger("docs_site")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not files of docs/, and puts those of folders into the navigation."""
    own = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    try:
        shown = repository.shown_files([*own, *repository.PAGES])
    except FileNotFoundError as error:
        raise PluginError(str(error)) from None
    for path in [*repository.PAGES, *shown]:
        level = InclusionLevel.INCLUDED if path in repository.PAGES else InclusionLevel.NOT_IN_NAV
        add(files, config, repository.page_of(path), repository.as_page(path), level)
    for name, text in api.pages().items():
        add(files, config, name, text)
    for script in tutorials.scripts():
        page = tutorials.run(script)
        add(files, config, f"tutorials/{script.stem}.md", page.text)
        for name, picture in page.pictures.items():
            files.append(File.generated(config, f"tutorials/{script.stem}-{name}", content=picture))
    config.nav = [expanded(entry, files) for entry in config.nav or []]
    return files


def add(
    files: Files, config: MkDocsConfig, name: str, text: str, level: InclusionLevel = InclusionLevel.INCLUDED
) -> None:
    """Adds a page to the site."""
    files.append(File.generated(config, name, content=text, inclusion=level))


def expanded(entry: object, files: Files) -> object:
    """Returns an entry of the navigation; one that names a folder, `api/`, has its pages below it."""
    if isinstance(entry, dict):
        return {title: expanded(value, files) for title, value in entry.items()}
    if isinstance(entry, list):
        return [expanded(value, files) for value in entry]
    if isinstance(entry, str) and entry.endswith("/"):
        pages = [file.src_uri for file in files.documentation_pages() if file.src_uri.startswith(entry)]
        pages.sort(key=lambda name: (Path(name).stem != "index", Path(name).stem))
        return api.navigation(pages) if entry == api.FOLDER else pages
    return entry


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes links to files of the repository links to their pages; the page of a method ends with its arguments."""
    source = repository.source_of(page.file.src_uri)
    text = commands.with_remarks_above(repository.for_site(markdown, source))
    return text + methods.arguments(source)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Keeps names in one piece where a line ends."""
    return commands.with_whole_names(html)


def on_post_build(config: MkDocsConfig) -> None:
    """Checks the links of the built pages; with `--strict` a fault fails the build."""
    for fault in built_links.faults(Path(config.site_dir)):
        log.warning(fault)
