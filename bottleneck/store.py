"""Where images come from and features go: a folder or a bucket behind the same few verbs."""

import functools
import os
from urllib.parse import urlsplit

from bottleneck.bucket import BucketStore
from bottleneck.errors import UsageError
from bottleneck.folder import FolderStore
from bottleneck.objects import Store


@functools.lru_cache(maxsize=16)
def open_store(uri: str) -> Store:
    """Open a folder (a path or file://) or a bucket (s3://bucket/prefix). Raises UsageError for any other URI."""
    uri = normal_uri(uri)
    if uri.startswith("s3://"):
        return BucketStore(uri)
    return FolderStore(uri)


def normal_uri(uri: str) -> str:
    """A store's one name: an absolute path, or s3://bucket/prefix without a closing slash."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if not uri:
            raise UsageError("A source or output needs a name. Received an empty one.")
        return os.path.abspath(os.path.expanduser(uri))
    if scheme == "file":
        return os.path.abspath(rest)
    if scheme != "s3":
        # Not the whole URI, which may hold credentials.
        raise UsageError(f"Expected a folder, file:///... or s3://bucket/prefix. Received: {scheme}://...")
    bucket = rest.split("/", 1)[0]
    if "@" in bucket or ":" in bucket or urlsplit(uri).query:
        raise UsageError(
            "A store's URI holds no credentials or options, as it is written into plans and logs. Give credentials by "
            "AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a role, an endpoint by AWS_ENDPOINT_URL."
        )
    if not bucket:
        raise UsageError(f"Expected s3://bucket/prefix. Received: {uri}, which names no bucket.")
    return uri.rstrip("/")
