"""On PYTHONPATH of a job, so in each of its Python processes: logs what they read and write, and plays broken decoders.

An audit hook sees every file opened and linked without changing what is done.
"""

import os
import signal
import sys
import time

if "SEEN_LOG" in os.environ:
    _source, _output = os.environ["SEEN_SOURCE"], os.environ["SEEN_OUTPUT"]
    _log = os.open(os.environ["SEEN_LOG"], os.O_WRONLY | os.O_APPEND)

    def _tell(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(_source):
            os.write(_log, f"read {arguments[0].removeprefix(_source)}\n".encode())
        elif event == "os.link" and isinstance(arguments[1], str) and arguments[1].startswith(_output):
            os.write(_log, f"write {arguments[1].removeprefix(_output)}\n".encode())

    sys.addaudithook(_tell)

if "BROKEN_DECODER" in os.environ:
    from PIL import ImageFile

    _load = ImageFile.ImageFile.load

    def _broken(self: ImageFile.ImageFile) -> object:
        """Pillow's decoder with the defect of a C library: some bytes end the process, or never come back."""
        comment = self.info.get("comment", b"")
        if comment == b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if comment == b"hang":
            time.sleep(100_000)
        return _load(self)

    ImageFile.ImageFile.load = _broken  # type: ignore[method-assign]
