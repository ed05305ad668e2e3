"""The places a source may be read in: its own and its roots."""

from bottleneck.sources.reading import Reading
from bottleneck.storage.local import FolderStore
from bottleneck.storage.source_folder import SourceFolder
from bottleneck.storage.store import Store, normal_uri, open_store


def open_place(uri: str, reading: Reading, *places: str) -> Store:
    """Open a store as part of a source.

    Args:
        uri: of the store.
        places: what links of a folder may lead to, beside the folder itself and the roots of the reading.
    """
    store = open_store(uri)
    if not isinstance(store, FolderStore):
        return store
    if reading.follow_links:
        return SourceFolder(store.uri, None)
    roots = [normal_uri(root) for root in reading.roots]
    return SourceFolder(store.uri, [store.uri, *places, *(root for root in roots if "://" not in root)])
