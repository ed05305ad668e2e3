"""Where images come from and features go: a folder or a bucket behind the same few verbs."""

import functools
import os
import re
from urllib.parse import urlsplit

from bottleneck.errors import UsageError
from bottleneck.storage.local import FolderStore
from bottleneck.storage.readonly import RemoteStore
from bottleneck.storage.s3 import BucketStore
from bottleneck.storage.store import Store

UNNAMED_FILES = "BOTTLENECK_UNNAMED_FILES"
"""Environment variable that, set to `off`, has folders written as where the file system has no unnamed files."""
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


def open_store(uri: str) -> Store:
    """Open a folder (a path or file://), a bucket (s3://bucket/prefix), or to be read only whatever fsspec opens.

    Raises:
        UsageError: for a URI of another kind, or one that needs a package that is not installed.
    """
    return opened(normal_uri(uri))  # a relative name means another folder after os.chdir


@functools.lru_cache(maxsize=16)
def opened(uri: str) -> Store:
    """Open a store by its one name, once."""
    if uri.startswith("s3://"):
        return BucketStore(uri)
    if "://" in uri:
        return RemoteStore(uri)
    return FolderStore(uri, unnamed_files=os.environ.get(UNNAMED_FILES) != "off")


def place_of(file: str) -> tuple[Store, str]:
    """The store a file or s3:// URI is in, and its name there."""
    folder, slash, name = file.rstrip("/").rpartition("/")
    return open_store(folder or slash or "."), name


def check_output_uri(uri: str) -> None:
    """Refuse what is only read. Raises UsageError."""
    uri = normal_uri(uri)
    if "://" in uri and not uri.startswith("s3://"):
        raise UsageError(
            f"Expected a folder or s3://bucket/prefix as the output. Received: {uri.partition('://')[0]}://..., "
            "which is only read, as a source."
        )


def normal_uri(uri: str) -> str:
    """A store's one name: an absolute path, or scheme://place/prefix without a closing slash."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if not uri:
            raise UsageError("A source or output needs a name. Received an empty one.")
        return os.path.abspath(os.path.expanduser(uri))
    if scheme == "file":
        return os.path.abspath(rest)
    if not _SCHEME.fullmatch(scheme) or scheme == "s3a":
        # Not the whole URI, which may hold credentials.
        raise UsageError(f"Expected a folder, file:///... or s3://bucket/prefix. Received: {scheme[:20]}://...")
    bucket = rest.split("/", 1)[0]
    if "@" in bucket or (":" in bucket and scheme == "s3") or urlsplit(uri).query:
        raise UsageError(
            "A store's URI holds no credentials or options, as it is written into plans and logs. Give credentials by "
            "AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a role, an endpoint by AWS_ENDPOINT_URL."
        )
    if not bucket:
        raise UsageError(f"Expected s3://bucket/prefix. Received: {uri}, which names no bucket.")
    return uri.rstrip("/")
