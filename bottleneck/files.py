"""Images that are objects of their own: a folder or prefix, labelled by the folders that hold them."""

from collections import Counter
from collections.abc import Iterator, Sequence

from bottleneck.images import Image, folder_label, no_image
from bottleneck.objects import ObjectError, Store
from bottleneck.spec import Reading


class Files:
    """The images below a store's root, in key order."""

    def __init__(self, store: Store, reading: Reading) -> None:
        self.store, self.reading = store, reading

    def images(self, skipped: Counter[str]) -> Iterator[Image]:
        for entry in self.store.list():
            reason = no_image(entry.key)
            if reason:
                skipped[reason] += 1
            else:
                label = folder_label(entry.key, self.reading.label_names) if self.reading.labels == "folder" else None
                yield Image(entry.key, entry.size, entry.etag, label)

    def first(self, skipped: Counter[str]) -> Image | None:
        return next(self.images(skipped), None)

    def read(self, images: Sequence[Image]) -> Iterator[bytes | ObjectError]:
        return self.store.get_many([image.wanted() for image in images])
