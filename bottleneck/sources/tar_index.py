"""Read the headers of a tar, or say why it cannot be indexed."""

import tarfile
from collections.abc import Iterator

from bottleneck.errors import UsageError
from bottleneck.sources.containers import ContainerFile
from bottleneck.sources.image import no_image
from bottleneck.text import counted

HEADER_BYTES = 10_000_000
"""Largest header read from a tar, which may declare a name of terabytes."""
PADDING_BYTES = 65_536
"""Bytes checked behind the end mark, where writers pad their last block."""


class CutError(Exception):
    """A tar ends before its end mark: anything behind its last complete header is lost."""


def tar_members(file: ContainerFile, name: str) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar.

    Raises:
        UsageError: where it is none, or damaged before its end.
        CutError: behind the last member, where there is no end mark.
    """
    end = num_members = 0
    file.longest_bytes = HEADER_BYTES
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=0) as tar:
            while (member := tar.next()) is not None:
                if member.size < 0 or tar.offset <= end:
                    raise damaged(name, end)  # read on, it would be met for ever
                end = tar.offset
                num_members += 1
                yield member
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        if file.ran_out and num_members:
            raise cut_off(file, name, num_members, end) from None
        raise UsageError(
            f"{name} is no tar file that can be read: {error}. Expected an uncompressed tar. Mend or remove it."
        ) from error
    file.seek(end)
    header = file.read(512)
    if len(header) < 512:
        raise cut_off(file, name, num_members, end)
    if header.strip(b"\0"):
        raise damaged(name, end)
    if file.read(PADDING_BYTES).strip(b"\0"):
        raise UsageError(
            f"{name} goes on behind its end mark at byte {end}: is it several tars in one file? What follows would not "
            "be counted. Expected one tar a file; unpack and write it anew."
        )


def cut_off(file: ContainerFile, name: str, num_members: int, end: int) -> CutError:
    size, members = file.entry.size, counted(num_members, "member")
    last = f", the last of which says that it reaches to byte {end:,}" if end > size else ""
    return CutError(
        f"{name} is cut off: it ends at byte {size:,} without an end mark, after {members}{last}. What followed, if "
        "anything did, is lost."
    )


def damaged(name: str, offset: int) -> UsageError:
    return UsageError(
        f"{name} is damaged at byte {offset}: what follows is no tar header, so its images cannot be counted. "
        "Mend or remove it."
    )


def no_member(member: tarfile.TarInfo) -> str:
    """The suffix under which a non-image member is counted; empty for an image."""
    if member.isdir():
        return "(directory marker)"
    if not member.isreg() or member.issparse():
        return "(link or special file)"
    return no_image(member.name)
